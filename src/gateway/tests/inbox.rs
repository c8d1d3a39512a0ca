//! Messages of platforms: each once, in order, by the rules of their session.

use super::*;
use crate::model::address::{Cursor, Source};
use crate::policy::session::{Reset, Rules};

pub fn message(session: &str, id: &str, text: &str, rules: Rules) -> Inbound {
    Inbound {
        source: Source { platform: "p".into(), account: "a".into(), message: id.into() },
        session: session.parse().expect("an id"),
        agent: None,
        text: text.into(),
        deliver: Some("out:chat".parse().expect("a target")),
        rules,
    }
}

pub async fn receive(world: &World, message: Inbound) -> Taken {
    world.gateway.receive(vec![message], None).await.expect("taken")[0]
}

/// How a turn ended.
pub async fn outcome(world: &World, turn: TurnId) -> Outcome {
    let (_, mut watch) = world.gateway.find(turn).await.expect("read").expect("there");
    watch.outcome().await
}

/// Waits until a turn's agent has begun to speak.
async fn spoken(world: &World, turn: TurnId) {
    let (_, mut watch) = world.gateway.find(turn).await.expect("read").expect("there");
    assert!(matches!(watch.next().await, Progress::Text(_)));
}

/// A world whose default agent takes its time for each word.
pub fn slow_world(delay: Duration) -> World {
    let world = world(config());
    let slow = AgentConfig::Echo(echo::Config { delay });
    let agents = Agents::new("echo", &BTreeMap::from([("echo".into(), slow)]), None);
    world.gateway.reconfigure(config(), agents);
    world
}

#[tokio::test]
async fn a_message_is_a_turn_once_and_its_cursor_is_stored_with_it() {
    let world = world(config());
    let cursor = |value: &str| Some(Cursor { platform: "p".into(), account: "a".into(), value: value.into() });
    let batch: Vec<_> = (0..3).map(|n| message("s", &n.to_string(), &n.to_string(), Rules::default())).collect();
    let first = world.gateway.receive(batch.clone(), cursor("3")).await.expect("taken");
    assert!(first.iter().all(|taken| taken.new));
    let again = world.gateway.receive(batch, cursor("4")).await.expect("taken");
    assert_eq!(again.iter().map(|taken| (taken.turn, taken.new)).collect::<Vec<_>>(), {
        first.iter().map(|taken| (taken.turn, false)).collect::<Vec<_>>()
    });
    assert_eq!(world.store.cursor("p".into(), "a".into()).await.expect("read"), Some("4".into()));
    assert_eq!(world.store.cursor("p".into(), "b".into()).await.expect("read"), None);
    for (n, taken) in first.iter().enumerate() {
        assert_eq!(text(outcome(&world, taken.turn).await), n.to_string());
    }
    let due = world.store.due_deliveries(Timestamp::now(), 10).await.expect("read");
    assert!(due.targets.is_empty() || due.targets == ["out:chat".parse().expect("a target")]);
}

#[tokio::test]
async fn a_batch_with_one_message_that_cannot_be_taken_leaves_nothing() {
    let world = world(config());
    let bad = Inbound { agent: Some("nobody".into()), ..message("s", "2", "x", Rules::default()) };
    let batch = vec![message("s", "1", "x", Rules::default()), bad];
    assert!(matches!(world.gateway.receive(batch, None).await, Err(SubmitError::UnknownAgent(_))));
    assert!(receive(&world, message("s", "1", "x", Rules::default())).await.new, "nothing of it was kept");
}

#[tokio::test]
async fn an_interrupting_message_takes_the_place_of_all_before_it() {
    let world = slow_world(Duration::from_millis(20));
    let rules = Rules { busy: Busy::Interrupt, ..Rules::default() };
    let long = "word ".repeat(10_000);
    let first = receive(&world, message("s", "1", &long, rules)).await;
    spoken(&world, first.turn).await;
    let elsewhere = receive(&world, message("other", "2", "undisturbed", rules)).await;
    let second = receive(&world, message("s", "3", "never mind", rules)).await;
    assert_eq!(outcome(&world, first.turn).await, Outcome::Superseded);
    assert_eq!(text(outcome(&world, second.turn).await), "never mind");
    assert_eq!(text(outcome(&world, elsewhere.turn).await), "undisturbed");
    let history = world.store.session_history("s".parse().expect("an id")).await.expect("read");
    let said: Vec<_> = history.iter().map(|message| message.content.as_str()).collect();
    assert_eq!(said, [&long, "never mind", "never mind"], "what was asked still belongs to the conversation");
}

