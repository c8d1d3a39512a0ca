//! Restart in place: one process, one lock, one set of sockets, another life.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

use super::{Random, can_run, control, ended, said};
use crate::gateway::{BINARY, Home};

/// Restarts under observation.
const RESTARTS: u64 = 20;

fn restart(home: &Home) {
    let restarted = ended(home.command("restart"));
    assert!(restarted.status.success(), "{}", said(&restarted));
}

/// What was seen while a gateway was restarted again and again.
pub struct Seen {
    asked: u64,
    /// Requests on an accepted connection that got no answer.
    pub unanswered: Vec<String>,
}

/// Restarts it under the eyes of observers of its identity, its locks and its sockets.
pub fn observe_restarts() -> Seen {
    let home = Home::new();
    let mut gateway = home.start();
    let over = AtomicBool::new(false);
    let (pid, address) = (gateway.pid(), gateway.address());
    let control = home.runtime().join("control.sock");
    let mut lives = vec![gateway.status().expect("a status")["identity"]["life"].clone()];
    let (looks, seen) = thread::scope(|scope| {
        let watch = scope.spawn(|| watch_locks(&home, &over));
        let clients = [
            scope.spawn(|| ask_on(|| TcpStream::connect(address), &over)),
            scope.spawn(|| ask_on(|| TcpStream::connect(address), &over)),
            scope.spawn(|| ask_on(|| UnixStream::connect(&control), &over)),
        ];
        {
            // Also when a restart fails: the scope waits for the observers.
            let _observers_end = Raised(&over);
            for generation in 1..=RESTARTS {
                restart(&home);
                let identity = gateway.status().expect("it answers")["identity"].clone();
                assert_eq!(identity["pid"], pid);
                assert_eq!(identity["generation"], generation);
                assert!(!lives.contains(&identity["life"]), "another life");
                lives.push(identity["life"].clone());
            }
        }
        let mut all = Seen { asked: 0, unanswered: Vec::new() };
        for client in clients {
            let seen = client.join().expect("ends").expect("nobody is refused");
            all.asked += seen.asked;
            all.unanswered.extend(seen.unanswered);
        }
        (watch.join().expect("ends").expect("the locks were held all the time"), all)
    });
    let Seen { asked, unanswered } = &seen;
    eprintln!("{RESTARTS} restarts, {looks} looks at the locks, {asked} requests, unanswered: {unanswered:#?}");
    assert!(looks > RESTARTS && *asked > RESTARTS, "nobody looked");
    assert_eq!(gateway.ask("hello"), "hello");
    assert!(gateway.terminate().success());
    seen
}

#[test]
fn a_restart_keeps_the_process_and_the_locks_and_refuses_no_connection() {
    observe_restarts();
}

/// Raises a flag when it goes.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tries to take both locks, again and again; how often, or which could be had. The kernel's table would tell a moment
/// without a holder only to whoever looks in it; a lock that is free for this moment falls to the first who asks.
fn watch_locks(home: &Home, over: &AtomicBool) -> Result<u64, String> {
    let paths = [home.pid_file(), home.state()];
    let files = paths.each_ref().map(|path| fs::File::open(path).expect("it is there"));
    let mut looks = 0;
    while !over.load(Ordering::Relaxed) {
        for (file, path) in files.iter().zip(&paths) {
            if flock(file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Err(format!("look {looks}: the lock of {} was free", path.display()));
            }
        }
        looks += 1;
    }
    Ok(looks)
}

/// Asks again and again, on a connection each; fails when one is refused.
fn ask_on<S: Read + Write>(connect: impl Fn() -> io::Result<S>, over: &AtomicBool) -> Result<Seen, String> {
    let mut seen = Seen { asked: 0, unanswered: Vec::new() };
    while !over.load(Ordering::Relaxed) {
        seen.asked += 1;
        let mut stream = connect().map_err(|e| format!("request {}: {e}", seen.asked))?;
        let request = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let mut answer = String::new();
        let answered = stream.write_all(request).and_then(|()| stream.read_to_string(&mut answer));
        if answered.is_err() || !answer.starts_with("HTTP/1.1 200") {
            seen.unanswered.push(format!("request {}: {answered:?} '{answer}'", seen.asked));
        }
    }
    Ok(seen)
}

