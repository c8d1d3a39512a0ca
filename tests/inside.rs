//! Looking inside from the command line, and what people do there.

use std::process::Output;

use rusqlite::Connection;
use serde_json::Value;

use crate::gateway::Home;
use crate::receiver::Receiver;

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command prints, which must succeed.
fn said(home: &Home, verb: &str, arguments: &[&str]) -> String {
    let output = home.output(verb, arguments);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{verb} {arguments:?}");
    stdout(&output)
}

fn json(home: &Home, verb: &str, arguments: &[&str]) -> Value {
    serde_json::from_str(&said(home, verb, arguments)).expect("JSON")
}

/// A platform of this name that calls the receiver.
pub fn platform(name: &str, receiver: &Receiver, more: &str) -> String {
    format!("[platforms.{name}]\nkind = \"callback\"\nurl = \"{}\"\n{more}\n", receiver.url())
}

/// The texts that it was called with, in their order.
pub fn texts(receiver: &Receiver) -> Vec<String> {
    receiver.calls().iter().map(|call| call.text().to_owned()).collect()
}

/// A store that has been used: a turn of the session `old`, whose reply is delivered in this state.
pub fn plant(home: &Home, deliveries: &[(&str, &str, &str)]) {
    assert!(home.start().terminate().success());
    let store = Connection::open(home.state().join("gateway.db")).expect("opened");
    store
        .execute_batch(
            "INSERT INTO sessions (id, name, created, active) VALUES (1, 'old', 1790000000000, 1790000000000);
             INSERT INTO turns (id, session, agent, model, origin, state, keep, attempts, accepted, ended, finish, seq)
             VALUES (x'019c0000000070008000000000000001', 1, 'echo', 'echo', 'platform', 'completed', 1, 1,
                     1790000000000, 1790000000001, 'stop', 1);
             INSERT INTO messages VALUES (x'019c0000000070008000000000000001', 0, 'user', 'question');
             INSERT INTO messages VALUES (x'019c0000000070008000000000000001', 1, 'assistant', 'answer');",
        )
        .expect("planted");
    for (target, state, text) in deliveries {
        let sql = "INSERT INTO outbox (key, turn, target, kind, part, parts, content, state, due, attempts, reason,
                                       created, settled)
                   VALUES (hex(randomblob(16)), x'019c0000000070008000000000000001', ?1, 'reply', 1, 1, ?3, ?2,
                           1790000000000, 3, 'it said no', 1790000000000, iif(?2 = 'dead', 1790000000000, NULL))";
        store.execute(sql, [target, state, text]).expect("planted");
    }
}

