//! What a turn's end says to whoever it is delivered to.

use crate::model::address::Target;
use crate::model::delivery::{Kind, NewDelivery};
use crate::model::id::SessionId;
use crate::model::turn::Outcome;
use crate::policy::split::{Limit, split};

/// What a person is told whose message was running at each of too many crashes.
pub const PARKED_NOTICE: &str = "Sorry, I cannot answer this: the gateway crashed each time I tried, so I have put it \
                                 aside. Everything else works as before.";

/// What goes out at the end of a turn, in parts that the platform can take; `None` if there is nothing to say.
pub fn delivery(session: SessionId, target: &Target, outcome: &Outcome, limit: Option<Limit>) -> Option<NewDelivery> {
    let (kind, text) = match outcome {
        Outcome::Completed { text, .. } if !text.trim().is_empty() => (Kind::Reply, text.clone()),
        // Silence would be taken for a broken gateway.
        Outcome::Completed { .. } => (Kind::Notice, "The agent had nothing to say to this.".to_owned()),
        Outcome::Failed { message, .. } => (Kind::Notice, format!("Sorry, this did not work: {message}.")),
        Outcome::Parked => (Kind::Notice, PARKED_NOTICE.to_owned()),
        // Somebody wanted it so, or the answer comes elsewhere.
        Outcome::Cancelled | Outcome::Interrupted | Outcome::Superseded | Outcome::Absorbed(_) => return None,
    };
    let parts = match limit {
        Some(limit) => split(&text, limit).into_iter().map(|part| part.text).collect(),
        None => vec![text],
    };
    Some(NewDelivery { target: target.clone(), kind, session: Some(session), parts })
}
