//! Turns that clients were told of, and whether a disk still has them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rusqlite::Connection;
use serde_json::{Value, json};

use super::disk::PoweredDisk;
use super::image::Image;
use super::log::Moment;
use crate::gateway::Gateway;

/// Clients at once.
const CLIENTS: usize = 8;

/// An answer that a client has.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    /// What it said, and what echo answered.
    pub text: String,
    /// It had the answer by then.
    pub at: Moment,
}

/// Clients ask until so many answers are there; then `end` ends the gateway under them. All answers that came.
pub fn storm(
    gateway: &mut Gateway,
    disk: &PoweredDisk,
    name: &str,
    enough: usize,
    end: impl FnOnce(&mut Gateway),
) -> Vec<Acknowledged> {
    let (address, key) = (gateway.address(), gateway.key());
    let (count, all) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (count, all, key) = (&count, &all, &key);
            scope.spawn(move || {
                for n in 0.. {
                    let length = [0, 100, 3000, 40_000][n * 7 % 11 % 4];
                    let text = format!("{name} client {client} message {n} {}", "x".repeat(length));
                    if !ask(address, key, &text) {
                        return;
                    }
                    all.lock().expect("no panic").push(Acknowledged { text, at: disk.now() });
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        gateway.await_fact("the storm is on", |_| count.load(Ordering::Relaxed) >= enough);
        end(gateway);
    });
    all.into_inner().expect("no panic")
}

/// Whether the whole answer came, and was the right one.
fn ask(address: SocketAddr, key: &str, text: &str) -> bool {
    let body = json!({ "messages": [{ "role": "user", "content": text }] }).to_string();
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n");
    let request = format!("{head}connection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut answer = String::new();
    let exchange = TcpStream::connect(address).and_then(|mut stream| {
        stream.write_all(request.as_bytes())?;
        stream.read_to_string(&mut answer)
    });
    let Some((head, body)) = answer.split_once("\r\n\r\n").filter(|_| exchange.is_ok()) else { return false };
    // A body that the kill cut off acknowledges nothing.
    let Ok(body) = serde_json::from_str::<Value>(body) else { return false };
    let said = &body["choices"][0]["message"]["content"];
    assert!(!head.starts_with("HTTP/1.1 200 ") || said == text, "{body}");
    said == text
}

/// What is wrong with a disk.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Verdict {
    /// The store does not open, is not whole, or contradicts itself.
    #[error("damage: {0}")]
    Damaged(String),
    /// What was acknowledged and is not there with its answer, exactly once.
    #[error("{} that were acknowledged are missing, {:?} first", .0.len(), .0[0])]
    Missing(Vec<String>),
}

/// Holds a disk against what is owed.
pub fn examine(image: &Image, owed: &[Acknowledged]) -> Result<(), Verdict> {
    let turns = turns(image).map_err(Verdict::Damaged)?;
    let missing = owed.iter().filter(|a| turns.get(&a.text) != Some(&1));
    let missing: Vec<String> = missing.map(|a| a.text.chars().take(60).collect()).collect();
    if missing.is_empty() { Ok(()) } else { Err(Verdict::Missing(missing)) }
}

/// The same; a guilty disk is kept.
pub fn assert_whole(image: &Image, owed: &[Acknowledged], place: &str) {
    if let Err(verdict) = examine(image, owed) {
        panic!("{place}: {verdict}; the disk is kept in {}", image.keep().display());
    }
}

/// How often each text was answered. An error says what is not right.
fn turns(image: &Image) -> Result<BTreeMap<String, usize>, String> {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let directory = scratch.path().join("state");
    image.lay_down(&directory);
    let path = directory.join("gateway.db");
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let read = || -> rusqlite::Result<Result<BTreeMap<String, usize>, String>> {
        let store = Connection::open(&path)?;
        store.execute_batch("PRAGMA synchronous = OFF")?;
        let verdict: String = store.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        let orphans = store.prepare("PRAGMA foreign_key_check")?.exists([])?;
        if verdict != "ok" || orphans {
            return Ok(Err(format!("integrity_check says {verdict}; rows without their turn: {orphans}")));
        }
        // Before the first transaction is durable there is nothing.
        let tables: i64 = store.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables == 0 {
            return Ok(Ok(BTreeMap::new()));
        }
        let sql = "SELECT q.content, a.content FROM turns t JOIN messages q ON q.turn = t.id AND q.role = 'user' \
                   LEFT JOIN messages a ON a.turn = t.id AND a.role = 'assistant' WHERE t.state = 'completed'";
        let mut answered = BTreeMap::new();
        let mut statement = store.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (question, answer): (String, Option<String>) = (row.get(0)?, row.get(1)?);
            if answer.as_ref() != Some(&question) {
                let answer = answer.unwrap_or_default();
                return Ok(Err(format!("a completed turn was asked '{question:.60}' and has '{answer:.60}'")));
            }
            *answered.entry(question).or_insert(0) += 1;
        }
        Ok(Ok(answered))
    };
    read().unwrap_or_else(|e| Err(e.to_string()))
}
