//! A reply on its way to a client, event by event. Each event's id says how much of the reply the client has with it;
//! whoever comes back with that id (`Last-Event-ID`) is told the rest, also by the next life of the gateway. If the
//! reply is another one by then, it is told from its start, and begins as every reply begins: so what a client puts
//! together from the last beginning on is never a mixture.

use axum::http::{HeaderMap, HeaderName};
use serde::Serialize;

use super::sse::{Events, Gone};
use crate::gateway::{Mark, Progress, Resumed, Told, Watch};

/// The header in which a client that comes back says what it has.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What a client says that it has of a reply. An id that is none of ours says nothing.
pub fn has(headers: &HeaderMap) -> Option<Mark> {
    headers.get(LAST_EVENT_ID)?.to_str().ok()?.parse().ok()
}

/// Where a telling begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// With the first word.
    FromStart,
    /// Behind what the client has.
    Behind,
}

/// A reply that is told.
#[derive(Debug)]
pub struct Telling {
    events: Events,
    watch: Watch,
    told: Told,
}

impl Telling {
    /// Begins behind what the client has, as soon as the reply has got there.
    pub async fn begin(events: Events, mut watch: Watch, has: Option<Mark>) -> Result<(Self, Begun), Gone> {
        let (mut told, mut begun) = (Told::nothing(watch.turn()), Begun::FromStart);
        // Who has no word of it yet begins anew, and misses no thought.
        if let Some(has) = has.filter(|has| has.position > 0) {
            let resumed = tokio::select! {
                resumed = watch.resume(&has) => resumed,
                () = events.closed() => return Err(Gone),
            };
            if let Resumed::Behind(had) = resumed {
                (told, begun) = (had, Begun::Behind);
            }
        }
        Ok((Self { events, watch, told }, begun))
    }

    /// What comes next; an error as soon as the client is gone, also while the agent is silent.
    pub async fn next(&mut self) -> Result<Progress, Gone> {
        let progress = tokio::select! {
            progress = self.watch.next() => progress,
            () = self.events.closed() => return Err(Gone),
        };
        if let Progress::Text(text) = &progress {
            self.told.add(text);
        }
        Ok(progress)
    }

    /// How the turn is watched.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Writes an event, with which the client has all that was told so far.
    pub async fn send(&self, name: Option<&str>, data: &impl Serialize) -> Result<(), Gone> {
        self.events.send(Some(&self.told.mark()), name, data).await
    }

    /// Writes an event that is no part of the reply.
    pub async fn remark(&self, name: Option<&str>, data: &impl Serialize) -> Result<(), Gone> {
        self.events.send(None, name, data).await
    }

    /// Ends a stream as chat completions do.
    pub async fn done(&self) -> Result<(), Gone> {
        self.events.done().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_mark_of_ours_says_nothing() {
        let headers = |value: &'static str| HeaderMap::from_iter([(LAST_EVENT_ID, value.parse().expect("a value"))]);
        assert!(has(&headers("0123456789abcdef0123456789abcdef.12.89abcdef")).is_some());
        for other in ["", "17", "0123456789abcdef0123456789abcdef.12", "x.y.z"] {
            assert_eq!(has(&headers(other)), None, "{other}");
        }
    }
}
