//! Sending to one chat: lease, send, settle, and the next one.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;

use super::{Desk, Outbox};
use crate::fault;
use crate::gateway::chats::Chat;
use crate::gateway::dice;
use crate::meter::DeliveryLabels;
use crate::model::delivery::{Delivery, Receipt, SendError, Settlement};
use crate::model::disposition::Disposition;
use crate::model::time::{Timestamp, in_words};
use crate::policy::backoff::Backoff;
use crate::stop::panic_text;
use crate::store::StoreError;

/// What a platform does not take now is sent again, ever more rarely; the horizon ends it, not a count.
const BACKOFF: Backoff =
    Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(15 * 60), attempts: u32::MAX };
/// Where only a person can help, looking more often helps nobody.
const HALTED: Duration = Duration::from_secs(5 * 60);
/// Longest wait that a platform can ask for: below `store::MAX_AHEAD_MS`, beyond which a wait is taken for a clock's.
const LONGEST_ASKED: Duration = Duration::from_secs(55 * 60);
/// What was sent must be settled: it is tried until that works or the process ends.
const SETTLE_BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(250), cap: Duration::from_secs(5), attempts: u32::MAX };

impl Outbox {
    /// Sends what is due in a chat, beginning with what is leased already.
    pub(super) async fn send_all(self, mut chat: Chat, mut leased: Option<Delivery>) {
        loop {
            let next = match leased.take() {
                Some(delivery) => Ok(Some(delivery)),
                None => self.inner.store.lease_next(chat.target().clone(), Timestamp::now()).await,
            };
            match next {
                Ok(Some(delivery)) => {
                    fault::point("outbox.leased");
                    let Some(next) = self.send_one(&delivery).await else { return };
                    leased = next;
                }
                Ok(None) => match chat.finish() {
                    Some(again) => chat = again,
                    None => break,
                },
                Err(error) => {
                    tracing::error!(error = %error, "cannot take up a delivery; trying again");
                    break;
                }
            }
            if leased.is_none() && self.inner.stop.is_soft() {
                // The successor goes on.
                break;
            }
        }
        if self.inner.left_some.swap(false, Ordering::Relaxed) {
            self.look_again();
        }
    }

    /// Sends a leased delivery and settles it. What is leased next in its chat; `None` when the hard stop came first,
    /// and the lease is left for the successor to judge.
    async fn send_one(&self, delivery: &Delivery) -> Option<Option<Delivery>> {
        let desk = self.desk(delivery.target.platform());
        if fault::is_sabotaged("outbox.settle-first") {
            let early = Settlement::Sent(Receipt::default());
            let settled = self.inner.store.settle(delivery, early, true, Timestamp::now()).await;
            fault::point("outbox.sent");
            drop(attempt(desk.as_deref(), delivery).await);
            return settled.ok();
        }
        let result = tokio::select! {
            biased;
            () = self.inner.stop.hardened() => return None,
            result = attempt(desk.as_deref(), delivery) => result,
        };
        fault::point("outbox.sent");
        let settlement = self.judge(delivery, desk.as_deref(), result);
        let next = self.settle(delivery, settlement).await;
        fault::point("outbox.settled");
        next
    }

    fn judge(&self, delivery: &Delivery, desk: Option<&Desk>, result: Result<Receipt, SendError>) -> Settlement {
        let horizon = desk.map_or(Duration::MAX, |desk| desk.limits.horizon);
        let settlement = settlement(delivery, result, horizon, Timestamp::now(), dice());
        let platform = delivery.target.platform();
        let outcome = match &settlement {
            Settlement::Sent(_) => "sent",
            Settlement::Retry { .. } => "retried",
            Settlement::Dead(_) => "dead",
        };
        let reason = match &settlement {
            Settlement::Sent(_) => None,
            Settlement::Retry { reason, .. } | Settlement::Dead(reason) => Some(reason.clone()),
        };
        let before = self.set_trouble(platform, desk, reason.clone());
        tell(delivery, &settlement, before.is_some() && before == reason);
        if before.is_some() && reason.is_none() {
            tracing::info!(platform, "the platform takes deliveries again");
        }
        let labels = DeliveryLabels { platform: platform.to_owned(), outcome };
        self.inner.meters.deliveries.get_or_create(&labels).inc();
        settlement
    }

    async fn settle(&self, delivery: &Delivery, settlement: Settlement) -> Option<Option<Delivery>> {
        for tries in 1.. {
            let on = !self.inner.stop.is_soft();
            let settled = self.inner.store.settle(delivery, settlement.clone(), on, Timestamp::now()).await;
            let error = match settled {
                Ok(next) => {
                    if matches!(settlement, Settlement::Retry { .. }) {
                        // The scheduler must know when.
                        self.look_again();
                    }
                    return Some(next);
                }
                Err(StoreError::NoRoom(error) | StoreError::Failed(error)) => error,
            };
            tracing::error!(delivery = delivery.number, error, tries, "what came of a delivery could not be stored");
            let wait = SETTLE_BACKOFF.after(tries, None, dice()).unwrap_or(SETTLE_BACKOFF.cap);
            tokio::select! {
                () = self.inner.stop.hardened() => return None,
                () = tokio::time::sleep(wait) => {}
            }
        }
        None
    }
}

