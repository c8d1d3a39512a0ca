//! What clients can send wrong, on purpose or not: each is told what is wrong in OpenAI's words, and nobody else notices.

use std::io::Write;
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::gateway::{Answer, Gateway, Home, raw};

pub mod connections;

use connections::read_answer;

const CHAT: &str = "/v1/chat/completions";

/// A request with the key, these further header lines (each with its CR LF) and this body, whose length is added.
fn with(gateway: &Gateway, start: &str, headers: &str, body: &[u8]) -> Answer {
    let (key, length) = (gateway.key(), body.len());
    let head = format!("{start} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n{headers}");
    let head = format!("{head}content-length: {length}\r\n\r\n");
    raw(gateway.address(), &[head.as_bytes(), body].concat())
}

fn hello() -> Vec<u8> {
    json!({ "messages": [{ "role": "user", "content": "hello" }] }).to_string().into_bytes()
}

/// The answer has this status and tells in OpenAI's shape why; the gateway serves on.
fn refused(gateway: &Gateway, what: &str, answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    let error = &answer.json()["error"];
    assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{what}: {answer:?}");
    assert!(error["type"].as_str().is_some_and(|text| !text.is_empty()), "{what}: {answer:?}");
    assert_eq!(error["code"], code, "{what}: {answer:?}");
    serves(gateway, what);
}

/// The same process answers a good request.
fn serves(gateway: &Gateway, after: &str) {
    assert_eq!(gateway.ask("still there"), "still there", "after {after}");
    let status = gateway.status().unwrap_or_else(|| panic!("no status after {after}"));
    assert_eq!(status["identity"]["pid"], gateway.pid(), "after {after}");
}

#[test]
fn each_wrong_body_is_told_what_is_wrong_with_it() {
    let home = Home::new();
    home.configure("http.max_body = \"2KiB\"\n");
    let gateway = home.start();
    let message = |message: Value| json!({ "messages": [message] }).to_string();
    let good = json!({ "role": "user", "content": "hello" });
    let nested = "[".repeat(2000);
    let cases: Vec<(&str, String, &str)> = vec![
        ("malformed JSON", "{\"messages\": [".into(), ""),
        ("an empty body", String::new(), ""),
        ("only spaces", "   \r\n".into(), ""),
        ("two values", "{}{}".into(), ""),
        ("an array", "[]".into(), ""),
        ("a string", "\"hello\"".into(), ""),
        ("very deep JSON", nested, ""),
        ("half a surrogate pair", "{\"messages\": \"\\ud800\"}".into(), ""),
        ("no messages", "{}".into(), ""),
        ("messages a string", json!({ "messages": "hello" }).to_string(), "messages"),
        ("no message", json!({ "messages": [] }).to_string(), "messages"),
        ("a message a string", message(json!("hello")), "messages[0]"),
        ("a message without role", message(json!({ "content": "hello" })), "messages[0].role"),
        ("a wizard", message(json!({ "role": "wizard", "content": "hello" })), "messages[0].role"),
        ("no content", message(json!({ "role": "user" })), "messages[0].content"),
        ("content a number", message(json!({ "role": "user", "content": 7 })), "messages[0].content"),
        ("an image", message(json!({ "role": "user", "content": [{ "type": "image_url" }] })), "messages[0].content"),
        ("no user message", message(json!({ "role": "system", "content": "hello" })), "messages"),
        ("an assistant last", message(json!({ "role": "assistant", "content": "hello" })), "messages"),
        ("two replies", json!({ "messages": [good], "n": 2 }).to_string(), "n"),
        ("a negative number", json!({ "messages": [good], "n": -1 }).to_string(), "n"),
        ("stream a string", json!({ "messages": [good], "stream": "yes" }).to_string(), "stream"),
        ("model a number", json!({ "messages": [good], "model": 5 }).to_string(), "model"),
    ];
    for (what, body, param) in cases {
        let answer = with(&gateway, &format!("POST {CHAT}"), "", body.as_bytes());
        refused(&gateway, what, &answer, 400, "invalid_value");
        let named = answer.json()["error"]["param"].as_str().unwrap_or_default().to_owned();
        assert_eq!(named, param, "{what}: {}", answer.body);
    }
    for (what, body) in [("a bad byte", &b"{\"messages\": \"\xff\"}"[..]), ("UTF-16", b"\xff\xfe{\0}\0")] {
        refused(&gateway, what, &with(&gateway, &format!("POST {CHAT}"), "", body), 400, "invalid_value");
    }
    let injected = json!({ "input": "x", "conversation": "a\r\nset-cookie: x=1" }).to_string();
    let answer = with(&gateway, "POST /v1/responses", "", injected.as_bytes());
    refused(&gateway, "a conversation with a line break", &answer, 400, "invalid_value");
    assert_eq!(answer.header("set-cookie"), None);
}

