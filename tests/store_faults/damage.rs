//! Single pages of the store that are damaged, before a start and under a gateway that runs.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::Connection;
use serde_json::{Value, json};

use super::end_of;
use crate::crashes::agent::Agent;
use crate::gateway::{Answer, Gateway, Home, raw};
use crate::receiver::Receiver;
use crate::webhooks;

/// SQLite's page, in bytes.
const PAGE: usize = 4096;

/// Turns between the two conversations, enough for pages of their own.
const NEIGHBOURS: usize = 30;
/// Deliveries before the damage.
const BEFORE: usize = NEIGHBOURS + 2;

/// A world whose agent is told the whole history of a session, with one conversation that lies on pages of its own.
fn world(receiver: &Receiver, agent: &Agent) -> Home {
    let settings = format!(
        "[agents]\ndefault = \"model\"\n[agents.model]\nkind = \"openai\"\nmodel = \"m\"\nbase_url = \"http://{}\"\n",
        agent.address
    );
    let home = webhooks::home(receiver, &settings, "session = \"{room}\"", "");
    let mut gateway = home.start();
    assert_eq!(tell(&gateway, "1", "broken", &"LONG-AGO ".repeat(5_000)).status, 202);
    // To find what lies on the same page SQLite reads the whole message, so its neighbours are lost with it. These are.
    for n in 0..NEIGHBOURS {
        assert_eq!(tell(&gateway, &format!("n{n}"), "neighbour", &"x".repeat(500)).status, 202);
        gateway.await_fact("they are answered in order", |_| receiver.delivered().len() == n + 2);
    }
    assert_eq!(tell(&gateway, "2", "whole", "hello").status, 202);
    gateway.await_fact("all are answered", |_| receiver.delivered().len() == BEFORE);
    assert!(gateway.terminate().success());
    home
}

fn tell(gateway: &Gateway, id: &str, room: &str, text: &str) -> Answer {
    raw(gateway.address(), &webhooks::request(id, &json!({ "room": room, "text": text })))
}

/// Makes one page into nonsense.
fn damage(state: &Path, page: usize) {
    let file = fs::File::options().write(true).open(state.join("gateway.db")).expect("the store");
    file.write_all_at(&[0xff; PAGE], (page * PAGE) as u64).expect("written");
}

/// A page in the middle of what was said in the broken room, counted from 0. The reply comes behind the question, and
/// what is delivered is neither.
fn page_of_the_conversation(state: &Path) -> usize {
    let bytes = fs::read(state.join("gateway.db")).expect("the store");
    let full = |page: &&usize| bytes[**page * PAGE..][..PAGE].windows(8).filter(|w| w == b"LONG-AGO").count() > 400;
    let pages: Vec<usize> = (0..bytes.len() / PAGE).collect();
    let pages: Vec<usize> = pages.iter().filter(full).copied().collect();
    pages[3]
}

/// The first page of a table, counted from 0.
fn root_of(state: &Path, table: &str) -> usize {
    let store = Connection::open(state.join("gateway.db")).expect("opens");
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
    store.query_row(sql, [table], |row| row.get::<_, u32>(0)).expect("it has one") as usize - 1
}

fn store_part(gateway: &Gateway) -> Value {
    gateway.status().expect("it answers")["parts"]["store"].clone()
}

fn assert_told(home: &Home, gateway: &Gateway) {
    let log = gateway.log();
    assert_eq!(log.matches("the store is damaged: what lies").count(), 1, "told once: {log}");
    assert!(log.contains(&home.state().join("gateway.db").display().to_string()), "it says which: {log}");
    let part = store_part(gateway);
    assert!(part["ok"] == false && part["error"].as_str().is_some_and(|text| text.contains("damaged")), "{part}");
    assert_eq!(gateway.request("GET", "/health/ready", "").status, 503);
}

#[test]
fn a_damaged_conversation_fails_by_itself_and_the_others_go_on() {
    for running in [false, true] {
        let (receiver, agent) = (Receiver::start(), Agent::start());
        let home = world(&receiver, &agent);
        let page = page_of_the_conversation(&home.state());
        if !running {
            damage(&home.state(), page);
        }
        let mut gateway = home.start();
        if running {
            damage(&home.state(), page);
        }
        let before = agent.ledger().len();
        assert_eq!(tell(&gateway, "3", "broken", "what did I say?").status, 202, "{}", gateway.log());
        gateway.await_fact("its person is told", |_| receiver.delivered().len() == BEFORE + 1);
        assert_eq!(agent.ledger().len(), before, "an agent is not asked with half a history");
        assert_told(&home, &gateway);
        assert_eq!(tell(&gateway, "4", "whole", "and here?").status, 202);
        gateway.await_fact("the others go on", |_| receiver.delivered().len() == BEFORE + 2);
        assert_eq!(receiver.delivered()[BEFORE + 1].text(), "and here?", "{}", gateway.log());
        assert!(gateway.terminate().success());
        // Every later start does the same: damage of one conversation stops nobody.
        let mut gateway = home.start();
        assert_eq!(tell(&gateway, "5", "whole", "still?").status, 202);
        gateway.await_fact("the others go on", |_| receiver.delivered().len() == BEFORE + 3);
        assert!(gateway.terminate().success());
    }
}

#[test]
fn a_damaged_inbox_acknowledges_nothing_and_clients_are_served() {
    let (receiver, agent) = (Receiver::start(), Agent::start());
    let home = world(&receiver, &agent);
    damage(&home.state(), root_of(&home.state(), "inbox"));
    let mut gateway = home.start();
    for _ in 0..3 {
        let answer = tell(&gateway, "3", "whole", "hello?");
        let error = &answer.json()["error"];
        assert_eq!((answer.status, error["code"].as_str()), (503, Some("store_damaged")), "{}", answer.body);
        assert_eq!(answer.header("retry-after"), Some("60"));
        assert!(!answer.body.contains(&home.state().display().to_string()), "no business of the sender's");
    }
    assert_told(&home, &gateway);
    assert_eq!(gateway.ask("clients are served"), "clients are served");
    assert_eq!(receiver.delivered().len(), BEFORE);
    assert!(gateway.terminate().success());
}

#[test]
fn a_damaged_table_of_turns_is_told_at_the_start_with_what_to_do() {
    let (receiver, agent) = (Receiver::start(), Agent::start());
    let home = world(&receiver, &agent);
    damage(&home.state(), root_of(&home.state(), "turns_unfinished"));
    let output = end_of(home.command("run"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{told}");
    let file = home.state().join("gateway.db").display().to_string();
    assert!(told.contains(&file) && told.contains("restore a backup"), "{told}");
}