/// Says what came of an attempt. A trouble that lasts is told once: a thousand chats that wait for the same endpoint need
/// no thousand lines.
fn tell(delivery: &Delivery, settlement: &Settlement, known: bool) {
    let (number, target) = (delivery.number, delivery.target.to_string());
    match settlement {
        Settlement::Sent(_) => tracing::debug!(delivery = number, target, "delivered"),
        Settlement::Retry { reason, .. } if known => {
            tracing::debug!(delivery = number, target, error = reason, "not delivered, as before");
        }
        Settlement::Retry { reason, wait, .. } => {
            let wait = in_words(*wait);
            tracing::warn!(delivery = number, target, error = reason, "not delivered; trying again in {wait}");
        }
        Settlement::Dead(reason) => tracing::error!(
            delivery = number,
            target,
            error = reason,
            "not delivered and given up; `hermes-gateway outbox show {number}` has it"
        ),
    }
}

/// One attempt; a panic of the adapter is an error of this delivery only.
async fn attempt(desk: Option<&Desk>, delivery: &Delivery) -> Result<Receipt, SendError> {
    let Some(desk) = desk else {
        let message = format!("there is no platform '{}' in the configuration", delivery.target.platform());
        return Err(SendError { disposition: Disposition::Halt, message });
    };
    // Never closed.
    let _place = desk.places.acquire().await;
    desk.pace.keep().await;
    AssertUnwindSafe(desk.platform.send(delivery)).catch_unwind().await.unwrap_or_else(|panic| {
        tracing::error!(panic = panic_text(panic.as_ref()), "a platform panicked");
        Err(SendError { disposition: Disposition::Reject, message: "the platform failed inside the gateway".into() })
    })
}

/// What an attempt means for a delivery.
fn settlement(
    delivery: &Delivery,
    result: Result<Receipt, SendError>,
    horizon: Duration,
    now: Timestamp,
    dice: f64,
) -> Settlement {
    let SendError { disposition, message: reason } = match result {
        Ok(receipt) => return Settlement::Sent(receipt),
        Err(error) => error,
    };
    let attempt = delivery.attempts.saturating_add(1);
    let wait = match disposition {
        Disposition::Reject => return Settlement::Dead(reason),
        Disposition::Retry { after } => BACKOFF.after(attempt, after.map(|a| a.min(LONGEST_ASKED)), dice),
        Disposition::Halt => Some(HALTED),
    };
    match wait {
        Some(wait) if delivery.waited + wait <= horizon => Settlement::Retry { due: now.after(wait), wait, reason },
        _ => Settlement::Dead(format!("{reason}; given up after {attempt} attempts in {}", in_words(delivery.waited))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::delivery::Kind;
    use proptest::prelude::*;

    fn delivery(attempts: u32, waited: Duration) -> Delivery {
        Delivery {
            number: 1,
            key: "k".into(),
            turn: None,
            session: None,
            target: "p:c".parse().expect("a target"),
            kind: Kind::Reply,
            part: (1, 1),
            text: "t".into(),
            attempts,
            waited,
            repeated: false,
            created: Timestamp::from_millis(0),
        }
    }

    fn failed(disposition: Disposition) -> Result<Receipt, SendError> {
        Err(SendError { disposition, message: "no".into() })
    }

    proptest! {
        #[test]
        fn a_delivery_is_tried_for_its_horizon_and_not_longer(dice in 0.0f64..=1.0, hours in 1u64..48) {
            let horizon = Duration::from_secs(hours * 3600);
            let (mut waited, mut attempts) = (Duration::ZERO, 0);
            let mut last = Duration::ZERO;
            loop {
                let retry = Disposition::Retry { after: None };
                let now = Timestamp::from_millis(0);
                match settlement(&delivery(attempts, waited), failed(retry), horizon, now, dice.max(0.01)) {
                    Settlement::Retry { wait, due, .. } => {
                        prop_assert_eq!(due, now.after(wait));
                        waited += wait;
                        last = wait;
                    }
                    Settlement::Dead(_) => break,
                    Settlement::Sent(_) => unreachable!(),
                }
                attempts += 1;
                prop_assert!(attempts < 1_000_000);
            }
            prop_assert!(waited <= horizon && waited + last.max(BACKOFF.cap) >= horizon);
        }
    }

    #[test]
    fn who_knows_best_decides() {
        let now = Timestamp::from_millis(0);
        let judge =
            |disposition| settlement(&delivery(0, Duration::ZERO), failed(disposition), Duration::MAX, now, 0.0);
        assert_eq!(judge(Disposition::Reject), Settlement::Dead("no".into()));
        for (asked, waits) in [(7, 7), (1_000_000, LONGEST_ASKED.as_secs())] {
            match judge(Disposition::Retry { after: Some(Duration::from_secs(asked)) }) {
                Settlement::Retry { wait, .. } => assert_eq!(wait.as_secs(), waits),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(judge(Disposition::Halt), Settlement::Retry { wait: HALTED, .. }));
    }
}