#[test]
fn conversations_and_turns_are_listed_shown_exported_and_begun_anew() {
    let home = Home::new();
    let gateway = home.start();
    assert_eq!(said(&home, "sessions", &["list"]), "There are no sessions.\n");
    assert_eq!(said(&home, "turns", &["list", "--state", "failed"]), "There are no failed turns.\n");
    assert_eq!(said(&home, "turns", &["list", "--session", "x"]), "There are no turns in session x.\n");
    for n in 0..30 {
        said(&home, "send", &["--session", "room/1", &format!("message {n}")]);
    }
    said(&home, "send", &["--session", "other", "a \u{1b}[2Jtrick\nof two lines"]);
    let list = said(&home, "sessions", &["list"]);
    let lines: Vec<_> = list.lines().collect();
    assert_eq!(lines.len(), 3, "{list}");
    assert!(lines[1].starts_with("other") && lines[1].ends_with("a \u{fffd}[2Jtrick of two lines"), "{list}");
    assert!(lines[2].starts_with("room/1") && lines[2].ends_with("message 29"), "{list}");

    // Page by page, each says where the next one begins, and together they are all.
    let (mut seen, mut next) = (Vec::new(), None::<String>);
    loop {
        let mut arguments = vec!["list", "--session", "room/1", "--json", "--limit", "7"];
        arguments.extend(next.iter().flat_map(|next| ["--before", next.as_str()]));
        let page = json(&home, "turns", &arguments);
        seen.extend(page["items"].as_array().expect("items").iter().map(|turn| turn["asked"].clone()));
        match page["next"].as_str() {
            Some(before) => next = Some(before.to_owned()),
            None => break,
        }
    }
    assert_eq!(seen, (0..30).rev().map(|n| format!("message {n}")).collect::<Vec<_>>());
    let page = said(&home, "turns", &["list", "--session", "room/1"]);
    assert!(page.lines().count() == 23 && page.contains("There is more: --before "), "{page}");

    let shown = said(&home, "sessions", &["show", "room/1"]);
    assert!(shown.contains("turns    30\n") && shown.contains("message 29") && shown.contains("There is more: "));
    let newest = json(&home, "turns", &["list", "--limit", "1", "--json"])["items"][0]["id"].clone();
    let shown = said(&home, "turns", &["show", newest.as_str().expect("an id")]);
    assert!(shown.contains("\nassistant:\n    a \u{fffd}[2Jtrick\n    of two lines\n"), "{shown}");

    let export = |id: &str| {
        let text = said(&home, "sessions", &["export", id]);
        text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")).collect::<Vec<_>>()
    };
    let turns = export("room/1");
    assert_eq!(turns.len(), 30);
    for (n, turn) in turns.iter().enumerate() {
        assert_eq!(turn["messages"][1]["content"], format!("message {n}"));
        assert_eq!((&turn["state"], &turn["heard"]), (&"completed".into(), &true.into()));
        let ended = turn["ended"].as_str().expect("a time");
        assert!(ended.ends_with('Z') && ended >= turn["accepted"].as_str().expect("a time"), "{turn}");
    }
    assert_eq!(said(&home, "sessions", &["reset", "room/1"]), "session room/1 begins anew with the next message\n");
    said(&home, "send", &["--session", "room/1", "afresh"]);
    let heard: Vec<_> = export("room/1").iter().map(|turn| turn["heard"] == true).collect();
    assert!(heard.len() == 31 && heard.iter().position(|heard| *heard) == Some(30), "{heard:?}");

    for (verb, arguments) in [
        ("sessions", vec!["show", "nobody"]),
        ("sessions", vec!["reset", "nobody"]),
        ("sessions", vec!["export", "nobody"]),
        ("turns", vec!["show", "019c0000000070008000000000000009"]),
        ("outbox", vec!["show", "9"]),
    ] {
        let output = home.output(verb, &arguments);
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""), "{verb} {arguments:?}");
        assert!(stderr(&output).contains("there is no "), "{}", stderr(&output));
    }
    for arguments in [vec!["list", "--limit", "1001"], vec!["list", "--state", "odd"], vec!["show", "odd"], vec![]] {
        assert_eq!(home.output("turns", &arguments).status.code(), Some(2), "{arguments:?}");
    }
    drop(gateway);
    assert!(stderr(&home.output("sessions", &["list"])).contains("no gateway runs here"));
}

#[test]
fn a_long_export_is_whole_and_its_reader_may_leave() {
    let home = Home::new();
    plant(&home, &[]);
    let store = Connection::open(home.state().join("gateway.db")).expect("opened");
    let many = "BEGIN; WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
         INSERT INTO turns (id, session, agent, model, origin, state, keep, attempts, accepted, ended, seq)
         SELECT CAST(printf('%016d', i) AS BLOB), 1, 'a', 'm', 'chat', 'completed', 0, 1, i, i, i FROM n;
         INSERT INTO messages SELECT id, 0, 'user', printf('%.*c', 20000, 'x') FROM turns WHERE seq > 1; COMMIT;";
    store.execute_batch(many).expect("planted");
    drop(store);
    let mut gateway = home.start();
    let text = said(&home, "sessions", &["export", "old"]);
    assert_eq!(text.lines().count(), 2000);
    assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    // It is streamed: 40 MB of text have passed.
    let peak = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("read");
    let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    let peak: u64 = peak.expect("a peak");
    assert!(text.len() > 40_000_000 && peak < 40_000, "{peak} KiB");
    let mut leaving = home.command("sessions");
    leaving.args(["export", "old"]).stdout(std::process::Stdio::piped());
    let mut leaving = leaving.spawn().expect("runs");
    drop(leaving.stdout.take());
    assert!(leaving.wait().expect("ends").success(), "who reads only the beginning has seen enough");
    assert!(gateway.terminate().success());
}

