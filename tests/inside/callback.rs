//! An endpoint that replies are delivered to.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::Value;

/// Takes calls, or refuses them, and remembers what it took.
pub struct Callback {
    address: std::net::SocketAddr,
    shared: Arc<Shared>,
    serving: Option<JoinHandle<()>>,
}

struct Shared {
    status: AtomicU16,
    over: AtomicBool,
    taken: Mutex<Vec<Value>>,
}

impl Callback {
    /// Answers each call with this status.
    pub fn new(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared { status: status.into(), over: false.into(), taken: Mutex::default() });
        let serving = shared.clone();
        let serving = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.over.load(Ordering::Relaxed) {
                    return;
                }
                serve(stream.expect("a connection"), &serving);
            }
        });
        Self { address, shared, serving: Some(serving) }
    }

    /// How to configure a platform that calls it.
    pub fn platform(&self, name: &str) -> String {
        format!("[platforms.{name}]\nkind = \"callback\"\nurl = \"http://{}/\"\n", self.address)
    }

    pub fn answers(&self, status: u16) {
        self.shared.status.store(status, Ordering::Relaxed);
    }

    /// The texts that it took, in their order.
    pub fn texts(&self) -> Vec<String> {
        self.taken().iter().map(|body| body["text"].as_str().expect("a text").to_owned()).collect()
    }

    /// What it took, in its order.
    pub fn taken(&self) -> Vec<Value> {
        self.shared.taken.lock().expect("no panic").clone()
    }
}

impl Drop for Callback {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        let _woken = TcpStream::connect(self.address);
        let joined = self.serving.take().map(JoinHandle::join);
        assert!(joined.is_none_or(|joined| joined.is_ok()) || std::thread::panicking());
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) {
    let (mut request, mut piece) = (Vec::new(), [0; 4096]);
    let body = loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                break body.to_owned();
            }
        }
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(length) => request.extend_from_slice(&piece[..length]),
        }
    };
    let status = shared.status.load(Ordering::Relaxed);
    if status < 300 {
        shared.taken.lock().expect("no panic").push(serde_json::from_str(&body).expect("JSON"));
    }
    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let _caller_left = stream.write_all(answer.as_bytes());
}
