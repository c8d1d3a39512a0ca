//! Loss of power under webhooks: what a sender was told to be taken is there, and what a platform was sent is remembered
//! by its key.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::{Connection, OptionalExtension};
use serde_json::json;

use super::dice::Dice;
use super::disk::{Cut, PoweredDisk, images};
use super::image::Image;
use super::log::Moment;
use super::platter::Fate;
use super::turns::{Verdict, in_store};
use crate::gateway::{Gateway, Home};
use crate::receiver::Receiver;
use crate::webhooks;

/// Senders at once, each with a session of its own.
const SENDERS: usize = 4;

/// An event that its sender was told to be taken.
#[derive(Debug, Clone)]
struct Taken {
    id: String,
    text: String,
    /// Its sender knew by then.
    at: Moment,
}

/// A delivery that the platform has.
#[derive(Debug, Clone)]
struct Sent {
    key: String,
    text: String,
    /// The platform had it by then.
    at: Moment,
}

/// What others know of a life.
#[derive(Debug, Default)]
struct Told {
    taken: Vec<Taken>,
    sent: Vec<Sent>,
}

/// The senders of a world: how many events each has told and been told to be taken, over all lives.
#[derive(Debug, Default)]
struct Senders([usize; SENDERS]);

fn home(receiver: &Receiver) -> Home {
    webhooks::home(receiver, "", "session = \"{room}\"", "")
}

fn start(home: &Home, disk: &PoweredDisk, sabotage: Option<&str>) -> Gateway {
    let mut command = home.command("run");
    disk.command_env(&mut command);
    command.envs(sabotage.map(|name| ("HERMES_SABOTAGE", name)));
    home.start_by(command)
}

fn text(sender: usize, n: usize) -> String {
    let length = [0, 100, 3000, 20_000][n * 7 % 11 % 4];
    format!("room {sender} event {n} {}", "x".repeat(length))
}

impl Senders {
    /// Each tells one event after the other, the last one of the life before again if nobody took it, until so many are
    /// taken in all; then the gateway is killed under them.
    fn storm(&mut self, gateway: &mut Gateway, disk: &PoweredDisk, receiver: &Receiver, enough: usize) -> Told {
        let (address, over, taken) = (gateway.address(), AtomicBool::new(false), Mutex::<Vec<Taken>>::default());
        let mut sent: Vec<Sent> = calls(receiver, Moment::BEGIN);
        std::thread::scope(|scope| {
            for (sender, next) in self.0.iter_mut().enumerate() {
                let (over, taken) = (&over, &taken);
                scope.spawn(move || {
                    while !over.load(Ordering::SeqCst) {
                        let (id, text) = (format!("{sender}-{next}"), text(sender, *next));
                        if !tell(address, &id, &format!("room{sender}"), &text) {
                            return;
                        }
                        taken.lock().expect("no panic").push(Taken { id, text, at: disk.now() });
                        *next += 1;
                    }
                });
            }
            gateway.await_fact("the storm is on", |_| {
                // The ledger is read before the clock, so whatever is in it was there by then.
                let seen = calls(receiver, Moment::BEGIN).split_off(sent.len());
                let at = disk.now();
                sent.extend(seen.into_iter().map(|call| Sent { at, ..call }));
                taken.lock().expect("no panic").len() >= enough
            });
            gateway.kill();
            over.store(true, Ordering::SeqCst);
        });
        sent.extend(calls(receiver, disk.now()).split_off(sent.len()));
        Told { taken: taken.into_inner().expect("no panic"), sent }
    }
}

/// The platform's ledger, as of now.
fn calls(receiver: &Receiver, at: Moment) -> Vec<Sent> {
    let key = |call: &crate::receiver::Call| call.header("idempotency-key").expect("each has one").to_owned();
    receiver.calls().iter().map(|call| Sent { key: key(call), text: call.text().to_owned(), at }).collect()
}

/// Whether the answer said that the event was taken, now or before.
fn tell(address: SocketAddr, id: &str, room: &str, text: &str) -> bool {
    let mut answer = String::new();
    let request = webhooks::request(id, &json!({ "room": room, "text": text }));
    let exchange = TcpStream::connect(address).and_then(|mut stream| {
        stream.write_all(&request)?;
        stream.read_to_string(&mut answer)
    });
    exchange.is_ok() && (answer.starts_with("HTTP/1.1 202 ") || answer.starts_with("HTTP/1.1 200 "))
}

/// Holds a disk against what senders and the platform know.
fn examine(image: &Image, taken: &[&Taken], sent: &[&Sent]) -> Result<(), Verdict> {
    let read = |store: &Connection| {
        let ended = "SELECT count(*) FROM turns t WHERE t.state NOT IN ('queued', 'running') \
                     AND (SELECT count(*) FROM outbox o WHERE o.turn = t.id) <> 1";
        let ended: i64 = store.query_row(ended, [], |row| row.get(0))?;
        if ended > 0 {
            return Ok(Err(format!("{ended} turns have ended and have not exactly one delivery")));
        }
        let mut missing = Vec::new();
        let said = "SELECT m.content FROM inbox i JOIN turns t ON t.id = i.turn \
                    JOIN messages m ON m.turn = t.id AND m.position = 0 \
                    WHERE i.platform = 'webhook' AND i.account = 'in' AND i.message = ?1 AND t.deliver IS NOT NULL";
        for Taken { id, text, .. } in taken {
            let found: Option<String> = store.query_row(said, [id], |row| row.get(0)).optional()?;
            if found.as_ref() != Some(text) {
                missing.push(format!("event {id}"));
            }
        }
        let known = "SELECT content FROM outbox WHERE key = ?1";
        for Sent { key, text, .. } in sent {
            let found: Option<String> = store.query_row(known, [key], |row| row.get(0)).optional()?;
            if found.as_ref() != Some(text) {
                missing.push(format!("delivery {key}"));
            }
        }
        Ok(Ok(missing))
    };
    let none = || taken.iter().map(|t| format!("event {}", t.id)).collect();
    match in_store(image, read).map_err(Verdict::Damaged)?.unwrap_or_else(none) {
        missing if missing.is_empty() => Ok(()),
        missing => Err(Verdict::Missing(missing)),
    }
}

