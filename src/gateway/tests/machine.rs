//! How sessions take messages, under random rules and in random order: whatever the rules do, each message is answered
//! once, or gives way for a reason.

use proptest::prelude::*;

use super::inbox::{message, outcome, receive, slow_world};
use super::*;
use crate::policy::session::Rules;

/// A message: which session, by which rules, after which pause.
#[derive(Debug, Clone)]
struct Step {
    session: u8,
    busy: Busy,
    debounce: Duration,
    words: usize,
    pause: Duration,
}

fn step() -> impl Strategy<Value = Step> {
    let busy = prop_oneof![3 => Just(Busy::Queue), 1 => Just(Busy::Interrupt), 2 => Just(Busy::Steer)];
    let millis = |most: u64| (0..=most).prop_map(Duration::from_millis);
    let debounce = prop_oneof![2 => Just(Duration::ZERO), 1 => millis(5)];
    (0..2u8, busy, debounce, 1..6usize, millis(4)).prop_map(|(session, busy, debounce, words, pause)| Step {
        session,
        busy,
        debounce,
        words,
        pause,
    })
}

async fn play(steps: Vec<Step>) {
    let world = slow_world(Duration::from_millis(1));
    let mut told = Vec::new();
    for (n, step) in steps.iter().enumerate() {
        tokio::time::sleep(step.pause).await;
        let text: String = (0..step.words).map(|word| format!("<{n}.{word}> ")).collect();
        let rules = Rules { busy: step.busy, debounce: step.debounce, ..Rules::default() };
        let session = step.session.to_string();
        let taken = receive(&world, message(&session, &n.to_string(), &text, rules)).await;
        told.push((step, text, taken.turn));
    }
    let mut ends = Vec::new();
    for (_, _, turn) in &told {
        ends.push(outcome(&world, *turn).await);
    }
    for (place, (step, text, turn)) in told.iter().enumerate() {
        let later = || told[place + 1..].iter().filter(|(other, ..)| other.session == step.session);
        match &ends[place] {
            // Of a burst the echo answers the last message.
            Outcome::Completed { text: reply, .. } => {
                let last_of_burst = !later().any(|(_, _, other)| other == turn);
                assert!(!last_of_burst || reply.contains(text.as_str()), "{text:?} is not in {reply:?}");
            }
            Outcome::Superseded => {
                assert!(later().any(|(other, ..)| other.busy == Busy::Interrupt), "nobody took its place");
            }
            Outcome::Absorbed(by) => {
                let (index, _) = told.iter().enumerate().find(|(_, (.., other))| other == by).expect("a turn of ours");
                let Outcome::Completed { text: reply, .. } = &ends[index] else { panic!("{:?}", ends[index]) };
                assert!(reply.contains(text.trim_end()), "{text:?} is not in {reply:?}");
            }
            other => panic!("{text:?} ended as {other:?}"),
        }
    }
    assert!(world.tasks.join(Duration::from_secs(10)).await.is_empty());
    assert_eq!(world.gateway.load(), (0, 0), "nothing is left");
    assert!(world.gateway.live().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn each_message_is_answered_once_or_gives_way_for_a_reason(steps in prop::collection::vec(step(), 1..16)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(play(steps));
    }
}
