//! What once did not hold: each of these failed before its mend.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use super::holders::contend;
use super::namespaces::{UNSHARE, can_unshare, mounted, start};
use super::restart::{observe_restarts, overtake_restarts};
use super::{NO_UNIT, can_run, ended, said};
use crate::gateway::{BINARY, Home};

#[test]
fn stop_of_nothing_is_a_success() {
    let home = Home::new();
    let stopped = super::stop(&home);
    assert!(stopped.status.success(), "{}", said(&stopped));
}

#[test]
fn a_dead_control_socket_never_blocks_a_start_whoever_listens_on_that_name_elsewhere() {
    if !can_run("mount namespaces", &["unshare", "--mount", "true"]) {
        return;
    }
    // Two containers of one image on the host's network: same path, other file.
    let (one, two) = (Home::new(), Home::new());
    let at = tempfile::tempdir().expect("a mount point");
    two.start_by(mounted(at.path(), &two, "run")).kill();
    let _one = one.start_by(mounted(at.path(), &one, "run"));
    let again = two.start_by(mounted(at.path(), &two, "run"));
    assert_eq!(again.ask("again"), "again");
}

#[test]
fn relative_runtime_directories_of_two_gateways_do_not_meet() {
    let relative = |home: &Home| {
        let mut command = Command::new(BINARY);
        command.current_dir(home.path()).env_clear().args(["run", "--config", "gateway.toml"]);
        command.args(["--state-dir", "state", "--runtime-dir", "run"]);
        command
    };
    let (one, two) = (Home::new(), Home::new());
    two.start_by(relative(&two)).kill();
    let _one = one.start_by(relative(&one));
    let again = two.start_by(relative(&two));
    assert_eq!(again.ask("again"), "again");
}

#[test]
fn a_restart_listens_where_the_configuration_says_now() {
    let free = || TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let (before, after) = (free(), free());
    let home = Home::new();
    home.configure(&format!("http.listen = [\"{before}\"]\n"));
    let gateway = home.start();
    home.configure(&format!("http.listen = [\"{after}\"]\n"));
    let restarted = ended(home.command("restart"));
    assert!(restarted.status.success(), "{}", said(&restarted));
    let listeners = gateway.status().expect("a status")["identity"]["listeners"].clone();
    assert_eq!(listeners[0], after.to_string(), "{listeners}");
    assert_eq!(listeners.as_array().map(Vec::len), Some(2), "it and the control socket: {listeners}");
}

#[test]
fn a_restart_keeps_a_port_that_the_kernel_chose() {
    let home = Home::new();
    let gateway = home.start();
    let listeners = || gateway.status().expect("a status")["identity"]["listeners"].clone();
    let before = listeners();
    let restarted = ended(home.command("restart"));
    assert!(restarted.status.success(), "{}", said(&restarted));
    assert_eq!(listeners(), before);
}

#[test]
fn a_starter_leaves_a_held_file_where_it_is_even_if_it_may_not_open_it() {
    const NOBODY: [&str; 5] = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let probe = [&["setpriv"][..], &NOBODY, &["true"]].concat();
    if !can_run("a gateway of root in the directories of another", &probe) {
        return;
    }
    let home = Home::new();
    let binary = home.path().join("hermes-gateway");
    fs::copy(BINARY, &binary).expect("a copy of the binary");
    for directory in [home.runtime(), home.state()] {
        fs::create_dir(&directory).expect("a directory");
        chown(directory, Some(65534), Some(65534)).expect("it is given away");
    }
    fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).expect("the mode is set");
    let mut roots = home.start();
    let inode = || home.pid_file().metadata().expect("the pid file is there").ino();
    let before = inode();
    let mut unprivileged = Command::new(&binary);
    unprivileged.uid(65534).gid(65534).env_clear().arg("run").arg("--config").arg(home.config_file());
    unprivileged.arg("--state-dir").arg(home.state()).arg("--runtime-dir").arg(home.runtime());
    super::assert_refused(unprivileged, roots.pid());
    assert_eq!(inode(), before, "the file was moved away from under its holder");
    assert!(super::stop(&home).status.success());
    assert!(roots.wait().success());
}

#[test]
fn a_restart_goes_on_when_the_binary_is_gone() {
    let home = Home::new();
    let binary = home.path().join("hermes-gateway");
    fs::copy(BINARY, &binary).expect("a copy of the binary");
    let mut gateway = home.start_by(home.wrapped(&binary.display().to_string(), &[], "run"));
    fs::remove_file(&binary).expect("it was there");
    // Not by the command, which looks for a successor for minutes.
    super::control(&home, "POST /restart").expect("it answers");
    gateway.await_fact("it is in its next life", |gateway| {
        gateway.status().is_some_and(|status| status["identity"]["generation"] == 1)
    });
}

#[test]
fn stop_reaches_a_gateway_in_a_sibling_container() {
    if !can_unshare() {
        return;
    }
    let home = Home::new();
    let mut gateway = start(&home, 1);
    let mut sibling = home.wrapped("unshare", &[&UNSHARE[..], &[BINARY]].concat(), "stop");
    sibling.args(NO_UNIT);
    let stopped = ended(sibling);
    assert!(stopped.status.success(), "{}", said(&stopped));
    assert!(gateway.wait().success());
}

#[test]
fn each_request_during_restarts_is_answered() {
    assert_eq!(observe_restarts().unanswered, [""; 0]);
}

#[test]
fn no_sigterm_is_lost_around_a_restart() {
    let overtaken = overtake_restarts(200, Duration::from_millis(8));
    assert_eq!((overtaken.lost, overtaken.deaf), (0, 0), "each was heard, by the one life or the next");
}

#[test]
fn a_blocked_sigterm_of_the_parent_is_heard() {
    if !can_run("a blocked signal", &["env", "--block-signal=TERM", "true"]) {
        return;
    }
    let home = Home::new();
    let mut gateway = home.start_by(home.wrapped("env", &["--block-signal=TERM", BINARY], "run"));
    assert!(gateway.terminate().success());
    // Sent before the program begins, and pending since.
    let early = ["--block-signal=TERM", "sh", "-c", "kill -TERM $$; exec \"$@\"", "sh", BINARY];
    let output = ended(home.wrapped("env", &early, "run"));
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn of_many_starters_on_an_obstacle_one_wins() {
    for _ in 0..20 {
        let home = Home::new();
        fs::create_dir_all(home.pid_file().join("precious")).expect("a directory");
        contend(&home);
        let aside = home.runtime().join("gateway.pid.set-aside.1/precious");
        assert!(aside.is_dir(), "the obstacle was kept");
    }
}

#[test]
fn a_stop_in_the_drain_of_a_restart_is_a_stop() {
    let home = Home::new();
    home.configure("[agents.echo]\nkind = \"echo\"\ndelay = \"1s\"\n");
    let mut gateway = home.start();
    let mut asking =
        home.command("send").arg("a turn of many seconds that a restart waits for").spawn().expect("it runs");
    gateway.await_fact("a turn runs", |gateway| {
        gateway.status().is_some_and(|status| status["parts"]["turns"]["running"] == 1)
    });
    super::control(&home, "POST /restart").expect("it answers");
    gateway.await_fact("it drains", |gateway| gateway.log().contains("gateway stopping: hermes-gateway restart"));
    let stopped = super::stop(&home);
    let _cut_off = asking.wait();
    assert!(stopped.status.success(), "{}", said(&stopped));
    assert!(gateway.wait().success());
}
