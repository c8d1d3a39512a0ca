//! What goes out. A delivery is in the store before it is sent, and settled there when its platform has it.
//!
//! In each chat deliveries go out one after the other, in their order; chats beside each other. A chat is sent to by
//! one task, which takes lease after lease until nothing is due. What is due later is found by the scheduler, which
//! keeps nothing in memory: the store knows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

use super::chats::{Chat, Chats};
use super::pace::Pace;
use crate::meter::Meters;
use crate::model::address::Target;
use crate::model::delivery::Delivery;
use crate::model::time::Timestamp;
use crate::platform::{Limits, Platform, Platforms};
use crate::stop::{Stop, Tasks};
use crate::store::Store;

mod census;
mod sending;

/// Chats that the scheduler takes up at once; the next ones when these are through.
const TAKE_UP: usize = 256;
/// Longest sleep of the scheduler: a clock that jumps is noticed within this time.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The pause after a look that failed.
const STORE_PAUSE: Duration = Duration::from_secs(5);

/// A handle to the outbox; clones share it.
#[derive(Debug, Clone)]
pub struct Outbox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    tasks: Tasks,
    stop: Stop,
    meters: Arc<Meters>,
    desks: RwLock<Desks>,
    chats: Chats,
    /// Platforms that are not configured and that deliveries are for, with what was said of that.
    missing: Mutex<BTreeMap<String, String>>,
    /// The scheduler is to look.
    wake: Notify,
    /// The scheduler left some for later.
    left_some: AtomicBool,
    /// The store failed somebody, so the scheduler is to look, after a pause.
    store_failed: AtomicBool,
}

/// The platforms, and where each one's deliveries queue.
#[derive(Debug, Default)]
struct Desks {
    platforms: Platforms,
    by_name: BTreeMap<String, Arc<Desk>>,
}

/// One platform's counter: its limits are kept here, over all chats.
#[derive(Debug)]
struct Desk {
    platform: Arc<Platform>,
    limits: Limits,
    places: Semaphore,
    pace: Pace,
    /// What went wrong since it last took something.
    trouble: Mutex<Option<String>>,
}

impl Outbox {
    /// An outbox that works on `store`.
    pub fn new(store: Store, platforms: Platforms, tasks: Tasks, stop: Stop, meters: Arc<Meters>) -> Self {
        let inner = Inner {
            store,
            tasks,
            stop,
            meters,
            desks: RwLock::default(),
            chats: Chats::default(),
            missing: Mutex::default(),
            wake: Notify::new(),
            left_some: AtomicBool::new(false),
            store_failed: AtomicBool::new(false),
        };
        let outbox = Self { inner: Arc::new(inner) };
        outbox.reconfigure(platforms);
        outbox
    }

    /// Applies new platforms; what is under way to old ones goes on.
    pub fn reconfigure(&self, platforms: Platforms) {
        let mut desks = self.inner.desks.write().unwrap_or_else(PoisonError::into_inner);
        let desk = |(name, _, limits): (&str, &str, Limits)| {
            let (platform, _) = platforms.get(name)?;
            let kept = desks.by_name.get(name).filter(|desk| Arc::ptr_eq(&desk.platform, platform));
            let desk = kept.cloned().unwrap_or_else(|| Arc::new(Desk::new(platform.clone(), limits)));
            Some((name.to_owned(), desk))
        };
        let by_name = platforms.all().filter_map(desk).collect();
        *desks = Desks { platforms, by_name };
        drop(desks);
        self.inner.missing.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // A platform that was missing may be there now.
        self.inner.wake.notify_one();
    }

    /// The platforms as they are configured now.
    pub fn platforms(&self) -> Platforms {
        self.inner.desks.read().unwrap_or_else(PoisonError::into_inner).platforms.clone()
    }

    /// What a platform can take, if it is configured.
    pub fn limits(&self, platform: &str) -> Option<Limits> {
        self.desk(platform).map(|desk| desk.limits)
    }

