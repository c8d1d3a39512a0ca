//! Durable messages a second, from a webhook through an agent to a callback. Run by `cargo bench --bench deliveries`.
//!
//! Each connection tells an event, signed, and tells its next one when the callback for the last one has come: at 1, 16,
//! 64 and 256 connections. Every message is in the store before it is acknowledged, its reply before it is sent, and the
//! receipt before the next one of its chat is; the ratio is to this disk's own pace, fdatasync calls one after the other.
//!
//! Then a store with 100,000 sessions and 1,000,000 messages: how long a start takes, and how much memory it needs.

#![expect(clippy::disallowed_methods, reason = "a bench has no tasks to name or join")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::routing::post;
use axum::{Json, Router};
use hmac::{Hmac, Mac};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rusqlite::Connection;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::sync::oneshot;

mod rig;

use rig::{Gateway, fdatasync_pace, serve};

const CONNECTIONS: [usize; 4] = [1, 16, 64, 256];
const DURATION: Duration = Duration::from_secs(4);
const SECRET: &str = "a secret of the bench";
const SESSIONS: u32 = 100_000;
const MESSAGES: u32 = 1_000_000;

/// Who waits for the callback with which text.
type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>;

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    // Beside the binary: a temporary directory may be in memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory on disk");
    let pace = fdatasync_pace(dir.path());
    println!("fdatasync on this disk, one after the other: {pace:.0}/s\n");
    let waiting = Waiting::default();
    let callback = runtime.block_on(serve(receiver(waiting.clone())));
    let configuration = configuration(dir.path(), callback);
    let gateway = Gateway::start(dir.path(), &configuration);
    println!(
        "{:>5} {:>12} {:>9} {:>9} {:>12} {:>12}",
        "conn", "messages/s", "p50 ms", "p99 ms", "per fsync/s", "cpu us each"
    );
    for connections in CONNECTIONS {
        let before = gateway.cpu();
        let (per_second, times) = runtime.block_on(load(gateway.address, &waiting, connections));
        let cpu = (gateway.cpu() - before).as_secs_f64() * 1e6 / times.len() as f64;
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        let ratio = per_second / pace;
        println!("{connections:>5} {per_second:>12.0} {:>9.2} {:>9.2} {ratio:>12.2} {cpu:>12.0}", at(0.5), at(0.99));
    }
    println!("\nresident memory after that: {:.1} MiB", gateway.resident());
    drop(gateway);
    large_store(dir.path(), &configuration);
}

fn configuration(dir: &Path, callback: SocketAddr) -> String {
    let secret = dir.join("secret");
    std::fs::write(&secret, SECRET).expect("written");
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("chmod");
    format!(
        "[turns]\nmax_running = 512\n[platforms.out]\nkind = \"callback\"\nurl = \"http://{callback}/\"\n\
         max_in_flight = 256\n[webhooks.in]\nscheme = \"hmac\"\nkey_file = \"{}\"\ndeliver = \"out\"\n\
         prompt = \"{{text}}\"\nper_minute = 1000000\n",
        secret.display()
    )
}

fn receiver(waiting: Waiting) -> Router {
    let take = move |Json(reply): Json<Value>| {
        let text = reply["text"].as_str().unwrap_or_default();
        if let Some(told) = waiting.lock().expect("no panic").remove(text) {
            let _gave_up = told.send(());
        }
        async {}
    };
    Router::new().route("/", post(take))
}

async fn load(gateway: SocketAddr, waiting: &Waiting, connections: usize) -> (f64, Vec<Duration>) {
    let began = Instant::now();
    let sender =
        |n| tokio::task::spawn(sender(gateway, format!("{connections}-{n}"), waiting.clone(), began + DURATION));
    let senders: Vec<_> = (0..connections).map(sender).collect();
    let mut times = Vec::new();
    for sender in senders {
        times.extend(sender.await.expect("a sender works"));
    }
    let per_second = times.len() as f64 / began.elapsed().as_secs_f64();
    times.sort();
    (per_second, times)
}

async fn sender(gateway: SocketAddr, name: String, waiting: Waiting, until: Instant) -> Vec<Duration> {
    let stream = tokio::net::TcpStream::connect(gateway).await.expect("connects");
    stream.set_nodelay(true).expect("set");
    let (mut http, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::task::spawn(connection);
    let mut times = Vec::new();
    for n in 0.. {
        if Instant::now() >= until {
            break;
        }
        let (text, began) = (format!("what is the weather in Ghent, {name}-{n}"), Instant::now());
        let (tell, told) = oneshot::channel();
        waiting.lock().expect("no panic").insert(text.clone(), tell);
        let body = Bytes::from(json!({ "text": text }).to_string());
        let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length is a key");
        mac.update(&body);
        let signature: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let request = Request::post("/webhooks/in")
            .header("host", "x")
            .header("x-webhook-signature", signature)
            .header("x-webhook-id", format!("{name}-{n}"))
            .body(Body::from(body))
            .expect("a request");
        let answer = http.send_request(request).await.expect("answered");
        assert_eq!(answer.status(), 202);
        answer.into_body().collect().await.expect("a whole answer");
        told.await.expect("the callback comes");
        times.push(began.elapsed());
    }
    times
}

/// A start on a store of years.
fn large_store(dir: &Path, configuration: &str) {
    let store = Connection::open(dir.join("state/gateway.db")).expect("the gateway's store");
    fill(&store);
    let size: i64 = store
        .query_row("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size", [], |row| row.get(0))
        .expect("its size");
    drop(store);
    let mut starts: Vec<_> = (0..9)
        .map(|_| {
            let began = Instant::now();
            let gateway = Gateway::start(dir, configuration);
            (began.elapsed(), gateway.resident())
        })
        .collect();
    starts.sort_by_key(|(took, _)| *took);
    let (took, resident) = starts[starts.len() / 2];
    println!("\n{SESSIONS} sessions, {MESSAGES} messages, {} MiB on disk:", size >> 20);
    println!("exec to READY=1 {:.1} ms (median of 9), resident memory {resident:.1} MiB", took.as_secs_f64() * 1e3);
}

fn fill(store: &Connection) {
    let sql = format!(
        "PRAGMA synchronous = OFF; BEGIN;
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {SESSIONS})
             INSERT INTO sessions (name, created) SELECT 'bench-' || i, 1790000000000 + i FROM n;
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {turns})
             INSERT INTO turns (id, session, agent, model, origin, state, keep, attempts, accepted, ended, finish, seq)
             SELECT randomblob(16), s.id, 'echo', 'echo', 'platform', 'completed', 1, 1, 1790000000000 + i,
                    1790000000001 + i, 'stop', 1000000 + i
             FROM n JOIN sessions s ON s.name = 'bench-' || (1 + i % {SESSIONS});
         INSERT INTO messages SELECT id, 0, 'user', 'what is the weather in ' || hex(id) FROM turns WHERE seq > 1000000;
         INSERT INTO messages SELECT id, 1, 'assistant', 'it rains in ' || hex(id) FROM turns WHERE seq > 1000000;
         COMMIT; PRAGMA wal_checkpoint(TRUNCATE);",
        turns = MESSAGES / 2
    );
    store.execute_batch(&sql).expect("filled");
}