#[tokio::test]
async fn a_steering_message_is_answered_by_the_turn_that_runs() {
    let world = slow_world(Duration::from_millis(20));
    let rules = Rules { busy: Busy::Steer, ..Rules::default() };
    let first = receive(&world, message("s", "1", "one two three four five six", rules)).await;
    spoken(&world, first.turn).await;
    let second = receive(&world, message("s", "2", "and seven", rules)).await;
    assert_eq!(text(outcome(&world, first.turn).await), "one two three four five six\nand seven");
    assert_eq!(outcome(&world, second.turn).await, Outcome::Absorbed(first.turn));
    // Another way back: nobody would see the answer there.
    let third = receive(&world, message("s", "3", "a b c d e f g h", rules)).await;
    spoken(&world, third.turn).await;
    let away = Inbound { deliver: None, ..message("s", "4", "by myself", rules) };
    let fourth = receive(&world, away).await;
    assert_eq!(text(outcome(&world, third.turn).await), "a b c d e f g h");
    assert_eq!(text(outcome(&world, fourth.turn).await), "by myself");
    let history = world.store.session_history("s".parse().expect("an id")).await.expect("read");
    let said: Vec<_> = history.iter().map(|message| message.content.as_str()).take(3).collect();
    assert_eq!(said, ["one two three four five six", "and seven", "one two three four five six\nand seven"]);
}

#[tokio::test]
async fn a_burst_becomes_one_turn_with_all_that_was_said() {
    let world = world(config());
    let rules = Rules { debounce: Duration::from_millis(200), ..Rules::default() };
    let mut turns = Vec::new();
    for n in 0..5 {
        turns.push(receive(&world, message("s", &n.to_string(), &format!("part {n}"), rules)).await.turn);
    }
    turns.dedup();
    assert_eq!(turns.len(), 1);
    // The echo answers the last message; the store has all of them.
    assert_eq!(text(outcome(&world, turns[0]).await), "part 4");
    let history = world.store.session_history("s".parse().expect("an id")).await.expect("read");
    let said: Vec<_> = history.iter().map(|message| message.content.as_str()).collect();
    assert_eq!(said, ["part 0", "part 1", "part 2", "part 3", "part 4", "part 4"]);
    let later = receive(&world, message("s", "later", "another", rules)).await;
    assert_ne!(later.turn, turns[0]);
    assert_eq!(text(outcome(&world, later.turn).await), "another");
}

#[tokio::test]
async fn a_conversation_begins_anew_after_its_silence() {
    let world = world(config());
    let rules = |idle| Rules { reset: Reset::Idle(idle), ..Rules::default() };
    let hour = Duration::from_secs(3600);
    for (id, idle) in [("1", hour), ("2", hour), ("3", Duration::ZERO)] {
        let taken = receive(&world, message("s", id, id, rules(idle))).await;
        outcome(&world, taken.turn).await;
    }
    let history = world.store.session_history("s".parse().expect("an id")).await.expect("read");
    let said: Vec<_> = history.iter().map(|message| message.content.as_str()).collect();
    assert_eq!(said, ["3", "3"]);
}

#[tokio::test]
async fn what_comes_during_a_stop_is_the_successors() {
    let world = world(config());
    world.stop.soften();
    let taken = receive(&world, message("s", "1", "late", Rules::default())).await;
    assert!(world.tasks.join(Duration::from_secs(10)).await.is_empty());
    let released = world.store.release_unfinished(3, "parked").await.expect("read");
    assert_eq!(released.again.iter().map(|u| (u.turn.id, u.attempts)).collect::<Vec<_>>(), [(taken.turn, 0)]);
}

#[tokio::test]
async fn a_turn_that_a_stop_cuts_off_is_not_blamed_for_it() {
    let world = slow_world(Duration::from_secs(3600));
    let taken = receive(&world, message("s", "1", "x", Rules::default())).await;
    world.gateway.find(taken.turn).await.expect("read").expect("it runs");
    world.stop.harden();
    assert!(world.tasks.join(Duration::from_secs(10)).await.is_empty());
    for round in 0..5 {
        let released = world.store.release_unfinished(3, "parked").await.expect("read");
        assert_eq!((released.again.len(), released.parked), (1, 0), "round {round}");
        // The next life is cut off likewise.
        world.store.claim_turn(taken.turn).await.expect("claimed");
        world.store.defer_turn(taken.turn).await.expect("deferred");
    }
    for _ in 0..3 {
        world.store.claim_turn(taken.turn).await.expect("claimed");
    }
    let released = world.store.release_unfinished(3, "I put it aside.").await.expect("read");
    assert_eq!((released.again.len(), released.parked), (0, 1));
    let target = "out:chat".parse().expect("a target");
    let told = world.store.lease_next(target, Timestamp::now()).await.expect("read").expect("its person is told");
    assert_eq!((told.text.as_str(), told.turn), ("I put it aside.", Some(taken.turn)));
}
