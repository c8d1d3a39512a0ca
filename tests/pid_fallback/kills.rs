//! Ends at any moment of a life, the first ones of start-up above all; nothing is touched in between.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Random;
use crate::gateway::{Home, PATIENCE};

/// Rounds of start, kill, start.
const KILLS: usize = 200;
/// A kill comes within this time after the start: before, while and after the gateway gets ready.
const LIFE: Duration = Duration::from_millis(30);
/// Rounds of start and SIGTERM.
const TERMS: usize = 100;
/// A SIGTERM comes within this time after the start.
const START: Duration = Duration::from_millis(15);

fn spawn(home: &Home, log: &str) -> Child {
    let log = fs::File::create(home.path().join(log)).expect("a log file");
    home.command("run").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("the binary starts")
}

#[test]
fn two_hundred_kills_at_any_moment_never_block_a_start() {
    let home = Home::new();
    let mut random = Random::seeded("kills");
    let (mut unready, mut slowest) = (0, Duration::ZERO);
    for round in 0..KILLS {
        let mut victim = spawn(&home, "victim");
        random.pass(LIFE);
        victim.kill().expect("it can be killed");
        let status = victim.wait().expect("a child");
        let log = fs::read_to_string(home.path().join("victim")).expect("its log");
        assert_eq!(status.signal(), Some(9), "round {round}: it ended by itself\n{log}");
        unready += usize::from(!log.contains("gateway ready"));
        let begun = Instant::now();
        let mut gateway = home.start();
        slowest = slowest.max(begun.elapsed());
        let text = format!("round {round}");
        assert_eq!(gateway.ask(&text), text);
        gateway.kill();
    }
    eprintln!("{unready} of {KILLS} were killed before they were ready; the slowest start took {slowest:?}");
}

#[test]
fn sigterm_at_any_moment_of_a_start_is_a_clean_end() {
    let home = Home::new();
    let mut random = Random::seeded("terms");
    let (mut deaf, mut slowest) = (0, Duration::ZERO);
    for round in 0..TERMS {
        let mut starter = spawn(&home, "starter");
        random.pass(START);
        let begun = Instant::now();
        kill_process(Pid::from_child(&starter), Signal::TERM).expect("it can be signalled");
        let status = loop {
            match starter.try_wait().expect("a child") {
                Some(status) => break status,
                None if begun.elapsed() > PATIENCE => {
                    starter.kill().expect("it can be killed");
                    let log = fs::read_to_string(home.path().join("starter")).expect("its log");
                    panic!("round {round}: a SIGTERM was lost\n{log}");
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        slowest = slowest.max(begun.elapsed());
        let log = fs::read_to_string(home.path().join("starter")).expect("its log");
        match status.signal() {
            // The handlers are there before the first word.
            Some(15) => assert!(!log.contains("gateway started"), "round {round}: handled, and died of it\n{log}"),
            _ => assert!(status.success(), "round {round}: {status}\n{log}"),
        }
        deaf += usize::from(status.signal() == Some(15));
        let mut gateway = home.start();
        assert_eq!(gateway.ask("next"), "next");
        gateway.kill();
    }
    eprintln!("{deaf} of {TERMS} had no handlers yet; the slowest end took {slowest:?}");
    assert!(deaf < TERMS, "not one SIGTERM came late enough to be handled");
    assert!(slowest < Duration::from_secs(1), "an end of a start took {slowest:?}");
}