#[test]
fn unknown_names_paths_and_methods_are_told_apart() {
    let home = Home::new();
    let mut gateway = home.start();
    let unknown = json!({ "model": "no-such\r\nx: y", "messages": [{ "role": "user", "content": "hello" }] });
    let answer = with(&gateway, &format!("POST {CHAT}"), "", unknown.to_string().as_bytes());
    refused(&gateway, "an unknown model", &answer, 404, "model_not_found");
    assert_eq!(answer.json()["error"]["param"], "model");
    let cases = [
        ("GET /v1/models/no-such", 404, "model_not_found"),
        ("GET /v1/responses/no-such", 404, "response_not_found"),
        ("GET /v1/responses/resp_00000000000000000000000000000000", 404, "response_not_found"),
        ("GET /v2/models", 404, "unknown_url"),
        ("GET /", 404, "unknown_url"),
        ("POST /v1/chat/completions/", 404, "unknown_url"),
        ("GET /v1/chat/completions/..%2f..%2fetc", 404, "unknown_url"),
        ("POST /stop", 404, "unknown_url"),
        ("GET /v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE /v1/models", 405, "method_not_allowed"),
        ("POST /health", 405, "method_not_allowed"),
        ("BREW /v1/responses", 405, "method_not_allowed"),
    ];
    for (start, status, code) in cases {
        let answer = with(&gateway, start, "", b"");
        refused(&gateway, start, &answer, status, code);
        assert_eq!(answer.header("x-request-id").map(str::len), Some(32), "{start}: {answer:?}");
    }
    assert!(gateway.terminate().success(), "nothing of this stopped it before");
}

