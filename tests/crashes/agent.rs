//! A scripted agent: a model's endpoint that answers each message with the message itself, and keeps a ledger of what it
//! was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// One question, as the agent got it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub text: String,
    /// Whether it was told that an earlier attempt was cut off.
    pub warned: bool,
}

/// The endpoint. Its threads end with the test.
pub struct Agent {
    pub address: SocketAddr,
    ledger: Arc<Mutex<Vec<Asked>>>,
}

impl Agent {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (address, ledger) = (listener.local_addr().expect("bound"), Arc::<Mutex<Vec<Asked>>>::default());
        let theirs = ledger.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let theirs = theirs.clone();
                // A gateway that dies in the middle is what this is about.
                std::thread::spawn(move || drop(answer(stream, &theirs)));
            }
        });
        Self { address, ledger }
    }

    pub fn ledger(&self) -> Vec<Asked> {
        self.ledger.lock().expect("no panic").clone()
    }
}

fn answer(stream: TcpStream, ledger: &Mutex<Vec<Asked>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line)? > 2 {
        let lower = line.to_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body)?;
    let messages = body["messages"].as_array().cloned().unwrap_or_default();
    let text = messages.last().and_then(|last| last["content"].as_str()).unwrap_or_default().to_owned();
    let system = messages.iter().filter(|message| message["role"] == "system");
    let warned = system.filter_map(|message| message["content"].as_str()).any(|said| said.contains("cut off"));
    ledger.lock().expect("no panic").push(Asked { text: text.clone(), warned });
    let mut reply = String::from("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n");
    for piece in text.split_inclusive(' ') {
        let chunk = json!({ "choices": [{ "index": 0, "delta": { "content": piece } }] });
        reply.push_str(&format!("data: {chunk}\n\n"));
    }
    let end = json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }] });
    reply.push_str(&format!("data: {end}\n\ndata: [DONE]\n\n"));
    reader.get_mut().write_all(reply.as_bytes())
}
