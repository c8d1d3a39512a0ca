//! How quickly a gateway lives, and on how little. Run by `cargo bench --bench life`.
//!
//! * exec to READY=1, on a warm cache, as a ratio to the time that the same binary needs for `--version`;
//! * SIGKILL to the next answer, on a socket that somebody else holds, as systemd does; no restart delay;
//! * resident memory, idle after READY and after a thousand turns.
//!
//! Times are medians and 95th percentiles of one run on whatever else the machine does; the ratios are what carries over.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_hermes-gateway");
const ROUNDS: usize = 60;

/// Addresses the handshake to the process that the shell becomes. The listener comes as standard input.
const AS_SYSTEMD: &str = "exec 3<&0 </dev/null; SYSTEMD_EXEC_PID=$$ LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http \
                          exec \"$0\" \"$@\"";

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    println!("{ROUNDS} rounds each; median and 95th percentile\n");

    let version = sample(|| {
        let began = Instant::now();
        let status = Command::new(BINARY).arg("--version").stdout(Stdio::null()).status().expect("runs");
        assert!(status.success());
        began.elapsed()
    });
    show("exec to exit of --version (baseline)", &version, &version);

    let notify = UnixDatagram::bind(dir.path().join("notify")).expect("a notify socket");
    notify.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    let ready = sample(|| {
        let began = Instant::now();
        let mut gateway = start(dir.path(), &listener);
        await_ready(&notify);
        let took = began.elapsed();
        end(&mut gateway);
        took
    });
    show("exec to READY=1", &ready, &version);

    let mut gateway = start(dir.path(), &listener);
    await_ready(&notify);
    let key = std::fs::read_to_string(dir.path().join("state/api-key")).expect("the key");
    ask(address, key.trim());
    let again = sample(|| {
        let began = Instant::now();
        end(&mut gateway);
        gateway = start(dir.path(), &listener);
        ask(address, key.trim());
        began.elapsed()
    });
    show("SIGKILL to the next answer", &again, &version);

    while drain(&notify) {}
    end(&mut gateway);
    gateway = start(dir.path(), &listener);
    await_ready(&notify);
    println!("\nresident memory, idle          {:7.1} MiB", resident(&gateway));
    for _ in 0..1000 {
        ask(address, key.trim());
    }
    println!("resident memory, 1000 turns    {:7.1} MiB", resident(&gateway));
    end(&mut gateway);
}

fn start(dir: &Path, listener: &TcpListener) -> Child {
    let listener: OwnedFd = listener.try_clone().expect("a copy").into();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", AS_SYSTEMD, BINARY, "run"]);
    command.arg("--state-dir").arg(dir.join("state")).arg("--runtime-dir").arg(dir.join("run"));
    command.arg("--config").arg(config(dir));
    command.env_clear().env("HOME", dir).env("NOTIFY_SOCKET", dir.join("notify"));
    command.stdin(listener).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts")
}

fn config(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("gateway.toml");
    if !path.exists() {
        std::fs::write(&path, "").expect("written");
    }
    path
}

fn await_ready(notify: &UnixDatagram) {
    let mut buffer = [0; 4096];
    loop {
        let length = notify.recv(&mut buffer).expect("READY=1 in time");
        if buffer[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
            return;
        }
    }
}

/// Whether there was something left to read.
fn drain(notify: &UnixDatagram) -> bool {
    notify.set_nonblocking(true).expect("set");
    let more = notify.recv(&mut [0; 4096]).is_ok();
    notify.set_nonblocking(false).expect("set");
    more
}

fn ask(address: SocketAddr, key: &str) {
    let body = r#"{"messages":[{"role":"user","content":"hello"}]}"#;
    let length = body.len();
    let mut stream = TcpStream::connect(address).expect("the socket is held open, so nobody is refused");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

fn end(gateway: &mut Child) {
    gateway.kill().expect("ours");
    gateway.wait().expect("ours");
}

fn resident(gateway: &Child) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.id())).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
}

fn sample(mut once: impl FnMut() -> Duration) -> Vec<Duration> {
    once(); // warms the cache
    let mut times: Vec<_> = (0..ROUNDS).map(|_| once()).collect();
    times.sort();
    times
}

fn show(what: &str, times: &[Duration], baseline: &[Duration]) {
    let (median, late) = (times[times.len() / 2], times[times.len() * 95 / 100]);
    let ratio = median.as_secs_f64() / baseline[baseline.len() / 2].as_secs_f64();
    println!("{what:<38} {:6.2} ms  {:6.2} ms   x{ratio:.1}", median.as_secs_f64() * 1e3, late.as_secs_f64() * 1e3);
}
