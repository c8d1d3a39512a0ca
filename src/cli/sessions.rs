//! `hermes-gateway sessions`: the conversations, what was said in them, and their ends.

use std::io::{ErrorKind, Write};

use axum::body::Body;
use clap::{Args, Subcommand};
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::lists::{self, Wanted};
use super::table::{Facts, Table};
use super::words::{self, age, terminal_width, when};
use super::{Failure, Which, turns};
use crate::exit::Exit;
use crate::model::id::SessionId;
use crate::model::time::Timestamp;
use crate::store::browse::{SessionDetail, SessionView};

#[derive(Debug, Args)]
pub struct Sessions {
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List sessions, the latest active first
    List {
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Show a session and its newest turns
    Show {
        /// Its id
        id: SessionId,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Begin the conversation anew: what was said so far is kept and falls silent
    Reset {
        /// Its id
        id: SessionId,
    },
    /// Print all turns that are kept, oldest first, each as JSON on a line of its own
    Export {
        /// Its id
        id: SessionId,
    },
}

pub async fn execute(sessions: &Sessions) -> Result<Exit, Failure> {
    let client = Client::new(sessions.which.places()?.control_socket());
    match &sessions.command {
        Command::List { wanted } => {
            lists::list(&client, "/sessions", &[], wanted, "There are no sessions.", table).await?;
        }
        Command::Show { id, json } => {
            let session: SessionDetail = client.call(Method::GET, &place(id, "")).await?;
            match json {
                true => lists::json(&session)?,
                false => words::print(&shown(&session))?,
            }
        }
        Command::Reset { id } => {
            let _done: Value = client.call(Method::POST, &place(id, "/reset")).await?;
            words::print(&format!("session {id} begins anew with the next message\n"))?;
        }
        Command::Export { id } => export(&client, id).await?,
    }
    Ok(Exit::Ok)
}

/// The path of a session. `/` is the one letter of a session's id that a path cannot take.
fn place(id: &SessionId, rest: &str) -> String {
    format!("/sessions/{}{rest}", id.as_str().replace('/', "%2F"))
}

fn table(sessions: &[SessionView]) -> Table {
    let now = Timestamp::now();
    let mut table = Table::new(&["SESSION", " ACTIVE", " TURNS", "AGENT", "LAST", "LAST ASKED"]);
    for session in sessions {
        table.row(vec![
            session.id.clone(),
            age(session.active, now),
            session.turns.to_string(),
            session.agent.clone(),
            session.state.clone(),
            session.asked.clone(),
        ]);
    }
    table
}

fn shown(detail: &SessionDetail) -> String {
    let (session, now) = (&detail.session, Timestamp::now());
    let mut facts = Facts::default();
    facts.add("session", session.id.clone());
    facts.add("begun", when(session.created, now));
    facts.add("active", when(session.active, now));
    facts.add("turns", session.turns.to_string());
    let anew = |from: i64| format!("with turn number {from}; earlier ones are silent");
    facts.maybe("begun anew", session.fresh_from.map(anew));
    let mut text = format!("{}\n{}", facts.render(), turns::table(&detail.latest.items).render(terminal_width()));
    if let Some(next) = &detail.latest.next {
        let list = format!("hermes-gateway turns list --session {} --before {next}", session.id);
        text.push_str(&format!("\nThere is more: {list}\n"));
    }
    text
}

/// Passes the lines on as they come.
async fn export(client: &Client, id: &SessionId) -> Result<(), Failure> {
    let mut body = client.open(Method::GET, &place(id, "/export"), Body::empty()).await?.into_body();
    let mut out = std::io::stdout().lock();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ClientError::Silent(crate::daemon::chain(&e)))?;
        let Some(lines) = frame.data_ref() else { continue };
        match out.write_all(lines) {
            // Who reads only the beginning has seen enough.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
    out.flush()?;
    Ok(())
}
