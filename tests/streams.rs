//! Streams that break off: a client that comes back with what it got last puts together exactly the reply.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::gateway::{Gateway, Home, PATIENCE};

mod anew;
mod cuts;
mod numbers;
mod terminal;

/// Letters of one to four bytes, double spaces, line ends, and what looks like a stream's own marks.
const TRICKY: &str = "Grüße  aus Köln: 🦀 日本語 x\u{2028}y data: [DONE]\n\nid: 7\nevent: end ";

/// How a client asks, and asks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The same request again.
    Chat,
    /// With an idempotency key.
    ChatByKey,
    /// With an idempotency key.
    ResponseByKey,
    /// `GET` with the id of the last event.
    ResponseById,
    /// `GET` with the number of the last event.
    ResponseByNumber,
}

/// One event as it arrived, whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: Option<String>,
    pub data: Value,
}

/// A client of a stream and what it has put together.
#[derive(Debug)]
pub struct Client {
    way: Way,
    key: String,
    /// What it asks, and the session in which it does.
    asked: String,
    session: String,
    pub text: String,
    last_id: Option<String>,
    number: Option<u64>,
    response: Option<String>,
    /// The turns that it heard of, by the ids of chunks or the response.
    pub turns: Vec<String>,
    /// How often a reply began.
    pub beginnings: usize,
    pub is_complete: bool,
}

impl Client {
    pub fn new(way: Way, session: &str, asked: &str) -> Self {
        Self {
            way,
            key: format!("key of {session}"),
            asked: asked.to_owned(),
            session: session.to_owned(),
            text: String::new(),
            last_id: None,
            number: None,
            response: None,
            turns: Vec::new(),
            beginnings: 0,
            is_complete: false,
        }
    }

    /// Asks, or asks for the rest.
    pub fn open(&self, gateway: &Gateway) -> Events {
        let user = json!({ "role": "user", "content": self.asked });
        let (method, path, body) = match (self.way, &self.response) {
            (Way::Chat | Way::ChatByKey, _) => {
                ("POST", "/v1/chat/completions".to_owned(), json!({ "messages": [user], "stream": true }).to_string())
            }
            (Way::ResponseById, Some(id)) => ("GET", format!("/v1/responses/{id}?stream=true"), String::new()),
            (Way::ResponseByNumber, Some(id)) => {
                let after = self.number.expect("a number");
                ("GET", format!("/v1/responses/{id}?stream=true&starting_after={after}"), String::new())
            }
            _ => ("POST", "/v1/responses".to_owned(), json!({ "input": [user], "stream": true }).to_string()),
        };
        let mut headers = format!("x-hermes-session-id: {}\r\n", self.session);
        if self.way != Way::Chat {
            headers.push_str(&format!("idempotency-key: {}\r\n", self.key));
        }
        if let (true, Some(id)) = (self.way != Way::ResponseByNumber, &self.last_id) {
            headers.push_str(&format!("last-event-id: {id}\r\n"));
        }
        Events::open(gateway, method, &path, &headers, &body)
    }

    /// Takes at most this many events; whether the stream goes on behind them.
    pub fn take(&mut self, events: &mut Events, most: usize) -> bool {
        (0..most).all(|_| events.next().is_some_and(|event| self.hear(&event)))
    }

    /// Takes all there is.
    pub fn finish(&mut self, events: &mut Events) {
        while self.take(events, 1) {}
    }

    /// Whether more is to come.
    fn hear(&mut self, event: &Event) -> bool {
        let data = &event.data;
        let error = if data["type"] == "error" { &data["code"] } else { &data["error"]["code"] };
        if !error.is_null() {
            assert_eq!(error, "gateway_stopping", "{data}");
            return false;
        }
        if event.id.is_some() {
            self.last_id.clone_from(&event.id);
        }
        match self.way {
            Way::Chat | Way::ChatByKey => self.hear_chunk(data),
            _ => self.hear_event(data),
        }
        !self.is_complete
    }

    fn hear_chunk(&mut self, chunk: &Value) {
        self.heard_of(chunk["id"].as_str().expect("an id"));
        let choice = &chunk["choices"][0];
        if choice["delta"]["role"] == "assistant" {
            self.text.clear();
            self.beginnings += 1;
        }
        self.text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        self.is_complete = choice["finish_reason"] == "stop";
    }

    fn hear_event(&mut self, event: &Value) {
        let number = event["sequence_number"].as_u64().expect("a number");
        if let (Way::ResponseByNumber, Some(last)) = (self.way, self.number) {
            assert!(number > last, "{number} after {last}: {event}");
        }
        self.number = Some(number);
        match event["type"].as_str().expect("a type") {
            "response.created" => {
                self.text.clear();
                self.beginnings += 1;
                let id = event["response"]["id"].as_str().expect("an id").to_owned();
                self.heard_of(&id);
                self.response = Some(id);
            }
            "response.output_text.delta" => self.text.push_str(event["delta"].as_str().expect("a delta")),
            "response.output_text.done" => assert_eq!(event["text"], *self.text),
            "response.completed" => {
                assert_eq!(event["response"]["output"][0]["content"][0]["text"], *self.text);
                self.is_complete = true;
            }
            "response.failed" => panic!("{event}"),
            _ => {}
        }
    }

    fn heard_of(&mut self, turn: &str) {
        if self.turns.last().is_none_or(|last| last != turn) {
            self.turns.push(turn.to_owned());
        }
    }
}

/// The events of a stream; it is left when this is dropped.
pub struct Events(BufReader<TcpStream>);

impl Events {
    pub fn open(gateway: &Gateway, method: &str, path: &str, headers: &str, body: &str) -> Self {
        let mut stream = TcpStream::connect(gateway.address()).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let (key, length) = (gateway.key(), body.len());
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{headers}");
        write!(stream, "{head}connection: close\r\ncontent-length: {length}\r\n\r\n{body}").expect("sent");
        Self(BufReader::new(stream))
    }

    /// The next whole event but `[DONE]`; `None` at the end, however it comes.
    pub fn next(&mut self) -> Option<Event> {
        let (mut id, mut data) = (None, None);
        loop {
            let mut line = String::new();
            // The end of a killed process may be a reset, and what came before it may end within a line.
            if !matches!(self.0.read_line(&mut line), Ok(1..)) || !line.ends_with('\n') {
                return None;
            }
            let line = line.trim_end_matches('\n');
            assert!(!line.starts_with("HTTP/1.1 ") || line.starts_with("HTTP/1.1 200 "), "{line}");
            match (line.split_once(": "), data.take()) {
                (Some(("id", value)), _) => id = Some(value.to_owned()),
                (Some(("data", "[DONE]")), _) => return None,
                (Some(("data", value)), _) => data = Some(value.to_owned()),
                (None, Some(data)) if line.is_empty() => {
                    let data = serde_json::from_str(&data).unwrap_or_else(|e| panic!("{e}: {data}"));
                    return Some(Event { id, data });
                }
                _ => {}
            }
        }
    }
}

/// A home whose echo takes its time, and whose stops take none.
fn slow_home() -> Home {
    let home = Home::new();
    home.configure("[agents.echo]\nkind = \"echo\"\ndelay = \"5ms\"\n[stop]\ngrace = \"0s\"\n");
    home
}

/// Restarts it in place.
fn restart(home: &Home) {
    let restarted = home.output("restart", &[]);
    assert!(restarted.status.success(), "{}", String::from_utf8_lossy(&restarted.stderr));
}
