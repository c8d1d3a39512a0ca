//! Stopping: one token that reaches everything, and the only way to start a task.
//!
//! A stop has two steps. *Soft*: start nothing new, finish what runs. *Hard*: drop what still runs. Hard implies soft.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The stop of the whole process; clones see the same stop.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    soft: CancellationToken,
    hard: CancellationToken,
}

impl Stop {
    /// Nothing stops yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everybody to finish.
    pub fn soften(&self) {
        self.soft.cancel();
    }

    /// Asks everybody to drop what they do.
    pub fn harden(&self) {
        self.soft.cancel();
        self.hard.cancel();
    }

    /// Whether nothing new may be started.
    pub fn is_soft(&self) -> bool {
        self.soft.is_cancelled()
    }

    /// Whether what runs is to be dropped.
    pub fn is_hard(&self) -> bool {
        self.hard.is_cancelled()
    }

    /// Waits for the soft stop.
    pub async fn softened(&self) {
        self.soft.cancelled().await;
    }

    /// Waits for the hard stop.
    pub async fn hardened(&self) {
        self.hard.cancelled().await;
    }
}

/// All tasks of the process: each has a name, each is waited for at the end, the panic of each is told.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    running: Arc<Mutex<BTreeMap<u64, &'static str>>>,
    next: Arc<AtomicU64>,
}

impl Tasks {
    /// No task yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `work` until it ends. A panic ends this task only and is logged with the task's name.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, name);
        let tasks = self.clone();
        self.tracker.spawn(async move {
            if let Err(panic) = AssertUnwindSafe(work).catch_unwind().await {
                tracing::error!(task = name, panic = panic_text(panic.as_ref()), "a task panicked");
            }
            tasks.lock().remove(&number);
        });
    }

    /// Waits for all tasks, at most for `patience`; the names of those that are late, each once.
    pub async fn join(&self, patience: Duration) -> Vec<&'static str> {
        self.tracker.close();
        if tokio::time::timeout(patience, self.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        let mut late: Vec<_> = self.lock().values().copied().collect();
        late.sort_unstable();
        late.dedup();
        late
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, &'static str>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a panic said, as far as it can be known.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn late_tasks_are_named_and_panics_stay_in_their_task() {
        let (tasks, stop) = (Tasks::new(), Stop::new());
        tasks.spawn("panics", async { panic!("on purpose") });
        let waiting = stop.clone();
        tasks.spawn("waits for the hard stop", async move { waiting.hardened().await });
        stop.soften();
        assert_eq!(tasks.join(Duration::from_secs(5)).await, ["waits for the hard stop"]);
        stop.harden();
        assert!(tasks.join(Duration::from_secs(5)).await.is_empty());
    }
}