    /// Each platform's name, and what went wrong since it last took something. Those that are missing and wanted, too.
    pub fn troubles(&self) -> Vec<(String, Option<String>)> {
        let desks = self.inner.desks.read().unwrap_or_else(PoisonError::into_inner);
        let trouble = |desk: &Desk| desk.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let missing = self.inner.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = missing.iter().map(|(name, trouble)| (name.clone(), Some(trouble.clone())));
        desks.by_name.iter().map(|(name, desk)| (name.clone(), trouble(desk))).chain(missing).collect()
    }

    /// The right to send to a chat that nobody sends to: what is stored for it may be leased in the same transaction.
    pub fn claim(&self, target: &Target) -> Option<Chat> {
        self.inner.chats.claim(target)
    }

    /// Goes on with what was stored for a chat: by who claimed it, with what was leased, or by whoever sends there.
    pub fn go_on(&self, target: &Target, claimed: Option<Chat>, leased: Option<Delivery>) {
        match claimed.or_else(|| self.inner.chats.notice(target)) {
            Some(chat) => self.send_from(chat, leased),
            // Its sender looks again, or, when there are too many, the scheduler does.
            None if self.inner.chats.are_full() => self.look_again(),
            None => {}
        }
    }

    /// Makes the scheduler look: something was changed in the store.
    pub fn look_again(&self) {
        self.inner.wake.notify_one();
    }

    /// Makes the scheduler look when the store may work again.
    fn look_later(&self) {
        self.inner.store_failed.store(true, Ordering::Relaxed);
        self.look_again();
    }

    /// Takes up what is due, until the soft stop.
    pub async fn run(self) {
        let inner = &self.inner;
        loop {
            if inner.store_failed.swap(false, Ordering::Relaxed) {
                tokio::select! {
                    biased;
                    () = inner.stop.softened() => return,
                    () = tokio::time::sleep(STORE_PAUSE) => {}
                }
            }
            let pause = self.take_up().await;
            tokio::select! {
                biased;
                () = inner.stop.softened() => return,
                () = inner.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Takes up the chats that have something due; how long nothing else will be.
    async fn take_up(&self) -> Duration {
        let now = Timestamp::now();
        let due = match self.inner.store.due_deliveries(now, TAKE_UP).await {
            Ok(due) => due,
            Err(error) => {
                if !error.lasts() {
                    tracing::error!(error = %error, "cannot look for what is to be delivered; trying again");
                }
                return STORE_PAUSE;
            }
        };
        self.inner.left_some.store(due.targets.len() >= TAKE_UP, Ordering::Relaxed);
        for target in &due.targets {
            if let Some(chat) = self.claim(target) {
                self.send_from(chat, None);
            }
        }
        due.next.map_or(LOOK_EVERY, |next| next.since(now).min(LOOK_EVERY))
    }

    fn desk(&self, platform: &str) -> Option<Arc<Desk>> {
        self.inner.desks.read().unwrap_or_else(PoisonError::into_inner).by_name.get(platform).cloned()
    }

    /// Notes what is wrong with a platform, or that nothing is; what it was before.
    fn set_trouble(&self, platform: &str, desk: Option<&Desk>, trouble: Option<String>) -> Option<String> {
        if let Some(desk) = desk {
            return std::mem::replace(&mut *desk.trouble.lock().unwrap_or_else(PoisonError::into_inner), trouble);
        }
        let mut missing = self.inner.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = missing.get(platform).cloned();
        missing.extend(trouble.map(|trouble| (platform.to_owned(), trouble)));
        before
    }

    fn send_from(&self, chat: Chat, leased: Option<Delivery>) {
        self.inner.tasks.spawn("delivery", self.clone().send_all(chat, leased));
    }
}

impl Desk {
    fn new(platform: Arc<Platform>, limits: Limits) -> Self {
        let (places, pace) = (Semaphore::new(limits.in_flight), Pace::new(limits.per_second));
        Self { platform, limits, places, pace, trouble: Mutex::default() }
    }
}
