//! `hermes-gateway turns`: what was asked, what came of it.

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use hyper::Method;

use super::client::Client;
use super::lists::{self, Wanted};
use super::table::{Facts, Table};
use super::words::{self, age, plain, when};
use super::{Failure, Which, outbox};
use crate::exit::Exit;
use crate::model::id::{SessionId, TurnId};
use crate::model::time::{Timestamp, in_words};
use crate::store::browse::{TURN_STATES, TurnDetail, TurnView};

#[derive(Debug, Args)]
pub struct Turns {
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List turns, newest first
    List {
        /// Only those of this session
        #[arg(long, value_name = "ID")]
        session: Option<SessionId>,
        /// Only those in this state
        #[arg(long, value_parser = PossibleValuesParser::new(TURN_STATES))]
        state: Option<String>,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Show a turn, what was said in it and what went out
    Show {
        /// Its id
        id: TurnId,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

pub async fn execute(turns: &Turns) -> Result<Exit, Failure> {
    let client = Client::new(turns.which.places()?.control_socket());
    match &turns.command {
        Command::List { session, state, wanted } => {
            let (session, state) = (session.as_ref().map(SessionId::as_str), state.as_deref());
            let of = session.map(|session| format!(" in session {session}")).unwrap_or_default();
            let none = format!("There are no {}turns{of}.", state.map(|s| format!("{s} ")).unwrap_or_default());
            lists::list(&client, "/turns", &[("session", session), ("state", state)], wanted, &none, table).await?;
        }
        Command::Show { id, json } => {
            let turn: TurnDetail = client.call(Method::GET, &format!("/turns/{id}")).await?;
            match json {
                true => lists::json(&turn)?,
                false => words::print(&shown(&turn))?,
            }
        }
    }
    Ok(Exit::Ok)
}

/// Turns as a table.
pub fn table(turns: &[TurnView]) -> Table {
    let now = Timestamp::now();
    let mut table = Table::new(&["TURN", "STATE", "SESSION", "AGENT", " AGE", " TOOK", "TROUBLE, OR WHAT WAS ASKED"]);
    for turn in turns {
        table.row(vec![
            turn.id.clone(),
            turn.state.clone(),
            turn.session.clone(),
            turn.agent.clone(),
            age(turn.accepted, now),
            turn.ended.map_or_else(|| "-".into(), |ended| in_words(ended.since(turn.accepted))),
            turn.error.as_ref().unwrap_or(&turn.asked).clone(),
        ]);
    }
    table
}

fn shown(detail: &TurnDetail) -> String {
    let (turn, now) = (&detail.turn, Timestamp::now());
    let mut facts = Facts::default();
    facts.add("turn", turn.id.clone());
    facts.add("state", turn.state.clone());
    facts.add("session", format!("{}, number {} in it", turn.session, turn.seq));
    facts.add("agent", turn.agent.clone());
    facts.add("came by", turn.origin.clone());
    facts.add("accepted", when(turn.accepted, now));
    let took = |ended: Timestamp| format!("{}, after {}", when(ended, now), in_words(ended.since(turn.accepted)));
    facts.maybe("ended", turn.ended.map(took));
    facts.add("starts", turn.attempts.to_string());
    facts.maybe("finish", turn.finish.clone());
    if let (Some(read), Some(written)) = (turn.input_tokens, turn.output_tokens) {
        facts.add("tokens", format!("{read} read, {written} written"));
    }
    facts.maybe("error", turn.error.clone());
    facts.maybe(if turn.state == "absorbed" { "taken up by" } else { "continues" }, turn.parent.clone());
    facts.maybe("reply goes to", turn.deliver.clone());
    let mut text = facts.render();
    let instructions = detail.instructions.iter().map(|text| ("instructions".to_owned(), text));
    for (who, said) in instructions.chain(detail.messages.iter().map(|m| (m.role.to_string(), &m.content))) {
        text.push_str(&format!("\n{who}:\n"));
        plain(said).lines().for_each(|line| text.push_str(&format!("    {line}\n")));
    }
    if !detail.deliveries.is_empty() {
        text.push_str(&format!("\n{}", outbox::table(&detail.deliveries).render(words::terminal_width())));
    }
    text
}
