//! What /proc says of a process. For telling people, and for recognising a process across time; never for deciding who
//! owns something: that is the kernel's locks' business.

use std::fs;

/// What makes a pid more than a number: the same pid with other start ticks is another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth {
    /// Clock ticks between boot and the process's start; no wall clock, so no clock step changes it.
    pub start_ticks: u64,
    /// Dead but not yet reaped.
    pub zombie: bool,
}

/// The birth of a living or unreaped process; `None` if there is none, or if `pid` is a mere thread.
pub fn birth(pid: u32) -> Option<Birth> {
    // /proc/TID can be opened for any thread; only a process's own number leads its group.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let group: u32 = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()?;
    (group == pid).then_some(())?;
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 3 (state) and 22 (starttime) of proc_pid_stat(5). The command in field 2 may hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<Birth> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    Some(Birth { start_ticks: fields.nth(18)?.parse().ok()?, zombie })
}

/// The command name of a process, at most 15 bytes.
pub fn command(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

/// The systemd unit that a process runs in: the innermost one of its control group.
pub fn unit(pid: u32) -> Option<String> {
    parse_unit(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
}

fn parse_unit(cgroup: &str) -> Option<String> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    let is_unit = |part: &&str| part.ends_with(".service") || part.ends_with(".scope");
    path.rsplit('/').find(is_unit).map(str::to_owned)
}

/// The processes of our own control group, which under systemd is our unit's, ourselves among them. It tells of those,
/// too, whose /proc a sandbox hides. Empty where there is no cgroup v2 to be read.
pub fn of_own_group() -> Vec<u32> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::")) else { return Vec::new() };
    let processes = fs::read_to_string(format!("/sys/fs/cgroup{path}/cgroup.procs")).unwrap_or_default();
    processes.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// This boot's id; pids and start ticks mean nothing across boots.
pub fn boot_id() -> Option<String> {
    libsystemd::id128::get_boot().ok().map(|id| id.lower_hex())
}

/// The inode of our pid namespace; pids mean nothing across namespaces.
pub fn pid_namespace() -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self/ns/pid").ok().map(|meta| meta.ino())
}

/// Our own resident memory, in bytes.
pub fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// How many descriptors we have open.
pub fn open_descriptors() -> Option<usize> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_recognised_and_a_thread_is_no_process() {
        let me = birth(std::process::id()).expect("we live");
        assert!(!me.zombie && me.start_ticks > 0);
        let (send, thread_id) = std::sync::mpsc::channel();
        let (_keep, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            send.send(rustix::thread::gettid().as_raw_pid()).expect("sent");
            let _closed = wait.recv();
        });
        let thread_id = thread_id.recv().expect("a thread id") as u32;
        assert_eq!(birth(thread_id), None);
        drop(_keep);
        thread.join().expect("ends");
        assert_eq!(birth(u32::MAX), None);
    }

    #[test]
    fn a_hostile_command_name_does_not_move_the_fields() {
        let stat = "7 (a) Z 1 2) S 1 7 7 0 -1 4194560 1 0 0 0 1 2 3 4 20 0 1 0 4711 1000 5 18";
        assert_eq!(parse_stat(stat), Some(Birth { start_ticks: 4711, zombie: false }));
        assert_eq!(parse_stat("garbage"), None);
    }

    #[test]
    fn the_innermost_unit_is_the_one() {
        let user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/hermes-gateway.service\n";
        assert_eq!(parse_unit(user).as_deref(), Some("hermes-gateway.service"));
        assert_eq!(parse_unit("0::/\n"), None);
    }
}
