//! systemd's side of the protocols, played by the test: what it is told, what it keeps, what it passes.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::Signal;

use crate::gateway::{BINARY, Gateway, Home, PATIENCE};

mod hung_disk;
mod sockets;

/// Addresses the handshake to the gateway, which has the shell's pid.
const ADDRESSED: &str = "SYSTEMD_EXEC_PID=$$ exec \"$0\" \"$@\"";

/// One datagram: its assignments, and the descriptors that came with it.
#[derive(Debug)]
struct Told {
    lines: Vec<String>,
    descriptors: Vec<OwnedFd>,
}

impl Told {
    fn has(&self, line: &str) -> bool {
        self.lines.iter().any(|l| l == line)
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }
}

fn receive(socket: &UnixDatagram) -> io::Result<Told> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 4096];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let length = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?.bytes;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    let text = std::str::from_utf8(&bytes[..length]).map_err(io::Error::other)?;
    Ok(Told { lines: text.lines().map(str::to_owned).collect(), descriptors })
}

/// Listens on a notify socket as systemd does.
struct Manager {
    address: SocketAddr,
    told: Receiver<Told>,
    listening: Option<JoinHandle<()>>,
}

impl Manager {
    fn new(address: SocketAddr) -> Self {
        let socket = UnixDatagram::bind_addr(&address).expect("bound");
        let (send, told) = mpsc::channel();
        let listening = std::thread::spawn(move || {
            while let Ok(told) = receive(&socket) {
                if told.has("END=1") || send.send(told).is_err() {
                    return;
                }
            }
        });
        Self { address, told, listening: Some(listening) }
    }

    fn at(path: &Path) -> Self {
        Self::new(SocketAddr::from_pathname(path).expect("an address"))
    }

    /// Everything up to the first datagram that `is_it`.
    fn until(&self, what: &str, is_it: impl Fn(&Told) -> bool) -> Vec<Told> {
        let mut all = Vec::new();
        loop {
            match self.told.recv_timeout(PATIENCE) {
                Ok(told) => all.push(told),
                Err(e) => panic!("{what}: {e} after {all:?}"),
            }
            if all.last().is_some_and(&is_it) {
                return all;
            }
        }
    }

    /// The first datagram with this assignment; those before it are passed over.
    fn hears(&self, line: &str) -> Told {
        self.until(line, |told| told.has(line)).pop().expect("it is the last one")
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let own = UnixDatagram::unbound().expect("a socket");
        let ended = own.send_to_addr(b"END=1", &self.address).map(|_| self.listening.take().map(JoinHandle::join));
        assert!(ended.is_ok_and(|joined| joined.is_none_or(|j| j.is_ok())) || std::thread::panicking());
    }
}

/// A gateway's command as systemd would run it, but for the variables that are added.
fn addressed(home: &Home, notify_socket: &str) -> Command {
    let mut command = home.wrapped("/bin/sh", &["-c", ADDRESSED, BINARY], "run");
    command.env("NOTIFY_SOCKET", notify_socket);
    command
}

fn supervisor(gateway: &Gateway) -> String {
    gateway.status().expect("a status")["identity"]["supervisor"].as_str().expect("text").to_owned()
}

fn micros_since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).expect("positive") * 1_000_000 + u64::try_from(now.tv_nsec).expect("positive") / 1000
}