#[test]
fn only_the_key_in_a_bearer_header_opens() {
    let home = Home::new();
    let gateway = home.start();
    let key = gateway.key();
    let ask = |header: &str| {
        let head = format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n");
        raw(gateway.address(), head.as_bytes())
    };
    let wrong = [
        ("no key", String::new()),
        ("an empty header", "authorization:\r\n".into()),
        ("no scheme", format!("authorization: {key}\r\n")),
        ("Basic", format!("authorization: Basic {key}\r\n")),
        ("a wrong key", format!("authorization: Bearer {key}x\r\n")),
        ("half the key", format!("authorization: Bearer {}\r\n", &key[..20])),
        ("a key in another case", format!("authorization: Bearer {}\r\n", key.to_lowercase())),
        ("the key in the path's place", format!("x-api-key: {key}\r\n")),
    ];
    for (what, header) in wrong {
        let answer = ask(&header);
        refused(&gateway, what, &answer, 401, "invalid_api_key");
        assert_eq!(answer.header("www-authenticate"), Some("bearer"), "{what}");
        assert!(!answer.body.contains(&key), "{what}");
    }
    for header in [format!("authorization: bearer {key}\r\n"), format!("Authorization: BEARER  {key}\r\n")] {
        assert_eq!(ask(&header).status, 200, "{header}");
    }
    let open = |path: &str| {
        raw(gateway.address(), format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
    };
    assert_eq!(open("/health").json()["status"], "ok");
    for path in ["/health/ready", "/metrics", "/v1/models", "/v1/responses/x"] {
        assert_eq!(open(path).status, 401, "{path}");
    }
    assert!(!gateway.log().contains(&key));
}

#[test]
fn headers_that_are_too_long_or_smuggle_something_are_refused() {
    let home = Home::new();
    let gateway = home.start();
    let long = "x".repeat(129);
    let sessions = ["a b", &long, "ü", "a\tb", "", "a%0d%0aset-cookie:x=1", "a,b"];
    let start = format!("POST {CHAT}");
    for session in sessions {
        let answer = with(&gateway, &start, &format!("X-Hermes-Session-Id: {session}\r\n"), &hello());
        refused(&gateway, &format!("session {session:?}"), &answer, 400, "invalid_value");
        assert_eq!(answer.header("x-hermes-session-id"), None);
    }
    // A whole line break makes two headers of the request, as it should; the answer must not have the second one.
    for (smuggled, status) in
        [("a\r\nSet-Cookie: x=1", 200), ("a\rSet-Cookie: x=1", 400), ("a\r\n Set-Cookie: x=1", 400)]
    {
        let answer = with(&gateway, &start, &format!("X-Hermes-Session-Id: {smuggled}\r\n"), &hello());
        assert_eq!((answer.status, answer.header("set-cookie")), (status, None), "{smuggled:?}: {answer:?}");
        serves(&gateway, smuggled);
    }
    for key in [&"k".repeat(256), "", "ü"] {
        let answer = with(&gateway, &start, &format!("Idempotency-Key: {key}\r\n"), &hello());
        refused(&gateway, &format!("idempotency key {key:?}"), &answer, 400, "invalid_value");
    }
    let large = format!("x-large: {}\r\n", "y".repeat(200_000));
    let many: String = (0..500).map(|n| format!("x-{n}: y\r\n")).collect();
    for (what, headers) in [("large headers", &large), ("many headers", &many)] {
        let answer = with(&gateway, &start, headers, &hello());
        assert!(matches!(answer.status, 400 | 431), "{what}: {answer:?}");
        serves(&gateway, what);
    }
    let garbage: [&[u8]; 5] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"complete nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: abc\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
    ];
    for bytes in garbage {
        let what = String::from_utf8_lossy(bytes);
        assert_eq!(raw(gateway.address(), bytes).status, 400, "{what}");
        serves(&gateway, &what);
    }
}

#[test]
fn a_body_over_the_limit_is_refused_however_it_comes() {
    let home = Home::new();
    home.configure("http.max_body = \"2KiB\"\n");
    let gateway = home.start();
    let start = format!("POST {CHAT}");
    for size in [2049, 3000, 4 << 20] {
        let answer = with(&gateway, &start, "", &vec![b'x'; size]);
        refused(&gateway, &format!("{size} bytes"), &answer, 413, "body_too_large");
    }
    let chunked = |pieces: usize| {
        let key = gateway.key();
        let head = format!("{start} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n");
        let chunks = format!("400\r\n{}\r\n", "x".repeat(0x400)).repeat(pieces);
        raw(gateway.address(), format!("{head}transfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n").as_bytes())
    };
    refused(&gateway, "three chunks", &chunked(3), 413, "body_too_large");
    refused(&gateway, "two chunks, which are no JSON", &chunked(2), 400, "invalid_value");
    // Who asks first is told before the body is sent.
    let mut stream = TcpStream::connect(gateway.address()).expect("connects");
    let key = gateway.key();
    let head = format!("{start} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nexpect: 100-continue\r\n");
    write!(stream, "{head}content-length: 3000\r\n\r\n").expect("sent");
    assert!(read_answer(&mut stream).starts_with("HTTP/1.1 413 "));
}

#[test]
fn metrics_are_open_metrics_and_count_turns() {
    let home = Home::new();
    let gateway = home.start();
    gateway.ask("hello");
    let answer = gateway.request("GET", "/metrics", "");
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("application/openmetrics-text")));
    assert!(answer.body.ends_with("# EOF\n"), "{}", answer.body);
    let turns = answer.body.lines().find(|line| line.starts_with("hermes_turns_total{")).expect("turns are counted");
    assert!(
        turns.contains("agent=\"echo\"") && turns.contains("outcome=\"completed\"") && turns.ends_with(" 1"),
        "{turns}"
    );
    assert_eq!(gateway.request("GET", "/health/ready", "").json()["state"], "running");
}
