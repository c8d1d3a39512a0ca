//! A disk that hangs under a supervised gateway: not even SIGKILL ends it then, and systemd starts the next one beside it.

use std::os::unix::fs::MetadataExt;

use super::{PATIENCE, machine};
use crate::disk::Disk;
use crate::machine::Machine;

/// A machine that has this disk under `state`.
fn machine_with(disk: &Disk, state: &str) -> Option<Machine> {
    let machine = machine()?;
    let device = disk.device().metadata().expect("the device").rdev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    machine.root_sh(&format!("mkdir -p {state}; mknod /dev/disk b {major} {minor}; mount /dev/disk {state}")).ok();
    Some(machine)
}

/// systemd's patience, cut short: for the watchdog, for who does not end by a signal, and for a start.
const IMPATIENT: &str = "[Service]\nWatchdogSec=2s\nTimeoutStopSec=1s\nTimeoutStartSec=5s";
/// The last of these.
const START_SECONDS: u64 = 5;

#[test]
fn a_gateway_on_a_hung_disk_is_killed_by_the_watchdog_and_the_next_one_serves_when_the_disk_is_well() {
    const STATE: &str = "/home/person/.local/state/hermes-gateway/default";
    let Some(mut disk) = Disk::new() else { return };
    let Some(machine) = machine_with(&disk, STATE) else { return };
    machine.root_sh(&format!("chown -R person: ~person/.local; chmod 700 {STATE}")).ok();
    machine.person(&["hermes-gateway", "install", "--no-start"]).ok();
    machine.drop_in(IMPATIENT);
    machine.person(&["systemctl", "--user", "start", "hermes-gateway"]).ok();
    assert_eq!(machine.ask("before"), "before");
    let hung_pid = machine.shown("MainPID");
    let hung = disk.hang();
    let mut asking = machine.spawn_person(&["hermes-gateway", "send", "while it hangs"]);
    machine.await_fact("the next one waits for the end of the first", PATIENCE, || {
        machine.shown("ActiveState") == "activating"
            && machine.shown("StatusText").contains(&format!("pid {hung_pid}, hermes-gateway.service of user 1000:"))
    });
    let told = |what: &str| {
        let records = machine.journal("-u hermes-gateway.service");
        records.iter().any(|record| record["MESSAGE"].as_str().is_some_and(|text| text.contains(what)))
    };
    assert!(told("Watchdog timeout") && told("it was killed and has not ended"));
    let waiting = machine.shown("MainPID");
    drop(hung);
    machine.await_active("it serves when the disk is well");
    assert_eq!((machine.shown("MainPID"), machine.shown("NRestarts").as_str()), (waiting, "1"));
    assert_eq!(machine.ask("after"), "after");
    asking.kill().and_then(|()| asking.wait()).expect("ours");
}

#[test]
fn so_it_is_in_the_sandbox_of_the_system_however_long_it_takes() {
    // DynamicUser= keeps it below this directory, which is root's alone.
    const STATE: &str = "/var/lib/private/hermes-gateway";
    let Some(mut disk) = Disk::new() else { return };
    let Some(machine) = machine_with(&disk, STATE) else { return };
    machine.root(&["chmod", "700", "/var/lib/private"]).ok();
    machine.root(&["hermes-gateway", "install", "--system", "--no-start"]).ok();
    machine
        .root_sh(&format!(
            "mkdir -p /etc/systemd/system/hermes-gateway.service.d\n\
             cat > /etc/systemd/system/hermes-gateway.service.d/test.conf <<'END'\n{IMPATIENT}\nEND\n\
             systemctl daemon-reload; systemctl start hermes-gateway"
        ))
        .ok();
    let shown = |property| machine.root(&["systemctl", "show", "--value", "-p", property, "hermes-gateway"]).ok();
    let send = |text| machine.root(&["hermes-gateway", "send", "--system", text]).ok();
    assert_eq!(send("before"), "before");
    let hung_pid = shown("MainPID");
    let hung = disk.hang();
    machine.root_sh("hermes-gateway send --system 'while it hangs' >/dev/null 2>&1 &").ok();
    // Its sandbox hides from it whose number that is.
    let waits = || {
        shown("ActiveState") == "activating"
            && shown("StatusText")
                == format!("waiting for pid {hung_pid}: it was killed and has not ended; does its disk hang?")
    };
    machine.await_fact("the next one waits for the end of the first", PATIENCE, waits);
    let waiting = shown("MainPID");
    let began: u64 = shown("ExecMainStartTimestampMonotonic").parse().expect("microseconds since boot");
    let uptime = || machine.root_sh("cut -d . -f 1 /proc/uptime").ok().parse::<u64>().expect("seconds");
    machine.await_fact("it has waited for longer than a start may take", PATIENCE, || {
        uptime() > began / 1_000_000 + START_SECONDS + 2
    });
    assert!(waits());
    drop(hung);
    machine.await_fact("it serves when the disk is well", PATIENCE, || shown("ActiveState") == "active");
    assert_eq!((shown("MainPID"), shown("NRestarts").as_str()), (waiting, "1"));
    assert_eq!(send("after"), "after");
}