#[test]
fn systemd_is_told_of_the_whole_life_in_its_order() {
    let home = Home::new();
    home.configure("[agents.echo]\nkind = \"echo\"\ndelay = \"150ms\"\n");
    let socket = home.path().join("notify");
    let manager = Manager::at(&socket);
    let mut command = addressed(&home, socket.to_str().expect("UTF-8"));
    command.env("WATCHDOG_USEC", "300000");
    let mut gateway = home.start_by(command);
    let birth = manager.until("READY", |told| told.has("READY=1"));
    let ready = birth.last().expect("it is the last one");
    assert!(ready.value("STATUS").is_some_and(|status| status.starts_with("serving 127.0.0.1:")), "{ready:?}");
    let kept: Vec<_> = birth.iter().filter(|told| told.has("FDSTORE=1")).collect();
    assert!(kept.len() == 1 && kept[0].has("FDNAME=lives") && kept[0].has("FDPOLL=0"), "{birth:?}");
    assert_eq!(kept[0].descriptors.len(), 1);
    assert_eq!(supervisor(&gateway), "systemd");
    assert!(!home.pid_file().exists(), "under systemd there is no pid file");
    for _ in 0..3 {
        manager.hears("WATCHDOG=1");
    }
    let before = micros_since_boot();
    gateway.signal(Signal::HUP);
    let reloading = manager.hears("RELOADING=1");
    let began: u64 = reloading.value("MONOTONIC_USEC").and_then(|time| time.parse().ok()).expect("a time");
    assert!((before..=micros_since_boot()).contains(&began), "{before} {reloading:?}");
    assert!(manager.hears("READY=1").value("STATUS").is_some_and(|status| status.starts_with("serving")));
    std::fs::write(home.config_file(), "nonsense").expect("written");
    gateway.signal(Signal::HUP);
    manager.hears("RELOADING=1");
    let refused = manager.hears("READY=1");
    assert!(refused.value("STATUS").is_some_and(|status| status.contains("reload refused")), "{refused:?}");
    std::thread::scope(|scope| {
        let text = "a turn that takes about two seconds to be said all the way to its end";
        let (address, key) = (gateway.address(), gateway.key());
        let asking = scope.spawn(move || {
            let body = serde_json::json!({ "messages": [{ "role": "user", "content": text }] }).to_string();
            let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n");
            let head = format!("{head}connection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            crate::gateway::raw(address, (head + &body).as_bytes())
        });
        gateway.await_fact("the turn runs", |gateway| {
            gateway.status().is_some_and(|status| status["parts"]["turns"]["running"] == 1)
        });
        gateway.signal(Signal::TERM);
        let stopping = manager.hears("STOPPING=1");
        assert!(stopping.value("STATUS").is_some_and(|status| status.contains("SIGTERM")), "{stopping:?}");
        manager.until("an extension", |told| told.value("EXTEND_TIMEOUT_USEC").is_some());
        manager.hears("WATCHDOG=1");
        let answer = asking.join().expect("no panic");
        assert_eq!((answer.status, answer.body.contains(text)), (200, true), "{answer:?}");
    });
    assert!(gateway.wait().success());
    let after: Vec<_> = manager.told.try_iter().collect();
    assert!(!after.iter().any(|told| told.has("READY=1") || told.has("STOPPING=1")), "{after:?}");
}

#[test]
fn the_watchdog_keeps_no_stop_waiting() {
    let home = Home::new();
    let socket = home.path().join("notify");
    let manager = Manager::at(&socket);
    let mut command = addressed(&home, socket.to_str().expect("UTF-8"));
    // As our units have it: ten seconds between two pings.
    command.env("WATCHDOG_USEC", "30000000");
    let mut gateway = home.start_by(command);
    manager.hears("WATCHDOG=1");
    assert!(gateway.terminate().success());
    assert!(!gateway.log().contains("WARN"), "{}", gateway.log());
    assert!(!home.state().join("gateway.db-wal").exists(), "the store was closed in order");
}

#[test]
fn the_watchdog_of_another_process_is_not_ours_to_feed() {
    let home = Home::new();
    let socket = home.path().join("notify");
    let manager = Manager::at(&socket);
    for (owner, fed) in [("1", false), ("$$", true)] {
        let script = format!("WATCHDOG_PID={owner} {ADDRESSED}");
        let mut command = home.wrapped("/bin/sh", &["-c", &script, BINARY], "run");
        command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "300000");
        let mut gateway = home.start_by(command);
        // The first ping comes at once, so a stop is late enough to have missed none.
        assert!(gateway.terminate().success());
        let life = manager.until("STOPPING", |told| told.has("STOPPING=1"));
        assert_eq!(life.iter().any(|told| told.has("WATCHDOG=1")), fed, "WATCHDOG_PID={owner}: {life:?}");
    }
}

