//! The gateway with its sender, its agent and its platform, and whoever kills it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;

use super::agent::Agent;
use super::verdict::Verdict;
use super::{dice, patience};
use crate::gateway::Home;
use crate::receiver::Receiver;
use crate::webhooks;

/// Senders, each with a session of its own.
const SENDERS: usize = 4;
/// Between two tries of a sender that nobody listens to.
const TRY_EVERY: Duration = Duration::from_millis(2);
/// How long the last life may take to answer everything.
const LAST_PATIENCE: Duration = Duration::from_secs(120);

/// What kind of platform the replies go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// Knows a repetition by its key.
    Idempotent,
    /// Knows none.
    Forgetful,
}

/// Every message of a session in its order, and whether it was acknowledged.
type Sent = Arc<Mutex<BTreeMap<String, Vec<(String, bool)>>>>;

pub struct World {
    home: Home,
    platform: Platform,
    sabotage: Option<&'static str>,
    receiver: Receiver,
    agent: Agent,
    sent: Sent,
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<()>>,
    kills: u32,
    at_points: BTreeMap<String, u32>,
}

impl World {
    pub fn new(platform: Platform, sabotage: Option<&'static str>) -> Self {
        let (receiver, agent) = (Receiver::start(), Agent::start());
        // Known before the gateway is, for it is another process each time; taken and given back at once.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
        let idempotent = platform == Platform::Idempotent;
        let settings = format!(
            "http.listen = [\"{free}\"]\n[turns]\nmax_attempts = 1000\n[log]\nlevel = \"warn\"\n\
             [agents]\ndefault = \"model\"\n[agents.model]\nkind = \"openai\"\nmodel = \"m\"\nbase_url = \"http://{}\"\n",
            agent.address
        );
        let hook = "session = \"{room}\"";
        let home = webhooks::home(&receiver, &settings, hook, &format!("idempotent = {idempotent}"));
        let (sent, stop) = (Sent::default(), Arc::<AtomicBool>::default());
        let sender = |n: usize| {
            let (sent, stop) = (sent.clone(), stop.clone());
            thread::spawn(move || tell_all(free, &format!("room{n}"), &sent, &stop))
        };
        let senders = (0..SENDERS).map(sender).collect();
        let (kills, at_points) = (0, BTreeMap::new());
        Self { home, platform, sabotage, receiver, agent, sent, stop, senders, kills, at_points }
    }

    /// Lets it live and die so many times: at one of `points`, or at a random moment.
    pub fn kill(&mut self, times: u32, points: &[&str]) {
        for round in 0..times {
            let choice = dice(u64::from(round), points.len() as u64 + 1) as usize;
            let point = points.get(choice);
            let mut command = self.home.command("run");
            if let Some(point) = point {
                let nth = 1 + dice(u64::from(round) + 1_000_000, 4);
                command.env("HERMES_FAULT", format!("{point}={nth}"));
            }
            let mut child = self.spawn(command);
            let deadline = Instant::now() + patience(round);
            let mut died = child.try_wait().expect("a child");
            while died.is_none() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
                died = child.try_wait().expect("a child");
            }
            match died {
                Some(status) => {
                    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
                    assert_eq!(signal, Some(9), "it ended by itself: {status}\n{}", self.log());
                    *self.at_points.entry((*point.expect("nobody killed it")).to_owned()).or_default() += 1;
                }
                None => {
                    child.kill().expect("ours");
                    child.wait().expect("ours");
                }
            }
            self.kills += 1;
        }
    }

    /// Ends the senders, lets a last life answer everything, and looks into the ledgers.
    pub fn judge(&mut self) -> Verdict {
        let mut last = self.spawn(self.home.command("run"));
        self.stop.store(true, Ordering::SeqCst);
        for sender in self.senders.drain(..) {
            sender.join().expect("a sender ends");
        }
        let deadline = Instant::now() + LAST_PATIENCE;
        let verdict = loop {
            let verdict = self.verdict();
            // What is never delivered is a verdict, too: a saboteur's work is not waited for so long.
            let enough = if self.sabotage.is_some() { Duration::from_secs(5) } else { LAST_PATIENCE };
            if verdict.unanswered.is_empty() || Instant::now() + LAST_PATIENCE > deadline + enough {
                break verdict;
            }
            assert!(last.try_wait().expect("a child").is_none(), "the last life ended\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        };
        last.kill().and_then(|()| last.wait()).expect("ours");
        verdict
    }

    fn verdict(&self) -> Verdict {
        let sent = self.sent.lock().expect("no panic");
        let knows = self.platform == Platform::Idempotent;
        let mut verdict = Verdict::of(&sent, &self.receiver.calls(), &self.agent.ledger(), knows);
        verdict.kills = self.kills;
        verdict.at_points = self.at_points.clone();
        verdict
    }

    fn spawn(&self, mut command: std::process::Command) -> Child {
        if let Some(sabotage) = self.sabotage {
            command.env("HERMES_SABOTAGE", sabotage);
        }
        let log = fs::File::options().append(true).create(true).open(self.home.path().join("log")).expect("a log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("the binary starts")
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
        log.lines().rev().take(30).collect::<Vec<_>>().join("\n")
    }
}

/// Tells one event after the other, each until it is acknowledged.
fn tell_all(gateway: SocketAddr, room: &str, sent: &Sent, stop: &AtomicBool) {
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let text = format!("{room} says {n}");
        sent.lock().expect("no panic").entry(room.to_owned()).or_default().push((text.clone(), false));
        let request = webhooks::request(&format!("{room}-{n}"), &json!({ "room": room, "text": text }));
        while !is_acknowledged(gateway, &request) {
            thread::sleep(TRY_EVERY);
        }
        if let Some((_, acknowledged)) = sent.lock().expect("no panic").get_mut(room).and_then(|all| all.last_mut()) {
            *acknowledged = true;
        }
    }
}

/// One try: whether the answer's status says that the event was taken. An answer that is cut off behind its status
/// acknowledges, too: a sender that reads as much believes it.
fn is_acknowledged(gateway: SocketAddr, request: &[u8]) -> bool {
    let answer = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(gateway)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(request)?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(head.to_vec())
    };
    answer().is_ok_and(|head| head == b"HTTP/1.1 202" || head == b"HTTP/1.1 200")
}
