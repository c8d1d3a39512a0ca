//! The pid file of the stand-alone mode, against everything that has ever blocked a start or killed a bystander.
//!
//! The lock decides who runs, the record is for people. So whatever lies in place of the file, a start works at once;
//! and whatever the record says, nobody but the holder of the lock is ever signalled.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::gateway::{Gateway, Home, PATIENCE};

mod holders;
mod kills;
mod mended;
mod namespaces;
mod records;
mod restart;

/// An instance that nobody has installed: `stop` falls back to the unit of its instance, and a test must not end the
/// gateway of whoever runs it.
const NO_UNIT: [&str; 2] = ["--instance", "pid-fallback-test"];
/// How long a start may take that loses: it must know at once.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A process that is none of the gateway's business. Any signal that ends or stops a process shows on it.
pub struct Bystander {
    pub child: Child,
}

impl Bystander {
    fn new() -> Self {
        Self::running(Command::new("sleep").arg("1000"))
    }

    pub fn running(command: &mut Command) -> Self {
        Self { child: command.spawn().expect("the command starts") }
    }

    /// One that is dead and waits to be reaped.
    fn zombie() -> Self {
        let zombie = Self::running(&mut Command::new("true"));
        await_fact("the child is a zombie", || stat(zombie.pid()).is_some_and(|(state, _)| state == 'Z'));
        zombie
    }

    /// One that holds the lock of this file. `flock` becomes `sleep`: the pid that has locked is the pid that lives.
    fn holding(path: &Path) -> Self {
        let holder = Self::running(Command::new("flock").args(["--no-fork", "-x"]).arg(path).args(["sleep", "1000"]));
        await_fact("it holds the lock", || holders(path) == [holder.pid()]);
        holder
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn start_ticks(&self) -> u64 {
        stat(self.pid()).expect("it is not reaped").1
    }

    fn assert_unharmed(&mut self, when: &str) {
        let ended = self.child.try_wait().expect("the child can be waited for");
        assert_eq!(ended, None, "{when}: a bystander was ended");
        assert_eq!(stat(self.pid()).map(|(state, _)| state), Some('S'), "{when}: a bystander was stopped");
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        // Ours alone: the child is reaped here, so its pid cannot be anybody else's.
        let _already_dead = self.child.kill();
        let _already_reaped = self.child.wait();
    }
}

/// State and start ticks of a process or thread, by proc_pid_stat(5).
fn stat(pid: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.nth(18)?.parse().ok()?))
}

/// Who has a `flock` on what lies at `path`, by the kernel's table.
fn holders(path: &Path) -> Vec<u32> {
    let Ok(inode) = path.metadata().map(|metadata| metadata.ino()) else { return Vec::new() };
    // By one read, during which the kernel lets nobody lock: between two, the lines that are left move.
    let mut table = vec![0; 1 << 16];
    let length = fs::File::open("/proc/locks").and_then(|mut file| file.read(&mut table));
    table.truncate(length.expect("the kernel's table of locks"));
    let table = String::from_utf8(table).expect("the table is text");
    let of_inode = |line: &str| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let ours = fields.get(1) == Some(&"FLOCK") && fields.get(5)?.rsplit(':').next()?.parse() == Ok(inode);
        ours.then(|| fields.get(4)?.parse().ok()).flatten()
    };
    table.lines().filter_map(of_inode).collect()
}

/// Waits for a fact that is no gateway's.
fn await_fact(what: &str, mut fact: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !fact() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a command that must end soon. One that does not is killed: a newcomer that runs on would hold the directories.
fn ended(mut command: Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the command starts");
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().expect("the child can be waited for").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("the child can be killed");
            let output = child.wait_with_output().expect("the child can be waited for");
            panic!("{command:?} does not end\n{}", said(&output));
        }
        thread::sleep(Duration::from_millis(1));
    }
    child.wait_with_output().expect("the child can be waited for")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// `hermes-gateway stop`, which can reach no unit.
fn stop(home: &Home) -> Output {
    let mut command = home.command("stop");
    command.args(NO_UNIT);
    ended(command)
}

/// A start that must be refused at once, because of this holder.
fn assert_refused(command: Command, holder: u32) {
    let begun = Instant::now();
    let output = ended(command);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(73), "{said}");
    assert!(begun.elapsed() < AT_ONCE, "it took {:?} to be refused", begun.elapsed());
    assert!(said.contains(&format!("pid {holder}")), "the holder, pid {holder}, is not named: {said}");
}

/// Whether whoever listens on the control socket answers for an agent.
fn assert_answers(home: &Home) {
    let mut command = home.command("send");
    command.arg("are you there");
    let output = ended(command);
    assert_eq!(said(&output), "are you there\n");
}

/// Waits until it is this very process that answers: one that takes over is not the first to do so.
fn await_itself(gateway: &mut Gateway) {
    gateway.await_fact("the newcomer itself answers", |gateway| {
        gateway.status().is_some_and(|status| status["identity"]["pid"] == gateway.pid())
    });
}

/// Asks on the control socket; the whole answer.
fn control(home: &Home, request: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(home.runtime().join("control.sock"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// What a gateway of this home has written about itself. It is dead: its record, its socket and its store are left.
fn record_of_a_dead_gateway(home: &Home) -> Value {
    home.start().kill();
    let record = fs::read(home.pid_file()).expect("the record");
    serde_json::from_slice(&record).expect("a record is JSON")
}

/// The same record, naming another process as that one would name itself.
fn naming(record: &Value, pid: u32, start_ticks: u64) -> Value {
    let mut record = record.clone();
    assert!(record["pid"].is_u64() && record["start_ticks"].is_u64(), "the format has changed: {record}");
    record["pid"] = pid.into();
    record["start_ticks"] = start_ticks.into();
    record
}

/// Whether a test that needs this can run here. It says so aloud when it cannot, which CI does not take for an answer.
fn can_run(what: &str, probe: &[&str]) -> bool {
    let worked = Command::new(probe[0]).args(&probe[1..]).output();
    let why = match worked {
        Ok(output) if output.status.success() => return true,
        Ok(output) => said(&output),
        Err(e) => e.to_string(),
    };
    assert!(std::env::var_os("CI").is_none(), "not to be skipped in CI: {what}: {why}");
    eprintln!("SKIPPED: {what}: {} does not work here: {why}", probe.join(" "));
    false
}

/// Moments to do harm at. The same seed gives the same ones: `PID_FALLBACK_SEED`.
pub struct Random(u64);

impl Random {
    pub fn seeded(what: &str) -> Self {
        let now = std::time::UNIX_EPOCH.elapsed().expect("the clock is past 1970").as_nanos() as u64;
        let named = std::env::var("PID_FALLBACK_SEED").ok().map(|seed| seed.parse().expect("a seed is a number"));
        let seed = named.unwrap_or(now);
        eprintln!("{what}: PID_FALLBACK_SEED={seed}");
        Self(seed)
    }

    /// SplitMix64.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Lets a random time pass. Nothing is waited for: the moment itself is the test.
    fn pass(&mut self, at_most: Duration) {
        thread::sleep(Duration::from_nanos(self.next() % at_most.as_nanos() as u64));
    }
}
