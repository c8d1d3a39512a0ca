//! `hermes-gateway outbox`: what is on its way, what was sent, what was given up, and what to do about it.

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use hyper::Method;

use super::client::Client;
use super::lists::{self, Wanted};
use super::table::{Facts, Table};
use super::words::{self, age, plain, when};
use super::{Failure, Which};
use crate::exit::Exit;
use crate::http::control::outbox::Chosen;
use crate::model::address::Target;
use crate::model::delivery::State;
use crate::model::time::Timestamp;
use crate::store::HandReport;
use crate::store::browse::DeliveryView;

#[derive(Debug, Args)]
pub struct Outbox {
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List deliveries, newest first
    List {
        /// Only those in this state
        #[arg(long, value_parser = PossibleValuesParser::new(State::ALL.map(State::label)))]
        state: Option<String>,
        /// Only those that go to this chat
        #[arg(long, value_name = "PLATFORM:CHAT")]
        target: Option<Target>,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Show a delivery with all its text
    Show {
        /// Its number
        number: i64,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Send again what was given up; send at once what waits for its next attempt
    #[command(after_help = AFTER_HELP)]
    Retry {
        /// Their numbers, at most 1000
        #[arg(required_unless_present = "all_dead", value_name = "NUMBER", num_args = 1..=1000)]
        numbers: Vec<i64>,
        /// Everything that was given up
        #[arg(long, conflicts_with = "numbers")]
        all_dead: bool,
    },
    /// Drop what waits or was given up: it is gone, and what the agent said stays in its turn
    #[command(after_help = AFTER_HELP)]
    Drop {
        /// Their numbers, at most 1000
        #[arg(required = true, value_name = "NUMBER", num_args = 1..=1000)]
        numbers: Vec<i64>,
    },
}

const AFTER_HELP: &str =
    "Exit status: 0 all done · 1 some were refused, each with its reason, or it failed · 2 wrong usage";

pub async fn execute(outbox: &Outbox) -> Result<Exit, Failure> {
    let client = Client::new(outbox.which.places()?.control_socket());
    match &outbox.command {
        Command::List { state, target, wanted } => {
            let target = target.as_ref().map(ToString::to_string);
            let (state, target) = (state.as_deref(), target.as_deref());
            let to = target.map(|target| format!(" to {target}")).unwrap_or_default();
            let none = format!("There are no {}deliveries{to}.", state.map(|s| format!("{s} ")).unwrap_or_default());
            lists::list(&client, "/outbox", &[("state", state), ("target", target)], wanted, &none, table).await?;
            Ok(Exit::Ok)
        }
        Command::Show { number, json } => {
            let delivery: DeliveryView = client.call(Method::GET, &format!("/outbox/{number}")).await?;
            match json {
                true => lists::json(&delivery)?,
                false => words::print(&shown(&delivery))?,
            }
            Ok(Exit::Ok)
        }
        Command::Retry { numbers, all_dead } => {
            let chosen = Chosen { numbers: numbers.clone(), all_dead: *all_dead };
            told(&client.ask(Method::POST, "/outbox/retry", &chosen).await?)
        }
        Command::Drop { numbers } => {
            let chosen = Chosen { numbers: numbers.clone(), all_dead: false };
            told(&client.ask(Method::POST, "/outbox/drop", &chosen).await?)
        }
    }
}

/// Deliveries as a table.
pub fn table(deliveries: &[DeliveryView]) -> Table {
    let now = Timestamp::now();
    let mut table = Table::new(&[" NUMBER", "STATE", "TO", " AGE", " TRIES", " NEXT", "TROUBLE, OR TEXT"]);
    for delivery in deliveries {
        let pending = delivery.state == State::Pending.label();
        let next = match pending {
            true if delivery.due <= now => "due".to_owned(),
            true => age(delivery.due, now),
            false => "-".to_owned(),
        };
        let trouble = delivery.reason.as_ref().filter(|_| delivery.state != State::Sent.label());
        table.row(vec![
            delivery.number.to_string(),
            delivery.state.clone(),
            delivery.target.clone(),
            age(delivery.created, now),
            delivery.attempts.to_string(),
            next,
            trouble.unwrap_or(&delivery.text).clone(),
        ]);
    }
    table
}

fn shown(delivery: &DeliveryView) -> String {
    let now = Timestamp::now();
    let mut facts = Facts::default();
    facts.add("delivery", delivery.number.to_string());
    facts.add("state", delivery.state.clone());
    facts.add("to", delivery.target.clone());
    facts.add("kind", format!("{}, part {} of {}", delivery.kind, delivery.part, delivery.parts));
    facts.maybe("session", delivery.session.clone());
    facts.maybe("turn", delivery.turn.clone());
    facts.add("stored", when(delivery.created, now));
    if delivery.state == State::Pending.label() {
        facts.add("due", when(delivery.due, now));
    }
    facts.maybe("settled", delivery.settled.map(|settled| when(settled, now)));
    let waited = std::time::Duration::from_millis(u64::try_from(delivery.waited_ms).unwrap_or(0));
    let waited = crate::model::time::in_words(waited);
    facts.add("tries", format!("{} failed, with {waited} between them", delivery.attempts));
    if delivery.repeated {
        facts.add("repeated", "it may arrive, or have arrived, more than once");
    }
    facts.maybe("trouble", delivery.reason.clone());
    facts.maybe("receipt", delivery.receipt.clone());
    facts.add("key", delivery.key.clone());
    format!("{}\n{}\n", facts.render(), plain(&delivery.text))
}

/// Says what was done, and for each that was refused why.
fn told(report: &HandReport) -> Result<Exit, Failure> {
    let mut done = Vec::new();
    match (report.again, report.maybe_repeated) {
        (0, _) => {}
        (again, 0) => done.push(format!("{again} taken up again")),
        (again, repeated) => done.push(format!("{again} taken up again, {repeated} of them may arrive twice")),
    }
    done.extend((report.due_now > 0).then(|| format!("{} due now", report.due_now)));
    done.extend((report.dropped > 0).then(|| format!("{} dropped", report.dropped)));
    if done.is_empty() && report.refused.is_empty() {
        done.push("nothing was given up".into());
    }
    if !done.is_empty() {
        words::print(&format!("{}\n", done.join("; ")))?;
    }
    if report.refused.is_empty() {
        return Ok(Exit::Ok);
    }
    let refused: Vec<_> = report.refused.iter().map(|r| format!("delivery {}: {}", r.number, r.why)).collect();
    Err(Failure::text(refused.join("\n")))
}
