//! The outbox under random operations, deaths and clocks, held against a model that is too simple to be wrong.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::address::Target;
use crate::model::delivery::{Delivery, Kind, NewDelivery, Receipt, Settlement};

const CHATS: usize = 3;

/// What may happen.
#[derive(Debug, Clone)]
enum Step {
    /// A turn ends, with so many parts for a chat, whose sender asks for the first one or does not.
    End { chat: usize, parts: usize, lease: bool },
    /// The sender of a chat looks for more.
    Lease { chat: usize },
    /// What is under way in a chat arrives, and the sender goes on or does not.
    Sent { chat: usize, on: bool },
    /// It does not arrive, and is to be tried again.
    Retry { chat: usize, seconds: u64 },
    /// It never will.
    Dead { chat: usize },
    /// The process dies, and another one opens the store.
    Reopen,
    /// Time passes, or the clock goes back.
    Clock { seconds: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let chat = || 0..CHATS;
    prop_oneof![
        (chat(), 1..4usize, any::<bool>()).prop_map(|(chat, parts, lease)| Step::End { chat, parts, lease }),
        chat().prop_map(|chat| Step::Lease { chat }),
        (chat(), any::<bool>()).prop_map(|(chat, on)| Step::Sent { chat, on }),
        (chat(), 1..3000u64).prop_map(|(chat, seconds)| Step::Retry { chat, seconds }),
        chat().prop_map(|chat| Step::Dead { chat }),
        Just(Step::Reopen),
        (-200_000..10_000i64).prop_map(|seconds| Step::Clock { seconds }),
    ]
}

/// One chat, as anybody would keep it: what is still to go out, in order, and what is under way.
#[derive(Debug, Default)]
struct Chat {
    queue: VecDeque<String>,
    leased: Option<Delivery>,
}

struct World {
    home: Home,
    store: Store,
    owner: StoreOwner,
    chats: [Chat; CHATS],
    now: Timestamp,
    count: usize,
    settled: usize,
}

fn target(chat: usize) -> Target {
    format!("p:{chat}").parse().expect("a target")
}

impl World {
    fn new() -> Self {
        let home = Home::new();
        let (store, owner) = home.open();
        let (chats, now) = (Default::default(), Timestamp::now());
        Self { home, store, owner, chats, now, count: 0, settled: 0 }
    }

    async fn take(mut self, step: Step) -> Self {
        match step {
            Step::End { chat, parts, lease } => self.end(chat, parts, lease).await,
            Step::Lease { chat } => self.lease(chat).await,
            Step::Sent { chat, on } => self.settle(chat, Settlement::Sent(Receipt::default()), on).await,
            Step::Retry { chat, seconds } => {
                let wait = Duration::from_secs(seconds);
                let (due, reason) = (self.now.after(wait), "no".into());
                self.settle(chat, Settlement::Retry { due, wait, reason }, true).await;
            }
            Step::Dead { chat } => self.settle(chat, Settlement::Dead("no".into()), false).await,
            Step::Clock { seconds } => self.now = Timestamp::from_millis(self.now.as_millis() + seconds * 1000),
            Step::Reopen => return self.reopen().await,
        }
        self
    }

    async fn end(&mut self, chat: usize, parts: usize, lease: bool) {
        let parts: Vec<_> = (0..parts).map(|part| format!("{}-{part}", self.count + part)).collect();
        self.count += parts.len();
        let turn = turn("s", "x");
        let id = turn.id;
        self.store.record_turn(turn, true).await.expect("recorded");
        let delivery = NewDelivery { target: target(chat), kind: Kind::Reply, session: None, parts: parts.clone() };
        let ending = Ending { delivery: Some(delivery), lease, ..Ending::default() };
        let leased = self.store.end_turn(id, completed("y"), ending).await.expect("ends");
        let known = &mut self.chats[chat];
        let alone = known.queue.is_empty() && known.leased.is_none();
        assert_eq!(leased.is_some(), lease && alone, "leased only where nothing is before it");
        known.queue.extend(parts);
        self.leased(chat, leased);
    }

    async fn lease(&mut self, chat: usize) {
        let leased = self.store.lease_next(target(chat), self.now).await.expect("read");
        self.leased(chat, leased);
    }

    fn leased(&mut self, chat: usize, leased: Option<Delivery>) {
        let Some(leased) = leased else { return };
        let chat = &mut self.chats[chat];
        assert!(chat.leased.is_none(), "two at once");
        assert_eq!(Some(&leased.text), chat.queue.pop_front().as_ref(), "out of order");
        chat.leased = Some(leased);
    }

    async fn settle(&mut self, chat: usize, settlement: Settlement, on: bool) {
        let Some(delivery) = self.chats[chat].leased.take() else { return };
        let again = matches!(settlement, Settlement::Retry { .. });
        match again {
            true => self.chats[chat].queue.push_front(delivery.text.clone()),
            false => self.settled += 1,
        }
        let next = self.store.settle(&delivery, settlement.clone(), on, self.now).await.expect("settled");
        assert!(next.is_none() || (on && !again), "a chat waits for its first");
        self.leased(chat, next);
        assert!(self.store.settle(&delivery, settlement, false, self.now).await.is_err(), "settled once");
    }

    async fn reopen(self) -> Self {
        let Self { home, store, owner, mut chats, now, count, settled } = self;
        drop(store);
        owner.close();
        let (store, owner) = home.open();
        let released = store.release_leases(vec!["another".into()]).await.expect("released");
        let mut leases = 0;
        for chat in &mut chats {
            if let Some(delivery) = chat.leased.take() {
                chat.queue.push_front(delivery.text);
                leases += 1;
            }
        }
        assert_eq!(released, (leases, leases));
        Self { home, store, owner, chats, now, count, settled }
    }

    /// Whatever happened: when everything is due, all of it goes out, and the scheduler is told where to look.
    async fn drain(mut self) {
        for chat in 0..CHATS {
            self.settle(chat, Settlement::Sent(Receipt::default()), false).await;
        }
        self.now = Timestamp::now().max(self.now).after(Duration::from_secs(1_000_000));
        loop {
            let due = self.store.due_deliveries(self.now, CHATS).await.expect("read").targets;
            let waiting = self.chats.iter().filter(|chat| !chat.queue.is_empty()).count();
            assert_eq!(due.len(), waiting, "{due:?}");
            if due.is_empty() {
                break;
            }
            for chat in 0..CHATS {
                self.lease(chat).await;
                self.settle(chat, Settlement::Sent(Receipt::default()), true).await;
                self.settle(chat, Settlement::Sent(Receipt::default()), false).await;
            }
        }
        assert_eq!(self.settled, self.count, "everything is settled once");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn each_delivery_goes_out_once_and_in_order_whatever_happens(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut world = World::new();
            for step in steps {
                world = world.take(step).await;
            }
            world.drain().await;
        });
    }
}
