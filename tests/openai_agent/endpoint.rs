//! A model's endpoint that does as its script says: one connection and one reply for each request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};

use serde_json::{Value, json};

use crate::gateway::{Home, PATIENCE};

/// A request as it arrived.
#[derive(Debug)]
pub struct Asked {
    /// The request line and the headers, in lower case.
    pub head: String,
    pub body: Value,
}

impl Asked {
    /// Role and content of each message.
    pub fn messages(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let messages = self.body["messages"].as_array().expect("messages");
        messages.iter().map(|message| (text(&message["role"]), text(&message["content"]))).collect()
    }
}

/// What the endpoint does with a request; the connection is closed behind it.
pub type Reply = Box<dyn FnOnce(&mut TcpStream) + Send>;

/// A running endpoint. Its thread ends with the script.
pub struct Endpoint {
    port: u16,
    asked: Receiver<Asked>,
}

impl Endpoint {
    /// Replies to the first request with the first of `script`, and so on; more are not accepted.
    pub fn new(script: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (send, asked) = mpsc::channel();
        std::thread::spawn(move || {
            for reply in script {
                let Ok((mut stream, _)) = listener.accept() else { return };
                let Some(request) = read(&stream) else { return };
                // A test that has seen enough has hung up.
                let _test_is_over = send.send(request);
                std::thread::spawn(move || reply(&mut stream));
            }
        });
        Self { port, asked }
    }

    /// The next request; fails if none comes.
    pub fn asked(&self) -> Asked {
        self.asked.recv_timeout(PATIENCE).expect("the endpoint is asked")
    }

    /// Whether there was no further request.
    pub fn was_asked_no_more(&self) -> bool {
        self.asked.try_recv().is_err()
    }

    /// Configures a gateway with this endpoint as its default agent `model`, and further keys of it.
    pub fn configure(&self, home: &Home, more: &str) {
        let url = format!("base_url = \"http://127.0.0.1:{}/v1/\"", self.port);
        let agent =
            format!("[agents]\ndefault = \"model\"\n[agents.model]\nkind = \"openai\"\n{url}\nmodel = \"fake-1\"\n");
        home.configure(&format!("{agent}{more}\n"));
    }
}

fn read(stream: &TcpStream) -> Option<Asked> {
    stream.set_nodelay(true).expect("set");
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Asked { head, body: serde_json::from_slice(&body).ok()? })
}

/// A stream's event with this piece of text.
pub fn text(piece: &str) -> String {
    delta(&json!({ "content": piece }))
}

/// A stream's event with this delta.
pub fn delta(delta: &Value) -> String {
    let chunk = json!({ "id": "x", "object": "chat.completion.chunk", "choices": [{ "index": 0, "delta": delta }] });
    format!("data: {chunk}\n\n")
}

/// A stream's last events.
pub fn end() -> String {
    let finish = json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }] });
    let usage = json!({ "choices": [], "usage": { "prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18 } });
    format!("data: {finish}\n\ndata: {usage}\n\ndata: [DONE]\n\n")
}

/// The head of a stream that lasts until the connection ends.
pub fn begin(stream: &mut TcpStream) {
    write(stream, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n");
}

/// Writes, and does not mind if the gateway is gone.
pub fn write(stream: &mut TcpStream, text: &str) {
    let _gone = stream.write_all(text.as_bytes());
}

/// Says all of `said` and ends well.
pub fn says(said: &str) -> Reply {
    let said = said.to_owned();
    Box::new(move |stream| {
        begin(stream);
        write(stream, &(text(&said) + &end()));
    })
}

/// Answers with this status, these headers (each with its CR LF) and an error of this message.
pub fn fails(status: &str, headers: &str, message: &str) -> Reply {
    let body = json!({ "error": { "message": message, "type": "x" } }).to_string();
    let head = format!("HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    Box::new(move |stream| write(stream, &(head + &body)))
}

/// Says `first`, and the rest when `go` is told so; tells `left` if the gateway hangs up before.
pub fn waits(first: &str, rest: &str, go: Receiver<()>, left: mpsc::Sender<()>) -> Reply {
    let (first, rest) = (first.to_owned(), rest.to_owned());
    Box::new(move |stream| {
        begin(stream);
        write(stream, &text(&first));
        let mut listening = stream.try_clone().expect("a second handle");
        // The gateway sends nothing behind its request, so the end of reading is the end of the connection.
        std::thread::spawn(move || {
            if matches!(listening.read(&mut [0]), Ok(0) | Err(_)) {
                let _test_is_over = left.send(());
            }
        });
        if go.recv_timeout(PATIENCE).is_ok() {
            write(stream, &(text(&rest) + &end()));
        }
    })
}
