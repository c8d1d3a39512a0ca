//! Ends at any moment of a life, the first ones of start-up above all; nothing is touched in between.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Random, holders};
use crate::gateway::{Home, PATIENCE};

/// Rounds of start, kill, start.
const KILLS: usize = 200;
/// A kill comes within this time after the start: before, while and after the gateway gets ready.
const LIFE: Duration = Duration::from_millis(30);
/// Rounds of a first start, kill, start.
const FIRST_STARTS: usize = 150;
/// Rounds of starters on an obstacle, all killed while they move it aside.
const CROWDS: usize = 100;
/// Starters in each.
const CROWD: usize = 3;
/// A kill of them comes within this time after their starts.
const TURN: Duration = Duration::from_millis(8);
/// A kill of a first start comes within this time: it takes a few milliseconds to make a store.
const FIRST_START: Duration = Duration::from_millis(20);
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

/// A store that is just being made is another thing to be killed in than one that is there.
#[test]
fn a_first_start_that_is_killed_at_any_moment_blocks_no_second() {
    let mut random = Random::seeded("first starts");
    for _ in 0..FIRST_STARTS {
        let home = Home::new();
        let mut victim = spawn(&home, "victim");
        random.pass(FIRST_START);
        victim.kill().and_then(|()| victim.wait()).expect("a child");
        let gateway = home.start();
        assert_eq!(gateway.ask("second"), "second");
    }
}

#[test]
fn starters_that_are_killed_while_they_move_an_obstacle_aside_block_nobody() {
    let home = Home::new();
    fs::create_dir(home.runtime()).expect("made");
    let mut random = Random::seeded("crowds");
    let mut moved = 0;
    for round in 1..=CROWDS {
        fs::create_dir_all(home.pid_file().join("precious")).expect("an obstacle");
        let mut victims: Vec<_> = (0..CROWD).map(|n| spawn(&home, &format!("victim {n}"))).collect();
        random.pass(TURN);
        for victim in &mut victims {
            victim.kill().and_then(|()| victim.wait()).expect("a child");
        }
        moved += usize::from(!home.pid_file().is_dir());
        let mut gateway = home.start();
        assert_eq!(holders(&home.pid_file()), [gateway.pid()]);
        gateway.kill();
        let kept = |n| home.runtime().join(format!("gateway.pid.set-aside.{n}/precious")).is_dir();
        assert!((1..=round).all(kept) && !kept(round + 1), "round {round}: each obstacle was moved once");
        fs::remove_file(home.pid_file()).expect("a file is there");
    }
    eprintln!("in {moved} of {CROWDS} rounds somebody had moved it before all were killed");
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
