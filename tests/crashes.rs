//! Killed at every step between a socket and a settled delivery, a thousand times: what was acknowledged is answered, and
//! no reply arrives twice without saying so.
//!
//! The gateway is the real one. Around it are a sender that repeats each event until it is acknowledged, as senders of
//! webhooks do, an agent, and a platform; each keeps a ledger of its own, and the verdict is found in the ledgers alone.

use std::time::Duration;

use crate::crashes::world::{Platform, World};

mod agent;
mod verdict;
mod world;

/// The places where the gateway dies, by their names in the sources.
const POINTS: [&str; 9] = [
    "webhook.read",
    "inbox.before",
    "inbox.recorded",
    "turn.claimed",
    "turn.ending",
    "turn.ended",
    "outbox.leased",
    "outbox.sent",
    "outbox.settled",
];
/// Kills with each kind of platform; with the two of them a thousand and more.
const KILLS: u32 = 520;
/// Kills after which a gateway that does wrong must have been convicted.
const KILLS_OF_A_SABOTEUR: u32 = 60;

#[test]
fn with_a_platform_that_knows_repetitions_each_reply_arrives_exactly_once() {
    let mut world = World::new(Platform::Idempotent, None);
    world.kill(KILLS, &POINTS);
    let verdict = world.judge();
    println!("{verdict}");
    verdict.assert_innocent(&POINTS);
}

#[test]
fn with_a_platform_that_does_not_a_reply_that_may_be_there_twice_says_so() {
    let mut world = World::new(Platform::Forgetful, None);
    world.kill(KILLS, &POINTS);
    let verdict = world.judge();
    println!("{verdict}");
    verdict.assert_innocent(&POINTS);
    assert!(verdict.repeated > 0, "no kill hit a delivery on its way; then this test proves nothing");
}

#[test]
fn acknowledging_before_the_commit_would_be_convicted() {
    let mut world = World::new(Platform::Idempotent, Some("inbox.ack-first"));
    world.kill(KILLS_OF_A_SABOTEUR, &[]);
    let verdict = world.judge();
    assert!(!verdict.unanswered.is_empty(), "{verdict}");
}

#[test]
fn settling_before_sending_would_be_convicted() {
    let mut world = World::new(Platform::Idempotent, Some("outbox.settle-first"));
    world.kill(KILLS_OF_A_SABOTEUR, &["outbox.sent"]);
    let verdict = world.judge();
    assert!(!verdict.unanswered.is_empty(), "{verdict}");
}

/// Different in each round and the same in each run.
pub fn dice(seed: u64, below: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (x ^ (x >> 31)) % below
}

/// How long a round may go on before the gateway is killed from outside: some faults are never come to.
pub fn patience(round: u32) -> Duration {
    Duration::from_millis(20 + dice(u64::from(round) + 7_000_000, 200))
}
