//! Death: nothing new, what runs may end, then everything is given back, and whoever is late is named.

use std::time::Duration;

use tokio::time::Instant;

use super::birth::Frame;
use super::life::Reason;
use super::{Ended, Parts};
use crate::exit::Exit;
use crate::journal::LifeEvent;
use crate::model::time::in_words;
use crate::service::signals::{Request, Signals};
use crate::store::StoreOwner;

/// How long tasks have after the hard stop, which only asks them to write down that they were cut off.
const HARD_PATIENCE: Duration = Duration::from_secs(5);
/// How long the store's threads have for what is queued and for the checkpoint.
const STORE_PATIENCE: Duration = Duration::from_secs(5);
/// How often systemd is told that the drain goes on.
const EXTEND_EVERY: Duration = Duration::from_secs(5);

/// Stops everything in order.
pub async fn die(
    frame: Frame,
    grace: Duration,
    parts: Parts,
    reason: Reason,
    signals: &mut Signals,
) -> (Ended, StoreOwner) {
    let mut ended = begin(&frame, &reason);
    let Parts { api, tasks, stop, owner, .. } = parts;
    stop.soften();
    let (running, _) = api.gateway.load();
    if running > 0 {
        frame.notifier.status(&format!("stopping; {running} turns may go on for {}", in_words(grace)));
    }
    drop(api);
    let deadline = Instant::now() + grace;
    loop {
        frame.notifier.extend(EXTEND_EVERY * 3);
        let pause = EXTEND_EVERY.min(deadline.saturating_duration_since(Instant::now()));
        let late = tokio::select! {
            late = tasks.join(pause) => late,
            () = another_stop(signals) => match ended {
                // Whoever stops a gateway that is about to restart wants it stopped.
                Ended::Restart => {
                    ended = Ended::Stopped;
                    continue;
                }
                Ended::Stopped => {
                    tracing::warn!("not waiting for running turns any longer");
                    break;
                }
            },
        };
        if late.is_empty() || Instant::now() >= deadline {
            break;
        }
    }
    stop.harden();
    let late = tasks.join(HARD_PATIENCE).await;
    if !late.is_empty() {
        tracing::warn!(tasks = late.join(", "), "these did not end in time and are dropped");
    }
    (ended, owner)
}

fn begin(frame: &Frame, reason: &Reason) -> Ended {
    let (ended, code, why, sender) = match reason {
        Reason::Signal(received, name) => {
            (Ended::Stopped, Exit::Ok, format!("{name} from {}", received.sender), received.sender.to_string())
        }
        Reason::Stop => (Ended::Stopped, Exit::Ok, "hermes-gateway stop".into(), "control socket".into()),
        Reason::Restart => (Ended::Restart, Exit::Restart, "hermes-gateway restart".into(), "control socket".into()),
    };
    frame.deadline.arm(code as u8);
    frame.notifier.stopping(&format!("stopping ({why})"));
    let fields = [("REASON", why.clone()), ("SENDER", sender)];
    frame.journal.life(LifeEvent::Stopping, &format!("gateway stopping: {why}"), &fields);
    ended
}

/// One more signal that asks for a stop.
async fn another_stop(signals: &mut Signals) {
    loop {
        let received = signals.next().await;
        if let Request::Stop(name) = received.request {
            tracing::warn!(sender = %received.sender, "{name} while stopping");
            return;
        }
    }
}

/// Waits for the store's threads; they checkpoint when the last handle is gone.
pub fn close_store(owner: StoreOwner) {
    let (done, closed) = std::sync::mpsc::channel();
    let closing = std::thread::Builder::new().name("store-closer".into()).spawn(move || {
        owner.close();
        let _nobody_waits = done.send(());
    });
    match (closing, closed.recv_timeout(STORE_PATIENCE)) {
        // A thread that is about to end can be given a signal that is meant for a successor.
        (Ok(closing), Ok(())) => drop(closing.join()),
        _ => tracing::warn!("the store was not closed in time; the next start recovers it from its log"),
    }
}
