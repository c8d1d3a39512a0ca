//! The agent kinds that are programs, behind the real binary: conversations that outlive the gateway, programs that break.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::gateway::{Answer, Gateway, Home, PATIENCE, raw};

const AGENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/acp/agent.py");

/// A home whose default agent is the fake one; `more` is added to its section.
fn home(more: &str) -> Home {
    let home = Home::new();
    configure(&home, more);
    home
}

fn configure(home: &Home, more: &str) {
    let agent = format!("[agents.fake]\nkind = \"acp\"\ncommand = [\"python3\", \"{AGENT}\"]\n{more}\n");
    home.configure(&format!("agents.default = \"fake\"\n{agent}"));
}

fn workspace(home: &Home) -> PathBuf {
    home.state().join("workspaces/fake")
}

/// What happened to the agent, a line each.
fn log(home: &Home) -> String {
    std::fs::read_to_string(workspace(home).join("log")).unwrap_or_default()
}

fn request(gateway: &Gateway, session: &str, headers: &str, body: &Value) -> String {
    let (key, body) = (gateway.key(), body.to_string());
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\
         content-type: application/json\r\nx-hermes-session-id: {session}\r\n{headers}connection: close\r\n\r\n{body}",
        body.len()
    )
}

fn asking(text: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": text }] })
}

fn answer(gateway: &Gateway, text: &str) -> Answer {
    raw(gateway.address(), request(gateway, "s", "", &asking(text)).as_bytes())
}

fn ask(gateway: &Gateway, text: &str) -> String {
    let answer = answer(gateway, text);
    assert_eq!(answer.status, 200, "{}\n{}", answer.body, gateway.log());
    answer.json()["choices"][0]["message"]["content"].as_str().expect("a reply").to_owned()
}

/// The error that a turn ends with.
fn error(gateway: &Gateway, text: &str) -> String {
    let answer = answer(gateway, text);
    assert_ne!(answer.status, 200, "{}", answer.body);
    answer.json()["error"]["message"].as_str().expect("a message").to_owned()
}

#[test]
fn a_conversation_outlives_the_gateway() {
    let home = home("");
    let mut gateway = home.start();
    assert_eq!(ask(&gateway, "say eins"), "eins");
    assert_eq!(ask(&gateway, "history"), "[\"say eins\"]");
    assert!(gateway.terminate().success());
    let mut gateway = home.start();
    assert_eq!(ask(&gateway, "history"), "[\"say eins\", \"history\"]");
    gateway.kill();
    let gateway = home.start();
    assert_eq!(ask(&gateway, "say zwei"), "zwei");
    assert_eq!(log(&home).matches("session/load").count(), 2);
    assert_eq!(log(&home).matches("new ").count(), 1);
}

#[test]
fn permission_is_a_matter_of_the_configuration_and_a_reload_applies_it() {
    let home = home("");
    let gateway = home.start();
    assert!(ask(&gateway, "permit allow_once reject_once").contains("id-reject_once"));
    let before = ask(&gateway, "pid");
    configure(&home, "permission = \"allow_once\"");
    let reloaded = home.output("reload", &[]);
    assert!(reloaded.status.success(), "{}", String::from_utf8_lossy(&reloaded.stderr));
    assert!(ask(&gateway, "permit allow_once reject_once").contains("id-allow_once"));
    assert_ne!(ask(&gateway, "pid"), before, "a changed agent has its own program");
    assert_eq!(ask(&gateway, "history").matches("permit").count(), 2, "and the same conversation");
}

#[test]
fn an_agent_that_breaks_costs_its_turn_and_not_its_session() {
    let home = home("timeout = \"1s\"");
    let gateway = home.start();
    assert_eq!(ask(&gateway, "say hello"), "hello");
    for (word, expected) in [
        ("crash", "the agent has failed with exit status 3: first line; out of paper"),
        ("flood", "the agent said a line of more than 4194304 bytes"),
        ("garbage", "is not its protocol"),
        ("hang", "the agent said nothing for 1s"),
        ("fail", "the agent failed: Internal error: no credit"),
    ] {
        let told = error(&gateway, word);
        assert!(told.contains(expected), "{word}: {told}");
        assert!(ask(&gateway, "history").starts_with("[\"say hello\""), "{word}");
    }
}

#[test]
fn a_client_that_leaves_stops_the_work() {
    let home = home("");
    let mut gateway = home.start();
    let before = ask(&gateway, "pid");
    let mut body = asking("slow");
    body["stream"] = json!(true);
    let mut client = TcpStream::connect(gateway.address()).expect("connects");
    client.set_read_timeout(Some(PATIENCE)).expect("set");
    client.write_all(request(&gateway, "s", "", &body).as_bytes()).expect("sent");
    let mut seen = String::new();
    while !seen.contains("one ") {
        let mut bytes = [0; 4096];
        let length = client.read(&mut bytes).expect("the stream goes on");
        assert!(length > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&bytes[..length]));
    }
    drop(client);
    gateway.await_fact("the agent hears of it", |_| log(&home).contains("cancelled"));
    assert_eq!(ask(&gateway, "pid"), before);
}

#[test]
fn a_turn_goes_on_with_an_agent_that_outlived_the_gateway() {
    let home = home("");
    let mut gateway = home.start();
    let address = gateway.address();
    let kept = request(&gateway, "s", "idempotency-key: k\r\n", &asking("slow"));
    let (bytes, client) = (kept.clone(), std::thread::spawn(move || raw(address, kept.as_bytes())));
    gateway.await_fact("the agent works", |_| log(&home).contains("slow"));
    gateway.kill();
    client.join().expect("the client ends");
    std::fs::write(workspace(&home).join("go"), "").expect("written");
    let gateway = home.start();
    let answer = raw(gateway.address(), bytes.as_bytes());
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "one two", "{}", answer.body);
    let asked: Vec<_> = log(&home).lines().filter(|line| line.starts_with("asked")).map(str::to_owned).collect();
    assert_eq!(asked, ["asked 1"], "the next life reads on where the last one stopped");
}

#[test]
fn a_program_answers_each_turn() {
    let home = Home::new();
    let script = "printf '%s %s' \"$HERMES_SESSION\" \"$(cat)\"";
    let command = format!("[\"sh\", \"-c\", '''{script}''']");
    home.configure(&format!(
        "agents.default = \"script\"\n[agents.script]\nkind = \"command\"\ncommand = {command}\n\
         [agents.broken]\nkind = \"command\"\ncommand = [\"sh\", \"-c\", \"echo no ink >&2; exit 3\"]\n"
    ));
    let gateway = home.start();
    assert_eq!(ask(&gateway, "hello"), "s hello");
    let mut body = asking("hello");
    body["model"] = json!("broken");
    let failed = raw(gateway.address(), request(&gateway, "s", "", &body).as_bytes());
    assert!(failed.body.contains("the agent has failed with exit status 3: no ink"), "{}", failed.body);
}
