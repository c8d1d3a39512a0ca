//! Who holds the directories: one at a time, known by name, and never a dead one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::Signal;

use super::{Bystander, assert_answers, assert_refused, await_fact, await_itself, holders, said, stat};
use crate::gateway::{BINARY, Home};

/// Concurrent starters of which one may win.
const STARTERS: usize = 8;
/// How often the lock's file changes hands in a test.
const CYCLES: usize = 20;

fn replacing(home: &Home) -> Command {
    let mut command = home.command("run");
    command.arg("--replace");
    command
}

#[test]
fn a_second_gateway_is_refused_at_once_and_told_who_was_first() {
    let home = Home::new();
    let mut first = home.start();
    let record = fs::read(home.pid_file()).expect("the record");
    assert_refused(home.command("run"), first.pid());
    assert_eq!(fs::read(home.pid_file()).expect("the record"), record, "the loser wrote nothing");
    assert_eq!(first.ask("still there"), "still there");
    assert_answers(&home);
    assert!(first.terminate().success());
}

#[test]
fn a_second_gateway_in_another_runtime_directory_is_refused_the_store() {
    let home = Home::new();
    let mut first = home.start();
    let mut second = Command::new(BINARY);
    second.env_clear().arg("run").arg("--config").arg(home.config_file()).arg("--state-dir").arg(home.state());
    second.arg("--runtime-dir").arg(home.path().join("elsewhere"));
    assert_refused(second, first.pid());
    assert_eq!(first.ask("still there"), "still there");
    assert!(first.terminate().success());
}

#[test]
fn replacing_takes_over_from_the_gateway_that_runs() {
    let home = Home::new();
    let mut old = home.start();
    let mut newcomer = home.start_by(replacing(&home));
    assert!(old.wait().success(), "the old one was asked, not killed");
    await_itself(&mut newcomer);
    assert_answers(&home);
    assert_eq!(holders(&home.pid_file()), [newcomer.pid()]);
    assert!(newcomer.terminate().success());
    let mut alone = home.start_by(replacing(&home));
    assert_eq!(alone.ask("nobody to replace"), "nobody to replace");
    assert!(alone.terminate().success());
}

/// That it is killed when its time is up is not tested: its time is a minute.
#[test]
fn a_frozen_gateway_is_asked_first_and_replaced_when_it_ends() {
    let home = Home::new();
    let mut old = home.start();
    old.signal(Signal::STOP);
    let mut newcomer = thread::scope(|scope| {
        let newcomer = scope.spawn(|| home.start_by(replacing(&home)));
        old.await_fact("a SIGTERM waits for it", |old| has_pending(old.pid(), Signal::TERM));
        assert!(!newcomer.is_finished(), "nothing was taken from it while it lives");
        assert_eq!(holders(&home.pid_file()), [old.pid()]);
        old.signal(Signal::CONT);
        newcomer.join().expect("the newcomer serves")
    });
    assert!(old.wait().success());
    await_itself(&mut newcomer);
    assert_answers(&home);
    assert!(newcomer.terminate().success());
}

fn has_pending(pid: u32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let shared = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).expect("a mask");
    let mask = u64::from_str_radix(shared.trim(), 16).expect("a mask");
    mask & (1 << (signal.as_raw() - 1)) != 0
}

#[test]
fn the_file_is_never_removed_however_its_holder_ends() {
    let home = Home::new();
    home.start().kill();
    let inode = || home.pid_file().metadata().expect("the pid file is there").ino();
    let first = inode();
    for cycle in 0..CYCLES {
        let mut gateway = home.start();
        assert_eq!(holders(&home.pid_file()), [gateway.pid()]);
        match cycle % 3 {
            0 => gateway.kill(),
            1 => assert!(gateway.terminate().success()),
            _ => {
                let stopped = super::stop(&home);
                assert!(stopped.status.success(), "{}", said(&stopped));
                gateway.wait();
            }
        }
        assert_eq!(inode(), first, "cycle {cycle}");
    }
}

/// Starts many at once, of which one may win, and that one must hold the file, answer, and be found by `stop`.
pub fn contend(home: &Home) {
    // Ended with the test: a winner that nobody finds would run on.
    let spawn = || Bystander::running(home.command("run").stderr(Stdio::null()));
    let mut starters: Vec<_> = (0..STARTERS).map(|_| spawn()).collect();
    await_fact("all but one are refused", || {
        starters.retain_mut(|starter| {
            let ended = starter.child.try_wait().expect("a child");
            assert!(
                ended.is_none_or(|status| status.code() == Some(73)),
                "a loser is refused, and nothing else: {ended:?}"
            );
            ended.is_none()
        });
        starters.len() == 1
    });
    let mut winner = starters.pop().expect("one is left");
    await_fact("the winner answers", || super::control(home, "GET /status").is_ok());
    assert_eq!(holders(&home.pid_file()), [winner.pid()], "the winner holds the file");
    assert_answers(home);
    let stopped = super::stop(home);
    assert!(stopped.status.success(), "{}", said(&stopped));
    assert!(winner.child.wait().expect("a child").success());
}

#[test]
fn of_many_starters_at_once_one_wins() {
    let home = Home::new();
    // On nothing at all, and on dead records.
    for _ in 0..3 {
        contend(&home);
    }
}

#[test]
fn an_unreaped_predecessor_holds_nothing() {
    let home = Home::new();
    let dead = home.start();
    dead.signal(Signal::KILL);
    await_fact("it is a zombie", || stat(dead.pid()).is_some_and(|(state, _)| state == 'Z'));
    let mut gateway = home.start();
    assert_eq!(gateway.ask("next"), "next");
    assert_eq!(stat(dead.pid()).map(|(state, _)| state), Some('Z'), "nobody has reaped it meanwhile");
    assert!(gateway.terminate().success());
}
