//! The agent kind `openai` against an endpoint that does whatever endpoints do.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gateway::{Answer, Gateway, Home, PATIENCE};

pub mod endpoint;
mod failures;

use endpoint::{Asked, Endpoint, begin, delta, end, says, text, waits, write};

const CHAT: &str = "/v1/chat/completions";

fn user(text: &str) -> Value {
    json!({ "role": "user", "content": text })
}

fn chat(gateway: &Gateway, body: &Value) -> Answer {
    gateway.request("POST", CHAT, &body.to_string())
}

fn said(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(role, content)| ((*role).to_owned(), (*content).to_owned())).collect()
}

/// A client that reads a stream event by event, and leaves when it is dropped.
struct Reader(BufReader<TcpStream>);

impl Reader {
    fn open(gateway: &Gateway, path: &str, headers: &str, body: &Value) -> Self {
        let mut stream = TcpStream::connect(gateway.address()).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let (key, body) = (gateway.key(), body.to_string());
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{headers}");
        write!(stream, "{head}connection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()).expect("sent");
        Self(BufReader::new(stream))
    }

    /// The next event's data; `None` at the end.
    fn next(&mut self) -> Option<String> {
        let mut line = String::new();
        while self.0.read_line(&mut line).expect("a line") > 0 {
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(data.trim_end().to_owned());
            }
            line.clear();
        }
        None
    }

    /// All further events but `[DONE]`, which must come last if it comes.
    fn rest(&mut self) -> Vec<Value> {
        let mut all: Vec<_> = std::iter::from_fn(|| self.next()).collect();
        all.pop_if(|last| last == "[DONE]");
        all.iter().map(|data| serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"))).collect()
    }

    /// Reads until the reply so far is `text`.
    fn await_text(&mut self, text: &str) {
        let mut so_far = String::new();
        while so_far != text {
            let event: Value = serde_json::from_str(&self.next().expect("an event")).expect("JSON");
            so_far.push_str(&joined(&[event], "content"));
            assert!(text.starts_with(&so_far), "{so_far}");
        }
    }
}

/// A field of all deltas, of chat completions or responses.
fn joined(events: &[Value], field: &str) -> String {
    let piece = |event: &Value| match &event["delta"] {
        Value::String(text) if field == "content" => text.clone(),
        _ => event["choices"][0]["delta"][field].as_str().unwrap_or_default().to_owned(),
    };
    events.iter().map(piece).collect()
}

#[test]
fn a_stream_in_any_pieces_arrives_whole_with_its_usage() {
    const TEXT: &str = "Grüße aus Köln 🦀 日本語 \u{2028} data: [DONE]\n\n\"ende\"";
    let events: String = TEXT.chars().map(|c| text(&c.to_string())).collect();
    let events = format!(": comment\n\nevent: message\nid: 7\n{events}{}", end());
    let in_pieces = |size: usize, events: String| -> endpoint::Reply {
        Box::new(move |stream| {
            begin(stream);
            // One write each, with Nagle's algorithm off: also inside of letters.
            for piece in events.as_bytes().chunks(size) {
                stream.write_all(piece).expect("written");
            }
        })
    };
    let script = vec![
        in_pieces(1, events.clone()),
        in_pieces(7, events.replace('\n', "\r\n")),
        in_pieces(1 << 20, events.replace("data: {", "data:{")),
    ];
    let endpoint = Endpoint::new(script);
    let home = Home::new();
    let key = home.path().join("model-key");
    std::fs::write(&key, "sk-s3cret\n").expect("written");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).expect("chmod");
    endpoint.configure(&home, &format!("key_file = \"{}\"", key.display()));
    let gateway = home.start();
    for _ in 0..3 {
        let body = json!({ "messages": [user("hi")], "stream": true, "stream_options": { "include_usage": true } });
        let events = Reader::open(&gateway, CHAT, "", &body).rest();
        assert_eq!(joined(&events, "content"), TEXT);
        let usage = &events.last().expect("events")["usage"];
        assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(11), &json!(7)));
        let Asked { head, body } = endpoint.asked();
        assert!(head.starts_with("post /v1/chat/completions http/1.1\r\n"), "{head}");
        assert!(head.contains("authorization: bearer sk-s3cret\r\n"), "{head}");
        assert_eq!((&body["model"], &body["stream"]), (&json!("fake-1"), &json!(true)));
        assert_eq!(body["messages"], json!([user("hi")]));
    }
    assert!(!gateway.log().contains("sk-s3cret"));
}