#[test]
fn a_restart_runs_the_binary_that_lies_there_now() {
    let home = Home::new();
    let (running, update) = (home.path().join("hermes-gateway"), home.path().join("update"));
    for copy in [&running, &update] {
        fs::copy(BINARY, copy).expect("a copy of the binary");
    }
    let program = running.display().to_string();
    let mut gateway = home.start_by(home.wrapped(&program, &[], "run"));
    let image = || fs::metadata(format!("/proc/{}/exe", gateway.pid())).expect("its image").ino();
    assert_eq!(image(), running.metadata().expect("metadata").ino());
    let updated = update.metadata().expect("metadata").ino();
    // As every package manager does it.
    fs::rename(&update, &running).expect("the binary is replaced");
    assert_ne!(image(), updated);
    restart(&home);
    assert_eq!(image(), updated, "the new binary runs");
    restart(&home);
    assert_eq!(gateway.ask("hello"), "hello");
    assert!(gateway.terminate().success());
}

/// How gateways ended that got a SIGTERM shortly after they had been told to restart.
#[derive(Debug, Default)]
pub struct Overtaken {
    clean: u32,
    /// Died of it: it came when the next program had no handlers yet.
    pub deaf: u32,
    /// Did not end.
    pub lost: u32,
}

/// Has restarts overtaken by a SIGTERM, which comes within `soon` after the restart was accepted.
pub fn overtake_restarts(rounds: u32, soon: Duration) -> Overtaken {
    let home = Home::new();
    let mut random = Random::seeded("overtaken restarts");
    let mut all = Overtaken::default();
    for round in 0..rounds {
        let mut gateway = home.start();
        let accepted = control(&home, "POST /restart").expect("it answers");
        assert!(accepted.starts_with("HTTP/1.1 202"), "{accepted}");
        random.pass(soon);
        gateway.signal(Signal::TERM);
        let asked = Instant::now();
        let ended = loop {
            match gateway.child.try_wait().expect("a child") {
                Some(status) => break Some(status),
                // Long after any end that is under way.
                None if asked.elapsed() > Duration::from_secs(1) => break None,
                None => thread::sleep(Duration::from_millis(1)),
            }
        };
        match ended {
            Some(status) if status.success() => all.clean += 1,
            Some(status) if status.signal() == Some(15) => all.deaf += 1,
            Some(status) => panic!("round {round}: {status}\n{}", gateway.log()),
            None => {
                all.lost += 1;
                let status = gateway.status().expect("it hangs");
                assert_eq!(status["identity"]["generation"], 1, "round {round}: neither ended nor restarted");
                assert!(gateway.terminate().success());
            }
        }
    }
    eprintln!("of {rounds}: {all:?}");
    all
}

#[test]
fn a_sighup_right_after_a_restart_ends_nobody() {
    let home = Home::new();
    let mut random = Random::seeded("overtaken restarts");
    let mut gateway = home.start();
    for generation in 1..=60 {
        let accepted = control(&home, "POST /restart").expect("it answers");
        assert!(accepted.starts_with("HTTP/1.1 202"), "{accepted}");
        random.pass(Duration::from_millis(8));
        gateway.signal(Signal::HUP);
        gateway.await_fact("the next life serves", |gateway| {
            gateway.status().is_some_and(|s| s["state"] == "running" && s["identity"]["generation"] == generation)
        });
    }
    assert!(gateway.terminate().success());
}

/// By proc_pid_status(5): which threads have a signal blocked that asks for something.
fn holding_signals(pid: u32) -> Vec<String> {
    let asking = [Signal::TERM, Signal::INT, Signal::HUP].iter().fold(0, |set, s| set | 1u64 << (s.as_raw() - 1));
    let blocks = |status: &String| {
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).expect("a mask");
        u64::from_str_radix(blocked.trim(), 16).expect("a mask") & asking != 0
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten();
    tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok()).filter(blocks).collect()
}

#[test]
fn a_gateway_that_serves_holds_no_signal_whatever_its_parent_left_it() {
    let blocked = ["--block-signal=TERM", "--block-signal=INT", "--block-signal=HUP"];
    if !can_run("blocked signals", &[&["env"][..], &blocked, &["true"]].concat()) {
        return;
    }
    let home = Home::new();
    let mut gateway = home.start_by(home.wrapped("env", &[&blocked[..], &[BINARY]].concat(), "run"));
    for life in 0..3 {
        // Its children would inherit what any of its threads held. While a thread begins, the C library holds all.
        gateway.await_fact("no thread holds a signal", |gateway| holding_signals(gateway.pid()).is_empty());
        if life < 2 {
            restart(&home);
        }
    }
    gateway.signal(Signal::HUP);
    gateway.await_fact("it reloads", |gateway| gateway.log().contains("reloaded"));
    assert!(gateway.terminate().success());
}

#[test]
fn sigterm_right_after_a_restart_never_hangs_it() {
    overtake_restarts(60, Duration::from_millis(20));
}