/// The same for what was known at a moment.
fn examine_at(image: &Image, moment: Moment, told: &Told, before: &[Taken]) -> Result<(), Verdict> {
    let taken: Vec<_> = before.iter().chain(told.taken.iter().filter(|taken| taken.at <= moment)).collect();
    let sent: Vec<_> = told.sent.iter().filter(|sent| sent.at <= moment).collect();
    examine(image, &taken, &sent)
}

/// The moments to look at: the end, some of chance, and some at which a sender has just been told.
fn moments(cut: &Cut, told: &Told, ready: Moment, dice: &mut Dice) -> Vec<Moment> {
    let mut moments = vec![cut.end()];
    moments.extend((0..3).map(|_| *dice.pick(cut.moments())).filter(|moment| *moment >= ready));
    moments.extend((0..3).map(|_| dice.pick(&told.taken).at));
    moments
}

#[test]
fn events_that_were_taken_outlive_the_power_and_are_answered_by_one_key() {
    const LIVES: usize = 8;
    const STORES: u64 = 3;
    for store in 0..STORES {
        let receiver = Receiver::start();
        let home = home(&receiver);
        let Some(mut disk) = PoweredDisk::new(&home.state()) else { return };
        let (mut dice, mut senders) = (Dice::new(store), Senders::default());
        let mut taken: Vec<Taken> = Vec::new();
        for life in 0..LIVES {
            let mut gateway = start(&home, &disk, None);
            let ready = disk.now();
            let enough = 1 + dice.below(60);
            let told = senders.storm(&mut gateway, &disk, &receiver, enough);
            let cut = disk.cut();
            for moment in moments(&cut, &told, ready, &mut dice) {
                for image in images(&cut, moment, 2, &mut dice) {
                    if let Err(verdict) = examine_at(&image, moment, &told, &taken) {
                        let kept = image.keep();
                        let place = format!("store {store} life {life}, power lost at {moment:?} of {cut:?}");
                        panic!("{place}: {verdict}; the disk is kept in {}", kept.display());
                    }
                }
            }
            // What others saw happened, so the story goes on where it ended, with whatever arrived on the disk.
            let fate = if dice.hits(8) { Fate::Nothing } else { Fate::Something(&mut dice) };
            disk.restore(&cut.image(cut.end(), fate));
            taken.extend(told.taken);
        }
        let mut gateway = start(&home, &disk, None);
        gateway.await_fact("each event is answered", |_| {
            let calls = calls(&receiver, Moment::BEGIN);
            let answered: BTreeSet<&str> = calls.iter().map(|call| call.text.as_str()).collect();
            taken.iter().all(|taken| answered.contains(taken.text.as_str()))
        });
        assert!(gateway.terminate().success());
        let calls = calls(&receiver, Moment::BEGIN);
        let mut keys: HashMap<&str, BTreeSet<&str>> = HashMap::new();
        for call in &calls {
            keys.entry(&call.text).or_default().insert(&call.key);
        }
        let doubled: BTreeMap<_, _> = keys.iter().filter(|(_, keys)| keys.len() != 1).collect();
        assert!(doubled.is_empty(), "answered by more than one key: {doubled:.200?}");
        assert!(taken.len() > LIVES, "too little was going on");
    }
}

#[test]
fn a_disk_that_only_says_that_it_syncs_is_convicted_of_events_and_deliveries() {
    let receiver = Receiver::start();
    let home = home(&receiver);
    let Some(mut disk) = PoweredDisk::new(&home.state()) else { return };
    // The names are durable, so that a store is there in which something can be missing.
    assert!(start(&home, &disk, None).terminate().success());
    let image = {
        let cut = disk.cut();
        cut.image(cut.end(), Fate::Nothing)
    };
    disk.restore(&image);
    disk.lie("files");
    let mut gateway = start(&home, &disk, None);
    let told = Senders::default().storm(&mut gateway, &disk, &receiver, 20);
    let cut = disk.cut();
    assert_eq!(examine_at(&cut.image(cut.end(), Fate::Everything), cut.end(), &told, &[]), Ok(()));
    let Err(Verdict::Missing(missing)) = examine_at(&cut.image(cut.end(), Fate::Nothing), cut.end(), &told, &[]) else {
        panic!("acquitted, or damaged without having lost anything");
    };
    assert_eq!(missing.len(), told.taken.len() + told.sent.len(), "{missing:?}");
    assert!(!told.sent.is_empty(), "nothing was delivered; then this proves half of it");
}

#[test]
fn a_gateway_that_acknowledges_before_it_stores_is_convicted() {
    let receiver = Receiver::start();
    let home = home(&receiver);
    let Some(disk) = PoweredDisk::new(&home.state()) else { return };
    let mut gateway = start(&home, &disk, Some("inbox.ack-first"));
    let told = Senders::default().storm(&mut gateway, &disk, &receiver, 20);
    let cut = disk.cut();
    let convicts = |taken: &&Taken| {
        // Even a disk on which everything arrives does not have what was not written yet.
        let image = cut.image(taken.at, Fate::Everything);
        matches!(examine_at(&image, taken.at, &told, &[]), Err(Verdict::Missing(_)))
    };
    assert!(told.taken.iter().filter(convicts).count() > told.taken.len() / 2, "acquitted");
}
