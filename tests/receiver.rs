//! A scripted platform: an HTTP endpoint that takes callbacks and keeps a ledger of its own of everything it was sent.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::Value;

/// What it was sent, as it came; a call that came twice is there twice.
#[derive(Debug, Clone)]
pub struct Call {
    /// By lower-case name.
    pub headers: Vec<(String, String)>,
    pub body: Value,
}

impl Call {
    /// A header's value, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        self.body["text"].as_str().unwrap_or_default()
    }
}

/// An endpoint; gone with this value.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    calls: Mutex<Vec<Call>>,
    /// Answers to give before it says yes to everything: status, further header lines.
    script: Mutex<VecDeque<(u16, String)>>,
    ended: AtomicBool,
}

impl Receiver {
    /// On a port of its own.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (address, shared) = (listener.local_addr().expect("bound"), Arc::new(Shared::default()));
        let theirs = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if theirs.ended.load(Ordering::SeqCst) {
                    return;
                }
                let theirs = theirs.clone();
                std::thread::spawn(move || theirs.serve(stream));
            }
        });
        Self { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}/replies", self.address)
    }

    /// The next calls get these answers; `Call`s that are refused are in the ledger all the same.
    pub fn answer_next(&self, answers: &[(u16, &str)]) {
        self.shared.script.lock().expect("no panic").extend(answers.iter().map(|(code, more)| (*code, (*more).into())));
    }

    /// What a reader of the platform sees, who knows a repetition by its key: each delivery once, in its place.
    pub fn delivered(&self) -> Vec<Call> {
        let mut seen = std::collections::HashSet::new();
        let calls = self.calls();
        calls.iter().filter(|call| seen.insert(call.header("idempotency-key").map(str::to_owned))).cloned().collect()
    }

    /// The ledger.
    pub fn calls(&self) -> MutexGuard<'_, Vec<Call>> {
        self.shared.calls.lock().expect("no panic")
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some(call) = read(&mut reader) {
            let scripted = self.script.lock().expect("no panic").pop_front();
            // In the ledger before it is answered, like a platform that has shown the message already.
            self.calls.lock().expect("no panic").push(call);
            let (code, more) = scripted.unwrap_or((200, String::new()));
            let answer = format!("HTTP/1.1 {code} Scripted\r\n{more}content-length: 0\r\n\r\n");
            if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

/// One request; `None` when the other side is gone, also in the middle.
fn read(reader: &mut BufReader<TcpStream>) -> Option<Call> {
    let mut headers = Vec::new();
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length")?.1.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Call { headers, body: serde_json::from_slice(&body).ok()? })
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        drop(TcpStream::connect(self.address));
    }
}
