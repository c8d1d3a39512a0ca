//! The gateway with a real store and agents that do as they are told.

use std::collections::BTreeMap;

mod inbox;
mod machine;

use super::*;
use crate::agent::{Config as AgentConfig, Surroundings, echo};
use crate::model::message::Message;
use crate::model::time::Timestamp;
use crate::model::turn::{Failure, History, Idempotency, Origin, Outcome};
use crate::store::StoreOwner;

struct World {
    _dir: tempfile::TempDir,
    gateway: Gateway,
    stop: Stop,
    tasks: Tasks,
    store: Store,
    _owner: StoreOwner,
}

fn world(config: Config) -> World {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let meters = Arc::new(Meters::default());
    let (store, owner) = Store::open(dir.path(), meters.clone()).expect("opens");
    let slow = AgentConfig::Echo(echo::Config { delay: Duration::from_secs(3600) });
    let agents = BTreeMap::from([("echo".into(), AgentConfig::Echo(echo::Config::default())), ("slow".into(), slow)]);
    let (tasks, stop) = (Tasks::new(), Stop::new());
    let agents = Agents::new("echo", &agents, &Surroundings::in_directory(dir.path()), None);
    let outbox = Outbox::new(store.clone(), Default::default(), tasks.clone(), stop.clone(), meters.clone());
    let gateway = Gateway::new(store.clone(), outbox, config, agents, tasks.clone(), stop.clone(), meters);
    World { _dir: dir, gateway, stop, tasks, store, _owner: owner }
}

fn config() -> Config {
    Config { max_running: 4, max_queued: 8, timeout: Duration::from_secs(7200), max_attempts: 3 }
}

pub fn turn(session: &str, agent: &str, text: &str) -> NewTurn {
    NewTurn {
        id: TurnId::new(),
        session: session.parse().expect("an id"),
        agent: agent.into(),
        model: "m".into(),
        accepted: Timestamp::now(),
        origin: Origin::Chat,
        instructions: None,
        history: History::Session,
        input: vec![Message::user(text)],
        idempotency: None,
        keep: false,
        deliver: None,
    }
}

