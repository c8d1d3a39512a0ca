//! What the benches have in common: a gateway of the release build, and this disk's own pace.

#![expect(dead_code, reason = "each bench uses its part")]

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::Router;

const BINARY: &str = env!("CARGO_BIN_EXE_hermes-gateway");

/// One block a call, as a small commit does.
pub fn fdatasync_pace(dir: &Path) -> f64 {
    let mut file = File::create(dir.join("pace")).expect("a file");
    let (began, mut calls) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(1) {
        file.write_all(&[0; 4096]).and_then(|()| file.sync_data()).expect("synced");
        calls += 1;
    }
    f64::from(calls) / began.elapsed().as_secs_f64()
}

/// A gateway of the release build; killed with this value.
pub struct Gateway {
    child: Child,
    pub address: SocketAddr,
    pub key: String,
    /// Whom it tells how it is.
    _notify: UnixDatagram,
}

impl Gateway {
    /// Starts one in `dir` with further configuration, and waits for READY=1.
    pub fn start(dir: &Path, toml: &str) -> Self {
        let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        std::fs::write(
            dir.join("gateway.toml"),
            format!("[http]\nlisten = [\"{address}\"]\n[log]\nlevel = \"warn\"\n{toml}"),
        )
        .expect("written");
        // What an earlier gateway in this directory had.
        let _none = std::fs::remove_file(dir.join("notify"));
        let notify = UnixDatagram::bind(dir.join("notify")).expect("a notify socket");
        notify.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "SYSTEMD_EXEC_PID=$$ exec \"$0\" \"$@\"", BINARY, "run"]);
        command.arg("--config").arg(dir.join("gateway.toml"));
        command.arg("--state-dir").arg(dir.join("state")).arg("--runtime-dir").arg(dir.join("run"));
        command.env_clear().env("HOME", dir).env("NOTIFY_SOCKET", dir.join("notify"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("starts");
        let mut buffer = [0; 4096];
        while !notify.recv(&mut buffer).map(|n| buffer[..n].starts_with(b"READY=1")).expect("READY=1 in time") {}
        let key = std::fs::read_to_string(dir.join("state/api-key")).expect("the key").trim().to_owned();
        Self { child, address, key, _notify: notify }
    }
}

impl Gateway {
    /// Processor time so far, over all threads.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let fields: Vec<u64> = stat.split_ascii_whitespace().skip(13).take(2).filter_map(|n| n.parse().ok()).collect();
        Duration::from_millis(fields.iter().sum::<u64>() * 1000 / rustix::param::clock_ticks_per_second())
    }

    /// Resident memory, in MiB.
    pub fn resident(&self) -> f64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).expect("it runs");
        let pages: f64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
        pages * rustix::param::page_size() as f64 / f64::from(1 << 20)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("ours");
    }
}

/// Serves on a port of its own, for as long as the bench runs.
pub async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::task::spawn(async move { axum::serve(listener, router).await });
    address
}
