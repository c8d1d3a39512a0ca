//! Life: READY, then one loop that answers signals and commands until one of them is a stop.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::birth::Frame;
use super::{Ended, Parts, death, reload};
use crate::config::Config;
use crate::http::control::Command;
use crate::journal::LifeEvent;
use crate::service::signals::{Received, Request, Signals};
use crate::store::StoreOwner;

/// How often the status line is looked at; it is sent when it changed.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Why a life ends.
pub enum Reason {
    /// A signal; its name and who sent it.
    Signal(Received, &'static str),
    /// `hermes-gateway stop`
    Stop,
    /// `hermes-gateway restart`
    Restart,
}

/// Serves until told to stop, then stops in order. Gives back how it ended, and the store's threads.
pub async fn live(frame: Frame, mut config: Config, mut parts: Parts, signals: &mut Signals) -> (Ended, StoreOwner) {
    parts.api.vitals.set_ready();
    let status = status(&parts);
    frame.notifier.ready(&status);
    let listeners = parts.ready.http.join(", ");
    frame.journal.life(LifeEvent::Ready, &format!("gateway ready: {status}"), &[("LISTENERS", listeners)]);
    let mut ticks = interval_at(Instant::now() + STATUS_EVERY, STATUS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let reason = loop {
        tokio::select! {
            received = signals.next() => match received.request {
                Request::Stop(name) => break Reason::Signal(received, name),
                Request::Reload => drop(reload::reload(&frame, &mut config, &parts)),
            },
            Some(command) = parts.commands.recv() => match command {
                Command::Stop => break Reason::Stop,
                Command::Restart => break Reason::Restart,
                Command::Reload(reply) => {
                    let _caller_left = reply.send(reload::reload(&frame, &mut config, &parts));
                }
            },
            _ = ticks.tick() => say_status(&frame, &parts),
        }
    };
    death::die(frame, config.stop_grace, parts, reason, signals).await
}

fn say_status(frame: &Frame, parts: &Parts) {
    let status = status(parts);
    if status != frame.notifier.last_status() {
        frame.notifier.status(&status);
    }
}

/// One line for `systemctl status`: where it serves, who answers, what goes on.
pub fn status(parts: &Parts) -> String {
    let agents = parts.api.gateway.agents();
    let (running, queued) = parts.api.gateway.load();
    let mut line = format!("serving {}; agent {}", parts.ready.http.join(", "), agents.default_name());
    let others = agents.kinds().count() - 1;
    if others > 0 {
        line.push_str(&format!(" and {others} more"));
    }
    match (running, queued) {
        (0, 0) => line.push_str("; idle"),
        (running, 0) => line.push_str(&format!("; {running} turns running")),
        (running, queued) => line.push_str(&format!("; {running} turns running, {queued} waiting")),
    }
    match parts.api.gateway.outbox().load() {
        (0, 0) => {}
        (waiting, 0) => line.push_str(&format!("; {waiting} deliveries waiting")),
        (0, dead) => line.push_str(&format!("; {dead} deliveries dead")),
        (waiting, dead) => line.push_str(&format!("; {waiting} deliveries waiting, {dead} dead")),
    }
    line
}
