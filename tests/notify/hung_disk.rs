//! A disk that hangs in earnest, and what becomes of the watchdog, of everybody who waits, and of what was said.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Manager, addressed};
use crate::disk::Disk;
use crate::gateway::{Answer, Gateway, Home, PATIENCE, raw};
use crate::pid_fallback::Bystander;
use crate::store_faults::{stopped_store, turns};

/// Without a ping for this long a process is dead, for systemd.
const WATCHDOG: Duration = Duration::from_millis(300);

fn watched(home: &Home, socket: &Path) -> Gateway {
    let mut command = addressed(home, socket.to_str().expect("UTF-8"));
    command.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
    home.start_by(command)
}

/// Something that can be asked from another thread.
fn asking(gateway: &Gateway, text: &str) -> impl FnOnce() -> Answer + use<> {
    let (address, key) = (gateway.address(), gateway.key());
    let body = serde_json::json!({ "messages": [{ "role": "user", "content": text }] }).to_string();
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n");
    let head = format!("{head}connection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    move || raw(address, (head + &body).as_bytes())
}

/// Whether the thread that writes is in a sleep that nothing ends but the disk.
fn writer_hangs(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten();
    let stat = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
    tasks.map(stat).any(|stat| stat.contains("(store-writer) D "))
}

/// Pings that came within this time.
fn pings(manager: &Manager, during: Duration) -> usize {
    let end = Instant::now() + during;
    let mut count = 0;
    loop {
        match manager.told.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(told) => count += usize::from(told.has("WATCHDOG=1")),
            Err(RecvTimeoutError::Timeout) => return count,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn a_hung_disk_starves_the_watchdog_and_when_it_heals_all_is_answered_and_nothing_is_lost() {
    let home = Home::new();
    let Some(mut disk) = Disk::new() else { return };
    disk.mount(&home.state());
    let socket = home.path().join("notify");
    let manager = Manager::at(&socket);
    let mut gateway = watched(&home, &socket);
    assert_eq!(gateway.ask("before"), "before");
    let fed = pings(&manager, WATCHDOG * 10);
    let texts: Vec<_> = (0..5).map(|n| format!("while it hangs, {n}")).collect();
    std::thread::scope(|scope| {
        let hung = disk.hang();
        let asked: Vec<_> = texts.iter().map(|text| scope.spawn(asking(&gateway, text))).collect();
        gateway.await_fact("the disk hangs", |gateway| writer_hangs(gateway.pid()));
        let begun = Instant::now();
        // The one that was under way.
        while pings(&manager, WATCHDOG) > 0 {
            assert!(begun.elapsed() < PATIENCE, "the watchdog is fed on and on");
        }
        assert_eq!(pings(&manager, WATCHDOG * 10), 0, "of {fed} in as long a time before");
        // Nothing else is stuck, and it is told.
        assert_eq!(gateway.request("GET", "/health", "").status, 200);
        let ready = gateway.request("GET", "/health/ready", "");
        assert_eq!((ready.status, &ready.json()["parts"]["store"]["ok"]), (503, &false.into()), "{ready:?}");
        assert!(!asked.iter().any(|asked| asked.is_finished()), "nobody was told what is not on disk");
        drop(hung);
        for (asked, text) in asked.into_iter().zip(&texts) {
            let answer = asked.join().expect("no panic");
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.json()["choices"][0]["message"]["content"], **text);
        }
        manager.hears("WATCHDOG=1");
    });
    assert_eq!(gateway.ask("after"), "after");
    assert!(fed > 10, "{fed}");
    assert!(gateway.terminate().success());
    let store = stopped_store(&home.state());
    for text in texts.iter().map(String::as_str).chain(["before", "after"]) {
        assert_eq!((turns(&store, "completed", text), turns(&store, "%", text)), (1, 1), "{text}");
    }
}

#[test]
fn whoever_is_stopped_or_killed_on_a_hung_disk_ends_when_it_heals_and_the_next_life_lacks_nothing() {
    let home = Home::new();
    home.configure("stop.grace = \"1s\"\n");
    let Some(mut disk) = Disk::new() else { return };
    disk.mount(&home.state());
    for signal in [Signal::TERM, Signal::KILL] {
        let before = format!("before {signal:?}");
        let mut gateway = home.start();
        assert_eq!(gateway.ask(&before), before);
        let status = std::thread::scope(|scope| {
            // Whoever hangs as well is killed and reaped after the disk is healed.
            let mut second = None;
            let hung = disk.hang();
            let asked = scope.spawn(asking(&gateway, "never acknowledged"));
            gateway.await_fact("the disk hangs", |gateway| writer_hangs(gateway.pid()));
            gateway.signal(signal);
            if signal == Signal::TERM {
                gateway.await_fact("it waits for nobody", |gateway| gateway.log().contains("gateway stopped\n"));
            }
            // Not even SIGKILL ends it. It holds its locks, so nobody else writes where it may still write.
            let log = std::fs::File::create(home.path().join("second")).expect("a log file");
            let second = second.insert(Bystander::running(home.command("run").stderr(log)));
            let mut refused = None;
            gateway.await_fact("a second one is refused", |_| {
                refused = second.child.try_wait().expect("a child");
                refused.is_some()
            });
            let told = std::fs::read_to_string(home.path().join("second")).expect("its log");
            assert_eq!(refused.and_then(|status| status.code()), Some(73), "{told}");
            assert!(told.contains(&format!("pid {}", gateway.pid())), "{told}");
            drop(hung);
            let status = gateway.wait();
            assert_ne!(asked.join().expect("no panic").status, 200);
            status
        });
        assert_eq!(
            (status.code(), status.signal()),
            if signal == Signal::TERM { (Some(0), None) } else { (None, Some(9)) }
        );
        let mut next = home.start();
        assert_eq!(next.ask("next"), "next");
        assert!(next.terminate().success());
        let store = stopped_store(&home.state());
        assert_eq!((turns(&store, "completed", &before), turns(&store, "completed", "never acknowledged")), (1, 0));
    }
}
