//! Durable turns a second, and what durability costs. Run by `cargo bench --bench turns`.
//!
//! The same request (`POST /v1/chat/completions`, one short message, the echo agent) at 1, 16 and 64 connections against
//!
//! * the gateway, with its store on this disk: each turn is two transactions with an fsync;
//! * the gateway, with its store in memory (tmpfs): the same work without a disk;
//! * an endpoint without a store: the same JSON in and out, the same agent, nothing kept;
//! * a bare axum echo: what the HTTP stack alone does.
//!
//! And this disk's own pace: fdatasync calls a second, one after the other. Ratios are of one run on one machine.

#![expect(clippy::disallowed_methods, reason = "a bench has no tasks to name or join")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::post;
use hermes_gateway::agent::{Agent, Config, Events, Prompt, Report, Steering, echo};
use hermes_gateway::model::id::TurnId;
use hermes_gateway::model::message::Message;
use hermes_gateway::model::turn::TurnEvent;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

mod rig;

use rig::{Gateway, fdatasync_pace, serve};

const CONNECTIONS: [usize; 3] = [1, 16, 64];
const DURATION: Duration = Duration::from_secs(3);

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    // Beside the binary: a temporary directory may be in memory.
    let on_disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory on disk");
    let in_memory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let pace = fdatasync_pace(on_disk.path());
    println!("fdatasync on this disk, one after the other: {pace:.0}/s\n");
    let durable = Gateway::start(on_disk.path(), "");
    let volatile = Gateway::start(in_memory.path(), "");
    let (storeless, bare) =
        runtime.block_on(async { (serve(endpoint_without_store()).await, serve(bare_echo()).await) });
    println!(
        "{:<26} {:>5} {:>10} {:>9} {:>9} {:>12} {:>11}",
        "", "conn", "turns/s", "p50 ms", "p99 ms", "of bare echo", "per fsync/s"
    );
    for connections in CONNECTIONS {
        let bare = runtime.block_on(load(bare, "", connections));
        for (name, address, key) in [
            ("gateway, store on disk", durable.address, durable.key.as_str()),
            ("gateway, store in memory", volatile.address, volatile.key.as_str()),
            ("endpoint without store", storeless, ""),
        ] {
            runtime.block_on(load(address, key, connections)).show(name, connections, &bare, pace);
        }
        bare.show("bare axum echo", connections, &bare, pace);
    }
}

fn bare_echo() -> Router {
    Router::new().route("/v1/chat/completions", post(|body: Bytes| async { body }))
}

/// What the gateway's endpoint does, but for keeping it.
fn endpoint_without_store() -> Router {
    let answer = |body: Bytes| async move {
        let request: Value = serde_json::from_slice(&body).expect("JSON");
        let said = request["messages"][0]["content"].as_str().expect("text");
        let agent = Agent::new(&Config::Echo(echo::Config::default()));
        let (events, mut heard) = Events::channel();
        let (session, turn) = ("s".parse().expect("an id"), TurnId::new());
        let messages = vec![Message::user(said)];
        let prompt = Prompt { session, turn, memory: None, instructions: None, messages };
        let listen = async {
            let mut text = String::new();
            while let Some(Report::Said(TurnEvent::Text(piece))) = heard.recv().await {
                text.push_str(&piece);
            }
            text
        };
        let (_, mut steering) = Steering::channel();
        let (_, text) = tokio::join!(agent.turn(prompt, events, &mut steering), listen);
        let message = json!({ "role": "assistant", "content": text });
        json!({
            "id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": request["model"],
            "choices": [{ "index": 0, "message": message, "finish_reason": "stop" }],
            "usage": { "prompt_tokens": 7, "completion_tokens": 7, "total_tokens": 14 },
        })
        .to_string()
    };
    Router::new().route("/v1/chat/completions", post(answer))
}

struct Measured {
    per_second: f64,
    times: Vec<Duration>,
}

impl Measured {
    fn show(&self, name: &str, connections: usize, bare: &Self, pace: f64) {
        let at = |share: f64| self.times[((self.times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        println!(
            "{name:<26} {connections:>5} {:>10.0} {:>9.2} {:>9.2} {:>11.1}% {:>11.2}",
            self.per_second,
            at(0.5),
            at(0.99),
            100.0 * self.per_second / bare.per_second,
            self.per_second / pace,
        );
    }
}

/// Each connection sends its next request when the last one is answered.
async fn load(address: SocketAddr, key: &str, connections: usize) -> Measured {
    let began = Instant::now();
    let clients: Vec<_> =
        (0..connections).map(|n| tokio::task::spawn(client(address, key.to_owned(), n, began + DURATION))).collect();
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await.expect("a client works"));
    }
    let per_second = times.len() as f64 / began.elapsed().as_secs_f64();
    times.sort();
    Measured { per_second, times }
}

/// A conversation of its own: turns of one session wait for each other.
async fn client(address: SocketAddr, key: String, number: usize, until: Instant) -> Vec<Duration> {
    let said = format!("what is the weather in Ghent, asks number {number}");
    let message = json!({ "model": "echo", "messages": [{ "role": "user", "content": said }] }).to_string();
    let stream = tokio::net::TcpStream::connect(address).await.expect("connects");
    stream.set_nodelay(true).expect("set");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::task::spawn(connection);
    let mut times = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        let request = Request::post("/v1/chat/completions")
            .header("host", "x")
            .header("authorization", format!("Bearer {key}"))
            .body(Body::from(message.clone()))
            .expect("a request");
        let answer = sender.send_request(request).await.expect("answered");
        assert!(answer.status().is_success(), "{}", answer.status());
        answer.into_body().collect().await.expect("a whole answer");
        times.push(began.elapsed());
    }
    times
}