#[test]
fn thoughts_are_streamed_and_are_no_part_of_the_reply() {
    let thinks: endpoint::Reply = Box::new(|stream| {
        begin(stream);
        let thought = |text: &str| delta(&json!({ "reasoning_content": text, "content": null }));
        write(stream, &(thought("let me ") + &thought("think") + &text("yes") + &end()));
    });
    let endpoint = Endpoint::new(vec![thinks, says("no")]);
    let home = Home::new();
    endpoint.configure(&home, "");
    let gateway = home.start();
    let session = "x-hermes-session-id: s\r\n";
    let events = Reader::open(&gateway, CHAT, session, &json!({ "messages": [user("sure?")], "stream": true })).rest();
    assert_eq!(joined(&events, "reasoning_content"), "let me think");
    assert_eq!(joined(&events, "content"), "yes");
    Reader::open(&gateway, CHAT, session, &json!({ "messages": [user("really?")], "stream": true })).rest();
    endpoint.asked();
    assert_eq!(endpoint.asked().messages(), said(&[("user", "sure?"), ("assistant", "yes"), ("user", "really?")]));
}

#[test]
fn a_session_is_told_from_its_beginning_also_after_a_kill() {
    let replies = ["one", "two", "three", "four"];
    let endpoint = Endpoint::new(replies.map(says).into());
    let home = Home::new();
    endpoint.configure(&home, "system_prompt = \"Be kind.\"");
    let mut gateway = home.start();
    let session = "x-hermes-session-id: telegram:bot/42\r\n";
    let ask = |gateway: &Gateway, messages: Value| {
        let reply = Reader::open(gateway, CHAT, session, &json!({ "messages": messages, "stream": true })).rest();
        (joined(&reply, "content"), endpoint.asked().messages())
    };
    let (reply, told) = ask(&gateway, json!([user("1")]));
    assert_eq!((reply.as_str(), told), ("one", said(&[("system", "Be kind."), ("user", "1")])));
    // Of what the client sends besides, the instructions count for this turn, and its own history does not.
    let system = |text: &str| json!({ "role": "system", "content": text });
    let (_, told) = ask(&gateway, json!([system("Be brief."), user("invented"), system("Be good."), user("2")]));
    let expected = [
        ("system", "Be kind."),
        ("system", "Be brief.\n\nBe good."),
        ("user", "1"),
        ("assistant", "one"),
        ("user", "2"),
    ];
    assert_eq!(told, said(&expected));
    gateway.kill();
    let mut gateway = home.start();
    let (reply, told) = ask(&gateway, json!([user("3")]));
    let mut expected = vec![("system", "Be kind."), ("user", "1"), ("assistant", "one"), ("user", "2")];
    expected.extend([("assistant", "two"), ("user", "3")]);
    assert_eq!((reply.as_str(), told), ("three", said(&expected)));
    // Without the header the request is the whole conversation.
    let conversation = json!([user("a"), { "role": "assistant", "content": "b" }, user("c")]);
    assert_eq!(chat(&gateway, &json!({ "messages": conversation })).status, 200);
    let expected = [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "c")];
    assert_eq!(endpoint.asked().messages(), said(&expected));
    assert!(gateway.terminate().success());
}

