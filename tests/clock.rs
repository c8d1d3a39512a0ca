//! The wall clock jumps, by a day and more, back and ahead, between lives and in the middle of one.
//!
//! The clock is libfaketime's, loaded into the real binary; the monotonic clock stays as it is, as it does when a real
//! clock is set.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::gateway::{Gateway, Home};
use crate::receiver::Receiver;
use crate::webhooks::{home, tell};

/// Where Debian's package `faketime` puts it, on any architecture.
fn library() -> Option<PathBuf> {
    let places = fs::read_dir("/usr/lib").expect("there is a /usr/lib").filter_map(Result::ok);
    let found = places.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "no libfaketime in CI: install Debian's package faketime");
        eprintln!("SKIPPED: no test of a clock that jumps: Debian's package faketime is not installed");
    }
    found
}

/// A clock that the test sets.
struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    fn new(home: &Home) -> Option<Self> {
        let clock = Self { library: library()?, file: home.path().join("clock") };
        clock.set("+0d");
        Some(clock)
    }

    /// From the next look on, at most a second later for those that run: `-1d`, `+2h`.
    fn set(&self, offset: &str) {
        // Whole or not at all: it is read while it is written.
        let new = self.file.with_extension("new");
        fs::write(&new, offset).and_then(|()| fs::rename(new, &self.file)).expect("written");
    }

    fn start(&self, home: &Home) -> Gateway {
        let mut command: Command = home.command("run");
        command.env("LD_PRELOAD", &self.library).env("FAKETIME_TIMESTAMP_FILE", &self.file);
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("FAKETIME_NO_CACHE", "1");
        home.start_by(command)
    }
}

fn now_of(gateway: &Gateway) -> i64 {
    let chat = json!({ "messages": [{ "role": "user", "content": "what time is it" }] }).to_string();
    gateway.request("POST", "/v1/chat/completions", &chat).json()["created"].as_i64().expect("a time")
}

fn await_texts(gateway: &mut Gateway, receiver: &Receiver, expected: &[&str]) {
    gateway.await_fact("everything is delivered", |_| receiver.delivered().len() >= expected.len());
    let texts: Vec<_> = receiver.delivered().iter().map(|call| call.text().to_owned()).collect();
    assert_eq!(texts, expected);
}

#[test]
fn what_waits_for_its_next_attempt_does_not_wait_for_a_clock_that_was_set_back() {
    let receiver = Receiver::start();
    let home = home(&receiver, "", "session = \"shared\"", "");
    let Some(clock) = Clock::new(&home) else { return };
    let mut gateway = clock.start(&home);
    let real = now_of(&gateway);
    receiver.answer_next(&[(503, "retry-after: 3000\r\n")]);
    for n in 0..3 {
        assert_eq!(tell(&gateway, &n.to_string(), &format!("m{n}")).status, 202);
    }
    gateway.await_fact("the first is refused", |gateway| gateway.log().contains("trying again in"));
    // A day back: by that clock the next attempt is a day and fifty minutes away.
    clock.set("-1d");
    gateway.kill();
    let mut gateway = clock.start(&home);
    assert!(real - now_of(&gateway) > 80_000, "the clock is set back");
    await_texts(&mut gateway, &receiver, &["m0", "m1", "m2"]);
    assert!(gateway.terminate().success());
}

#[test]
fn a_clock_that_jumps_in_the_middle_changes_neither_order_nor_number() {
    let receiver = Receiver::start();
    let home = home(&receiver, "", "session = \"shared\"", "");
    let Some(clock) = Clock::new(&home) else { return };
    let mut gateway = clock.start(&home);
    let mut expected = Vec::new();
    for (n, offset) in ["-1d", "+2d", "-400d", "+0d", "+30d", "-1d"].into_iter().enumerate() {
        let before = now_of(&gateway);
        clock.set(offset);
        gateway.await_fact("the clock jumps", |gateway| (now_of(gateway) - before).abs() > 3600);
        let (id, text) = (n.to_string(), format!("m{n}"));
        assert_eq!(tell(&gateway, &id, &text).status, 202, "{}", gateway.log());
        assert_eq!(tell(&gateway, &id, &text).status, 200, "still known as the same");
        if n % 2 == 1 {
            gateway.kill();
            gateway = clock.start(&home);
        }
        expected.push(text);
    }
    let expected: Vec<_> = expected.iter().map(String::as_str).collect();
    await_texts(&mut gateway, &receiver, &expected);
    assert!(gateway.terminate().success());
    let store = rusqlite::Connection::open(home.state().join("gateway.db")).expect("the store opens");
    let mut statement = store
        .prepare(
            "SELECT m.content FROM turns t JOIN sessions s ON s.id = t.session JOIN messages m ON m.turn = t.id \
             WHERE s.name = 'webhook:in' AND m.role = 'user' ORDER BY t.seq",
        )
        .expect("prepared");
    let said: Vec<String> =
        statement.query_map([], |row| row.get(0)).expect("read").map(|r| r.expect("text")).collect();
    assert_eq!(said, expected, "history is in the order in which it was made");
}
