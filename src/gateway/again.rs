//! Clients that come back for the rest of a reply, and those that do not.

use std::sync::Arc;
use std::time::Duration;

use super::live::Live;
use super::{Gateway, SubmitError, Ticket};
use crate::model::id::{SessionId, TurnId};
use crate::model::message::Message;
use crate::model::turn::{History, NewTurn, Origin, TurnRecord};
use crate::store::StoreError;

/// How long a new life works on what was asked at a terminal before somebody there has asked again. Longer than a
/// terminal tries.
const UNCLAIMED: Duration = Duration::from_secs(90);

impl Gateway {
    /// Takes a turn of a client that has a part of a reply already, which began with the turn `earlier`. If that one
    /// asks the same and was not cut off, the client is with it again; else this one is run.
    pub async fn submit_again(&self, turn: NewTurn, earlier: TurnId) -> Result<Ticket, SubmitError> {
        // A key finds its turn by itself.
        if turn.idempotency.is_none()
            && let Some(ticket) = self.rejoin(&turn, earlier).await?
        {
            return Ok(ticket);
        }
        self.submit(turn).await
    }

    async fn rejoin(&self, turn: &NewTurn, earlier: TurnId) -> Result<Option<Ticket>, StoreError> {
        let Some((record, watch)) = self.find(earlier).await? else { return Ok(None) };
        if watch.is_cut_off() || !asks_the_same(turn, &record, &self.inner.store.turn_input(earlier).await?) {
            return Ok(None);
        }
        Ok(Some(Ticket { id: record.id, session: record.session, accepted: record.accepted, watch }))
    }

    /// Cancels a turn of an earlier life if nobody comes back for it and it is of use to nobody else.
    pub(super) fn give_up_unclaimed(&self, turn: &NewTurn, live: &Arc<Live>) {
        if turn.origin != Origin::Control {
            return;
        }
        let (live, stop) = (live.clone(), self.inner.stop.clone());
        self.inner.tasks.spawn("unclaimed", async move {
            tokio::select! {
                () = tokio::time::sleep(UNCLAIMED) => live.cut_if_unwatched(),
                () = live.is_over() => {}
                () = stop.softened() => {}
            }
        });
    }
}

/// Whether a stored turn asks the same as a new one, as far as the store can tell. `said` are its messages: what was
/// asked, then what came of it.
fn asks_the_same(turn: &NewTurn, record: &TurnRecord, said: &[Message]) -> bool {
    let parent = match turn.history {
        History::Chain(parent) => Some(parent),
        History::Given(_) | History::Session => None,
    };
    // A conversation that began with its turn is named by it.
    let own = |session: &SessionId, id: TurnId| session.as_str().ends_with(&id.to_string());
    let same_session = record.session == turn.session || own(&record.session, record.id) && own(&turn.session, turn.id);
    same_session
        && (record.origin, &record.agent, &record.model) == (turn.origin, &turn.agent, &turn.model)
        && (&record.instructions, record.parent) == (&turn.instructions, parent)
        && said.starts_with(&turn.input)
}