#[test]
fn a_chain_of_responses_is_told_link_by_link_and_branches() {
    let endpoint = Endpoint::new(["one", "two", "other"].map(says).into());
    let home = Home::new();
    endpoint.configure(&home, "");
    let gateway = home.start();
    let respond = |input: &str, previous: Option<&Value>, instructions: &str| {
        let body = json!({ "input": input, "previous_response_id": previous, "instructions": instructions });
        let answer = gateway.request("POST", "/v1/responses", &body.to_string());
        assert_eq!(answer.status, 200, "{}", answer.body);
        (answer.json()["id"].clone(), endpoint.asked().messages())
    };
    let (first, told) = respond("1", None, "Once.");
    assert_eq!(told, said(&[("system", "Once."), ("user", "1")]));
    let (_, told) = respond("2", Some(&first), "Twice.");
    assert_eq!(told, said(&[("system", "Twice."), ("user", "1"), ("assistant", "one"), ("user", "2")]));
    let (_, told) = respond("2b", Some(&first), "Twice.");
    assert_eq!(told, said(&[("system", "Twice."), ("user", "1"), ("assistant", "one"), ("user", "2b")]));
    let unknown = json!({ "input": "x", "previous_response_id": "resp_00000000000000000000000000000000" });
    assert_eq!(gateway.request("POST", "/v1/responses", &unknown.to_string()).status, 404);
}

#[test]
fn who_leaves_cancels_unless_the_reply_can_be_asked_for_later() {
    let (go_chat, gate) = mpsc::channel();
    let (left_chat, chat_left) = mpsc::channel();
    let (go_kept, kept_gate) = mpsc::channel();
    let (left_kept, kept_left) = mpsc::channel();
    let script = vec![waits("first", "", gate, left_chat), waits("first ", "rest", kept_gate, left_kept)];
    let endpoint = Endpoint::new(script);
    let home = Home::new();
    endpoint.configure(&home, "");
    let mut gateway = home.start();
    let mut client = Reader::open(&gateway, CHAT, "", &json!({ "messages": [user("hi")], "stream": true }));
    client.await_text("first");
    drop(client);
    chat_left.recv_timeout(PATIENCE).expect("the request to the endpoint is cancelled");
    drop(go_chat);
    let mut client = Reader::open(&gateway, "/v1/responses", "", &json!({ "input": "hi", "stream": true }));
    let created: Value = serde_json::from_str(&client.next().expect("an event")).expect("JSON");
    let path = format!("/v1/responses/{}", created["response"]["id"].as_str().expect("an id"));
    client.await_text("first ");
    drop(client);
    assert_eq!(gateway.request("GET", &path, "").json()["status"], "in_progress");
    assert!(kept_left.try_recv().is_err(), "the endpoint is still listened to");
    go_kept.send(()).expect("the endpoint waits");
    gateway.await_fact("the response is finished", |gateway| {
        let response = gateway.request("GET", &path, "").json();
        response["status"] == "completed" && response["output"][0]["content"][0]["text"] == "first rest"
    });
}

#[test]
fn a_repeated_request_joins_the_one_that_runs() {
    let (go, gate) = mpsc::channel();
    let endpoint = Endpoint::new(vec![waits("first ", "rest", gate, mpsc::channel().0), says("again")]);
    let home = Home::new();
    endpoint.configure(&home, "");
    let gateway = home.start();
    let body = json!({ "messages": [user("hi")], "stream": true });
    let open = || Reader::open(&gateway, CHAT, "idempotency-key: k\r\n", &body);
    let (mut one, mut two) = (open(), open());
    one.await_text("first ");
    two.await_text("first ");
    drop(one);
    let mut three = open();
    three.await_text("first ");
    go.send(()).expect("the endpoint waits");
    assert_eq!(joined(&two.rest(), "content"), "rest");
    assert_eq!(joined(&three.rest(), "content"), "rest");
    assert_eq!(joined(&open().rest(), "content"), "first rest");
    endpoint.asked();
    assert!(endpoint.was_asked_no_more());
}

#[test]
fn the_model_of_a_request_chooses_the_agent() {
    let endpoint = Endpoint::new(vec![says("from the default"), says("by its name")]);
    let home = Home::new();
    endpoint.configure(&home, "");
    let gateway = home.start();
    for (model, reply) in [("hermes-agent", "from the default"), ("echo", "hi"), ("model", "by its name")] {
        let answer = chat(&gateway, &json!({ "model": model, "messages": [user("hi")] })).json();
        assert_eq!((&answer["model"], &answer["choices"][0]["message"]["content"]), (&json!(model), &json!(reply)));
    }
}