#[test]
fn what_was_given_up_is_sent_again_and_what_shall_not_be_sent_is_dropped() {
    let home = Home::new();
    plant(&home, &[("ops:1", "dead", "first"), ("ops:2", "dead", "second"), ("gone:1", "pending", "third")]);
    let receiver = Receiver::start();
    home.configure(&platform("ops", &receiver, "idempotent = false"));
    let mut gateway = home.start();
    gateway.await_fact("the one without a platform waits", |_| {
        json(&home, "outbox", &["list", "--state", "pending", "--json"])["items"][0]["attempts"] == 4
    });
    let list = said(&home, "outbox", &["list"]);
    let lines: Vec<_> = list.lines().collect();
    assert!(lines.len() == 4 && lines[1].contains("there is no platform 'gone'"), "{list}");
    assert!(lines[3].contains("dead") && lines[3].ends_with("it said no"), "{list}");
    let none = "There are no sent deliveries to ops:1.\n";
    assert_eq!(said(&home, "outbox", &["list", "--state", "sent", "--target", "ops:1"]), none);
    let shown = said(&home, "outbox", &["show", "1"]);
    assert!(shown.contains("trouble   it said no\n") && shown.ends_with("\n\nfirst\n"), "{shown}");
    assert!(shown.contains("session   old\n"), "{shown}");

    // One by its number, with one that there is not; then the rest.
    let output = home.output("outbox", &["retry", "1", "77"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "1 taken up again, 1 of them may arrive twice\n");
    assert_eq!(stderr(&output), "hermes-gateway: delivery 77: there is no such delivery\n");
    gateway.await_fact("it is delivered", |_| texts(&receiver) == ["first"]);
    assert_eq!(receiver.calls()[0].body["possibly_repeated"], true, "it is not told as the first attempt");
    assert_eq!(said(&home, "outbox", &["retry", "--all-dead"]), "1 taken up again, 1 of them may arrive twice\n");
    gateway.await_fact("it is delivered", |_| texts(&receiver) == ["first", "second"]);
    assert_eq!(said(&home, "outbox", &["retry", "--all-dead"]), "nothing was given up\n");
    assert_eq!(said(&home, "outbox", &["drop", "3"]), "1 dropped\n");
    gateway.await_fact("they are settled", |_| {
        let states = json(&home, "outbox", &["list", "--json"]);
        states["items"].as_array().is_some_and(|all| all.len() == 2 && all.iter().all(|d| d["state"] == "sent"))
    });
    let output = home.output("outbox", &["drop", "1"]);
    assert_eq!((output.status.code(), stderr(&output).contains("it was sent")), (Some(1), true));
    assert_eq!(home.output("outbox", &["retry"]).status.code(), Some(2), "which?");
    assert!(gateway.terminate().success());
}

#[test]
fn what_waits_is_sent_at_once_when_somebody_says_so() {
    let home = Home::new();
    plant(&home, &[("ops:1", "pending", "first"), ("ops:1", "pending", "second")]);
    // 404 is a matter for people: the next attempt is in five minutes.
    let receiver = Receiver::start();
    receiver.answer_next(&[(404, "")]);
    home.configure(&platform("ops", &receiver, ""));
    let mut gateway = home.start();
    gateway.await_fact("it waits", |_| json(&home, "outbox", &["show", "1", "--json"])["attempts"] == 4);
    assert_eq!(said(&home, "outbox", &["retry", "2"]), "1 due now\n");
    gateway.await_fact("both are delivered, in their order", |_| texts(&receiver) == ["first", "first", "second"]);
    assert!(receiver.calls().iter().all(|call| call.body["possibly_repeated"].is_null()));
}

#[test]
fn a_turn_is_told_to_whoever_knows_its_id_and_the_key() {
    let home = Home::new();
    plant(&home, &[("gone:1", "dead", "answer")]);
    let gateway = home.start();
    let answer = gateway.request("GET", "/v1/turns/019c0000000070008000000000000001", "");
    assert_eq!((answer.status, answer.header("x-hermes-session-id")), (200, Some("old")), "{}", answer.body);
    let turn = answer.json();
    assert_eq!((&turn["state"], &turn["reply"], &turn["attempts"]), (&"completed".into(), &"answer".into(), &1.into()));
    assert_eq!((&turn["accepted"], &turn["error"]), (&"2026-09-21T14:13:20.000Z".into(), &Value::Null));
    let delivery = &turn["deliveries"][0];
    assert_eq!((&delivery["state"], &delivery["error"]), (&"dead".into(), &"it said no".into()), "{turn}");
    for unknown in ["019c0000000070008000000000000009", "odd"] {
        let answer = gateway.request("GET", &format!("/v1/turns/{unknown}"), "");
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &"turn_not_found".into()));
    }
    let head = "GET /v1/turns/019c0000000070008000000000000001 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    assert_eq!(crate::gateway::raw(gateway.address(), head.as_bytes()).status, 401);
}