fn text(outcome: Outcome) -> String {
    match outcome {
        Outcome::Completed { text, .. } => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_turn_is_on_disk_when_it_is_accepted_and_its_reply_when_it_is_told() {
    let world = world(config());
    let asked = turn("s", "echo", "hello there");
    let id = asked.id;
    let mut ticket = world.gateway.submit(asked).await.expect("taken");
    assert!(world.store.turn(id).await.expect("read").is_some());
    let outcome = ticket.watch.outcome().await;
    assert_eq!(world.store.turn(id).await.expect("read").expect("there").outcome, Some(outcome.clone()));
    assert_eq!(text(outcome), "hello there");
}

#[tokio::test]
async fn turns_of_a_session_are_answered_in_the_order_they_came() {
    let world = world(config());
    let mut tickets = Vec::new();
    for n in 0..8 {
        tickets.push(world.gateway.submit(turn("s", "echo", &n.to_string())).await.expect("taken"));
    }
    for (n, ticket) in tickets.iter_mut().enumerate() {
        assert_eq!(text(ticket.watch.outcome().await), n.to_string());
    }
    let history = world.store.session_history("s".parse().expect("an id")).await.expect("history");
    let said: Vec<_> = history.iter().map(|m| m.content.clone()).collect();
    let expected: Vec<_> = (0..8).flat_map(|n| [n.to_string(), n.to_string()]).collect();
    assert_eq!(said, expected);
}

#[tokio::test]
async fn a_full_queue_refuses_and_forgets() {
    let world = world(Config { max_queued: 2, ..config() });
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(world.gateway.submit(turn("s", "slow", "x")).await.expect("taken"));
    }
    let one_more = turn("s", "slow", "x");
    let id = one_more.id;
    assert!(matches!(world.gateway.submit(one_more).await, Err(SubmitError::Full(2))));
    assert!(world.store.turn(id).await.expect("read").is_none());
    let elsewhere = world.gateway.submit(turn("other", "echo", "free")).await.expect("taken");
    assert_eq!(text({ elsewhere }.watch.outcome().await), "free", "other sessions are served meanwhile");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_only_what_nobody_else_waits_for() {
    let world = world(config());
    let keyed = |text: &str| NewTurn {
        idempotency: Some(Idempotency { key: "k".into(), fingerprint: [text.len() as u8; 32] }),
        ..turn("s", "slow", text)
    };
    let first = world.gateway.submit(keyed("x")).await.expect("taken");
    let second = world.gateway.submit(keyed("x")).await.expect("attached");
    assert_eq!(first.id, second.id);
    assert!(matches!(world.gateway.submit(keyed("other")).await, Err(SubmitError::KeyReused)));
    let id = first.id;
    drop(first);
    assert!(world.store.turn(id).await.expect("read").expect("there").outcome.is_none());
    drop(second);
    let mut next = world.gateway.submit(turn("s", "echo", "next")).await.expect("taken");
    assert_eq!(text(next.watch.outcome().await), "next", "the lane is free again");
    assert_eq!(world.store.turn(id).await.expect("read").expect("there").outcome, Some(Outcome::Cancelled));
}

#[tokio::test]
async fn a_stop_leaves_to_the_successor_what_can_still_be_asked_for() {
    let world = world(config());
    let kept = NewTurn { keep: true, ..turn("a", "slow", "kept") };
    let lost = turn("b", "slow", "lost");
    let (kept_id, lost_id) = (kept.id, lost.id);
    let mut tickets =
        vec![world.gateway.submit(kept).await.expect("taken"), world.gateway.submit(lost).await.expect("taken")];
    world.stop.soften();
    let mut late = world.gateway.submit(turn("c", "echo", "late")).await.expect("who is connected is still heard");
    assert_eq!(text(late.watch.outcome().await), "late");
    world.stop.harden();
    assert!(matches!(world.gateway.submit(turn("c", "echo", "x")).await, Err(SubmitError::Stopping)));
    for ticket in &mut tickets {
        assert_eq!(ticket.watch.outcome().await, Outcome::Interrupted);
    }
    assert!(world.tasks.join(Duration::from_secs(10)).await.is_empty());
    let released = world.store.release_unfinished(3, "parked").await.expect("released");
    assert_eq!(released.again.iter().map(|u| u.turn.id).collect::<Vec<_>>(), [kept_id]);
    assert_eq!(world.store.turn(lost_id).await.expect("read").expect("there").outcome, Some(Outcome::Interrupted));
}

#[tokio::test]
async fn an_agent_that_takes_too_long_fails_its_turn_only() {
    let world = world(Config { timeout: Duration::from_millis(50), ..config() });
    let mut ticket = world.gateway.submit(turn("s", "slow", "x")).await.expect("taken");
    let outcome = ticket.watch.outcome().await;
    assert_eq!(
        outcome,
        Outcome::Failed { failure: Failure::Timeout, message: "the agent took longer than 50ms".into() }
    );
    assert!(matches!(world.gateway.submit(turn("s", "nobody", "x")).await, Err(SubmitError::UnknownAgent(_))));
}

fn sent(text: &str) -> NewTurn {
    let idempotency = Some(Idempotency { key: text.into(), fingerprint: [0; 32] });
    NewTurn { origin: Origin::Control, keep: true, idempotency, ..turn("cli", "slow", text) }
}

#[tokio::test]
async fn what_was_asked_at_a_terminal_survives_a_stop_and_not_its_asker() {
    let world = world(config());
    let (left, stopped) = (sent("left"), NewTurn { session: "other".parse().expect("an id"), ..sent("stopped") });
    let (left_id, stopped_id) = (left.id, stopped.id);
    drop(world.gateway.submit(left).await.expect("taken"));
    while world.store.turn(left_id).await.expect("read").expect("there").outcome.is_none() {
        tokio::task::yield_now().await;
    }
    let ticket = world.gateway.submit(stopped).await.expect("taken");
    world.stop.harden();
    // As its connection does with the hard stop, maybe before the turn has looked.
    drop(ticket);
    assert!(world.tasks.join(Duration::from_secs(10)).await.is_empty());
    assert_eq!(world.store.turn(left_id).await.expect("read").expect("there").outcome, Some(Outcome::Cancelled));
    let released = world.store.release_unfinished(3, "parked").await.expect("released");
    assert_eq!(released.again.iter().map(|u| u.turn.id).collect::<Vec<_>>(), [stopped_id]);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_comes_back_for_is_given_up() {
    let world = world(config());
    let unfinished = |turn: NewTurn| Unfinished { turn, attempts: 1 };
    let (unclaimed, kept) = (sent("unclaimed"), NewTurn { keep: true, ..turn("s", "slow", "kept") });
    let (unclaimed_id, kept_id) = (unclaimed.id, kept.id);
    for turn in [&unclaimed, &kept] {
        world.store.record_turn(turn.clone(), true).await.expect("stored");
    }
    world.gateway.resume(vec![unfinished(unclaimed), unfinished(kept)]);
    let (_, mut watch) = world.gateway.find(kept_id).await.expect("read").expect("there");
    assert_eq!(text(watch.outcome().await), "kept", "after an hour");
    let unclaimed = world.store.turn(unclaimed_id).await.expect("read").expect("there");
    assert_eq!(unclaimed.outcome, Some(Outcome::Cancelled));
}