#[test]
fn what_the_manager_keeps_slows_a_start_after_starts_that_died_and_stops_none() {
    // Two times each, in microseconds since boot: begun, and never ready.
    let stillborn: Vec<u8> = (1..=5u64).flat_map(|n| [n.to_le_bytes(), 0u64.to_le_bytes()]).flatten().collect();
    for (what, bytes, waits) in [("five dead starts", stillborn, true), ("garbage", vec![0xff; 77], false)] {
        let home = Home::new();
        let socket = home.path().join("notify");
        let manager = Manager::at(&socket);
        let memory = home.path().join("lives");
        std::fs::write(&memory, &bytes).expect("written");
        let script =
            format!("exec 3<>{}; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=lives {ADDRESSED}", memory.display());
        let mut command = home.wrapped("/bin/sh", &["-c", &script, BINARY], "run");
        command.env("NOTIFY_SOCKET", &socket);
        let gateway = home.start_by(command);
        let birth = manager.until("READY", |told| told.has("READY=1"));
        let waited =
            birth.iter().any(|told| told.value("STATUS").is_some_and(|status| status.starts_with("waiting 500")));
        assert_eq!(waited, waits, "{what}: {birth:?}");
        assert_eq!(birth.iter().any(|told| told.value("EXTEND_TIMEOUT_USEC").is_some()), waits, "{what}: {birth:?}");
        assert!(!birth.iter().any(|told| told.has("FDSTORE=1")), "{what}: it is kept already");
        if waits {
            let after = std::fs::read(&memory).expect("read");
            assert_eq!((after.len(), &after[..80]), (96, &bytes[..]), "one more life");
            assert!(after[88..96] != [0; 8], "which became ready");
        }
        drop(gateway);
    }
}

#[test]
fn an_abstract_notify_socket_is_one_too() {
    let home = Home::new();
    let name = format!("hermes-gateway-test-{}", std::process::id());
    let manager = Manager::new(SocketAddr::from_abstract_name(&name).expect("an address"));
    let mut gateway = home.start_by(addressed(&home, &format!("@{name}")));
    manager.hears("READY=1");
    assert_eq!(gateway.ask("hello"), "hello");
    assert!(gateway.terminate().success());
    manager.hears("STOPPING=1");
}

#[test]
fn a_handshake_for_somebody_else_is_not_answered() {
    let home = Home::new();
    let path = home.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    for foreign in ["1", "", "garbage"] {
        let mut command = home.command("run");
        command.env("NOTIFY_SOCKET", &path).env("SYSTEMD_EXEC_PID", foreign).env("WATCHDOG_USEC", "300000");
        let mut gateway = home.start_by(command);
        assert_eq!(supervisor(&gateway), "stand-alone");
        assert!(home.pid_file().exists(), "the pid file decides here");
        gateway.signal(Signal::HUP);
        gateway.await_fact("it reloads", |gateway| gateway.log().contains("reloaded"));
        assert!(gateway.terminate().success());
    }
    socket.set_nonblocking(true).expect("set");
    assert_eq!(socket.recv(&mut [0; 64]).expect_err("not a single datagram").kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_notify_socket_that_is_gone_or_never_was_harms_nobody() {
    for gone_later in [true, false] {
        let home = Home::new();
        let path = home.path().join("notify");
        let manager = gone_later.then(|| Manager::at(&path));
        let mut gateway = home.start_by(addressed(&home, path.to_str().expect("UTF-8")));
        if let Some(manager) = manager {
            manager.hears("READY=1");
            drop(manager);
            std::fs::remove_file(&path).expect("removed");
        }
        assert_eq!(gateway.ask("hello"), "hello");
        for _ in 0..2 {
            assert!(home.output("reload", &[]).status.success());
        }
        assert!(gateway.terminate().success());
        assert_eq!(gateway.log().matches("cannot be notified").count(), 1, "{}", gateway.log());
    }
}

#[test]
fn a_notify_socket_that_nobody_reads_harms_nobody() {
    let home = Home::new();
    let path = home.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    let filler = UnixDatagram::unbound().expect("a socket");
    filler.set_nonblocking(true).expect("set");
    let fill = || while filler.send_to(b"X_FULL=1", &path).is_ok() {};
    let mut command = addressed(&home, path.to_str().expect("UTF-8"));
    command.env("WATCHDOG_USEC", "300000");
    let mut gateway = home.start_by(command);
    while !receive(&socket).expect("a datagram").has("READY=1") {}
    fill();
    assert_eq!(gateway.ask("hello"), "hello");
    assert!(home.output("reload", &[]).status.success());
    assert!(gateway.terminate().success());
}