#[test]
fn whoever_looks_is_told_of_what_waits_and_what_was_given_up() {
    let home = Home::new();
    let mut gateway = home.start();
    let status = said(&home, "status", &[]);
    assert!(!status.contains("outbox") && !status.contains("platform"), "{status}");
    let parts = gateway.request("GET", "/health/ready", "").json()["parts"].clone();
    assert_eq!(parts["platforms"], serde_json::json!({}));
    assert_eq!((&parts["outbox"]["pending"], &parts["outbox"]["oldest_pending_seconds"]), (&0.into(), &Value::Null));
    assert!(gateway.terminate().success());

    let (refusing, receiver) = (Receiver::start(), Receiver::start());
    refusing.answer_next(&[(404, "")]);
    plant(
        &home,
        &[("bad:1", "pending", "a"), ("bad:1", "pending", "b"), ("gone:1", "pending", "c"), ("ok:1", "dead", "d")],
    );
    home.configure(&format!("{}{}", platform("bad", &refusing, ""), platform("ok", &receiver, "")));
    let mut gateway = home.start();
    let report = |gateway: &crate::gateway::Gateway| gateway.status().expect("a status")["parts"].clone();
    gateway.await_fact("both troubles are known", |gateway| {
        let platforms = report(gateway)["platforms"].clone();
        ["bad", "gone"].iter().all(|name| platforms[name]["ok"] == false)
    });
    let parts = report(&gateway);
    assert_eq!(parts["platforms"]["ok"], serde_json::json!({ "kind": "callback", "ok": true, "trouble": null }));
    assert!(parts["platforms"]["bad"]["trouble"].as_str().is_some_and(|text| text.contains("404")), "{parts}");
    assert_eq!(parts["platforms"]["gone"]["kind"], Value::Null);
    let outbox = &parts["outbox"];
    assert_eq!((&outbox["ok"], &outbox["pending"], &outbox["leased"]), (&true.into(), &3.into(), &0.into()));
    assert!(outbox["dead"] == 1 && outbox["oldest_pending_seconds"].as_u64() > Some(60), "{outbox}");
    // It is no reason to take no turns.
    assert_eq!(gateway.request("GET", "/health/ready", "").status, 200);
    let metrics = gateway.request("GET", "/metrics", "").body;
    assert!(metrics.contains("\nhermes_deliveries_waiting 3\n") && metrics.contains("\nhermes_deliveries_dead 1\n"));
    let line = gateway.status().expect("a status")["status"].as_str().expect("text").to_owned();
    assert!(line.ends_with("; 3 deliveries waiting, 1 dead"), "{line}");
    let status = said(&home, "status", &[]);
    assert!(status.contains("  outbox    3 waiting, the first of them for "), "{status}");
    assert!(status.contains("; 1 given up; 'hermes-gateway outbox list --state dead' names them\n"), "{status}");
    assert!(
        status.contains("  platform  bad (callback), TROUBLE: ") && status.contains("  platform  ok (callback), ok\n")
    );
    assert!(status.contains("  platform  gone (not configured), TROUBLE: there is no platform 'gone'"), "{status}");
}
