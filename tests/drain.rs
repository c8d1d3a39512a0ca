//! Restarts under load: whoever asks again and again, over kept connections or over new ones, never meets a failure.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::gateway::{Gateway, Home, PATIENCE};
use crate::http_input::connections::try_read_answer;

/// Clients of each sort; with [`PAUSE`] they make two hundred requests a second.
const CLIENTS: u64 = 20;
/// Between two requests of a client, on average.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a stop may take that has nothing to wait for but connections that say nothing.
const SOON: Duration = Duration::from_secs(2);

/// A client with one connection, kept or made anew for each request.
struct Client {
    address: SocketAddr,
    key: String,
    kept: bool,
    stream: Option<TcpStream>,
    number: u64,
    asked: u64,
    /// Connections that were closed while idle, which is everybody's right.
    closed: u64,
}

impl Client {
    fn new(gateway: &Gateway, kept: bool, number: u64) -> Self {
        let (address, key) = (gateway.address(), gateway.key());
        Self { address, key, kept, stream: None, number, asked: 0, closed: 0 }
    }

    /// A turn, whose answer must be its own.
    fn ask(&mut self) -> Result<(), String> {
        self.asked += 1;
        let text = format!("request {} of {}", self.asked, self.number);
        let body = json!({ "messages": [{ "role": "user", "content": text }] }).to_string();
        let close = if self.kept { "" } else { "connection: close\r\n" };
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n{close}content-length: {}\r\n\r\n",
            self.key,
            body.len()
        );
        let mut stream = self.connection()?;
        let failed = |e: &dyn std::fmt::Display| format!("{text}: {e}");
        stream.write_all(format!("{head}{body}").as_bytes()).map_err(|e| failed(&e))?;
        let answer = try_read_answer(&mut stream)?;
        if !answer.starts_with("HTTP/1.1 200 ") || !answer.contains(&text) {
            return Err(failed(&answer));
        }
        let last = answer.contains("connection: close\r\n");
        self.stream = (!last).then_some(stream);
        Ok(())
    }

    /// The kept connection, unless it was closed before anything is written, else a new one.
    fn connection(&mut self) -> Result<TcpStream, String> {
        if let Some(stream) = self.stream.take() {
            stream.set_nonblocking(true).expect("set");
            let look = stream.peek(&mut [0]);
            stream.set_nonblocking(false).expect("set");
            match look {
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(stream),
                Ok(0) => self.closed += 1,
                other => return Err(format!("an idle connection says {other:?}")),
            }
        }
        let stream = TcpStream::connect(self.address).map_err(|e| format!("refused: {e}"))?;
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        Ok(stream)
    }

    /// Asks until it is over, at uneven pauses.
    fn ask_on(mut self, over: &AtomicBool) -> Result<Self, String> {
        let mut random = self.number;
        while !over.load(Ordering::Relaxed) {
            self.ask()?;
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // A load has a rate; there is no fact to wait for.
            thread::sleep(PAUSE.mul_f64(0.5 + (random >> 32) as f64 / f64::from(u32::MAX)));
        }
        Ok(self)
    }
}

#[test]
fn restarts_under_load_fail_no_request() {
    let home = Home::new();
    let mut gateway = home.start();
    let over = AtomicBool::new(false);
    let clients: Vec<_> = (0..2 * CLIENTS).map(|n| Client::new(&gateway, n < CLIENTS, n)).collect();
    let mut took = Vec::new();
    let ended: Vec<_> = thread::scope(|scope| {
        let asking: Vec<_> = clients.into_iter().map(|client| scope.spawn(|| client.ask_on(&over))).collect();
        for _ in 0..10 {
            let began = Instant::now();
            let restarted = home.output("restart", &[]);
            took.push(began.elapsed());
            if !restarted.status.success() {
                over.store(true, Ordering::Relaxed);
                panic!("{}", String::from_utf8_lossy(&restarted.stderr));
            }
            thread::sleep(Duration::from_millis(300));
        }
        over.store(true, Ordering::Relaxed);
        asking.into_iter().map(|client| client.join().expect("ends")).collect()
    });
    let (mut asked, mut closed, mut failed) = (0, 0, Vec::new());
    for client in ended {
        match client {
            Ok(client) => (asked, closed) = (asked + client.asked, closed + client.closed),
            Err(failure) => failed.push(failure),
        }
    }
    eprintln!("{asked} requests, {closed} idle connections closed, restarts took {took:?}");
    assert_eq!(failed, Vec::<String>::new());
    assert!(asked > 1000, "{asked}");
    assert_eq!(gateway.status().expect("a status")["identity"]["generation"], 10);
    assert!(gateway.terminate().success());
}

#[test]
fn a_kept_connection_may_ask_once_more_while_the_gateway_stops() {
    let home = Home::new();
    let mut gateway = home.start();
    let mut kept = Client::new(&gateway, true, 1);
    kept.ask().expect("answered");
    // Never used so far.
    let mut fresh = Client::new(&gateway, true, 2);
    fresh.stream = Some(TcpStream::connect(gateway.address()).expect("connects"));
    // Accepted, and not in the kernel's queue any more.
    gateway.await_fact("both are let in", |gateway| {
        gateway.status().is_some_and(|status| status["parts"]["http"]["connections"] == 3)
    });
    gateway.signal(Signal::TERM);
    gateway.await_fact("it stops", |gateway| gateway.log().contains("gateway stopping"));
    for client in [&mut kept, &mut fresh] {
        client.ask().expect("answered while it stops");
        assert!(client.stream.is_none(), "and told that this was the last answer here");
    }
    let began = Instant::now();
    assert!(gateway.wait().success());
    // Nobody has anything to wait for any more.
    assert!(began.elapsed() < SOON / 2, "{:?}", began.elapsed());
}

#[test]
fn connections_that_say_nothing_hold_no_stop_for_long() {
    let home = Home::new();
    let mut gateway = home.start();
    let mut clients: Vec<_> = (0..50).map(|n| Client::new(&gateway, true, n)).collect();
    for client in &mut clients {
        client.ask().expect("answered");
    }
    let began = Instant::now();
    assert!(gateway.terminate().success());
    let took = began.elapsed();
    eprintln!("a stop with 50 idle connections took {took:?}");
    assert!(took < SOON, "{took:?}");
    for client in clients {
        let mut said = String::new();
        client.stream.expect("kept").read_to_string(&mut said).expect("closed in order");
        assert_eq!(said, "", "an unasked word would be taken for an answer");
    }
}
