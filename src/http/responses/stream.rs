//! A response as a stream of events, each with its type and its number.
//!
//! The numbers of a stream follow each other without a gap, and each names the same event in every stream of the same
//! response, for a reply is told in the pieces in which it was said. So a client can ask for what comes after a number.
//! OpenAI's own clients have the whole stream sent again and pass over what they had, by its number. Where a crash made
//! a turn run again, its reply may be another one: then the numbers begin anew above all earlier ones, and whoever asks
//! for what comes after an earlier one gets the whole reply, with `response.created` before it.

use serde_json::{Value, json};

use super::answer::{Answer, part};
use crate::gateway::{Mark, Progress, Watch};
use crate::http::error::ApiError;
use crate::http::sse::{Events, Gone};
use crate::http::telling::{Begun, Telling};
use crate::model::turn::{Finish, Outcome};

/// Numbers for each attempt: more than the longest reply has bytes, and the first hundred attempts fit into 31 bits,
/// in which some clients hold a number.
const OF_AN_ATTEMPT: u64 = 1 << 24;
/// Events before the first one with text.
const BEFORE_TEXT: u64 = 4;

/// What a client has of a response that it asks for.
#[derive(Debug, Clone)]
pub enum Has {
    /// Nothing.
    Nothing,
    /// By the id of the last event it got.
    Mark(Mark),
    /// By the number of the last event it got.
    Number(u64),
}

impl From<Option<Mark>> for Has {
    fn from(mark: Option<Mark>) -> Self {
        mark.map_or(Self::Nothing, Self::Mark)
    }
}

struct Numbered {
    out: Telling,
    next: u64,
    /// The client has all up to this one.
    after: Option<u64>,
}

impl Numbered {
    async fn send(&mut self, name: &str, event: Value) -> Result<(), Gone> {
        match self.number(name, event) {
            Some(event) => self.out.send(Some(name), &event).await,
            None => Ok(()),
        }
    }

    /// An event after which the client has no more of the reply than before.
    async fn remark(&mut self, name: &str, event: Value) -> Result<(), Gone> {
        match self.number(name, event) {
            Some(event) => self.out.remark(Some(name), &event).await,
            None => Ok(()),
        }
    }

    /// The event with its number; `None` if the client has it.
    fn number(&mut self, name: &str, mut event: Value) -> Option<Value> {
        let number = self.next;
        self.next += 1;
        event["type"] = name.into();
        event["sequence_number"] = number.into();
        self.after.is_none_or(|after| number > after).then_some(event)
    }
}

/// Tells a response to its end.
pub async fn stream(events: Events, watch: Watch, has: Has, answer: Answer) -> Result<(), Gone> {
    let item_id = answer.item_id();
    let at = |mut event: Value| {
        event["item_id"] = item_id.clone().into();
        event["output_index"] = 0.into();
        event["content_index"] = 0.into();
        event
    };
    let (mark, after) = match has {
        Has::Nothing => (None, None),
        Has::Mark(mark) => (Some(mark), None),
        Has::Number(number) => (None, Some(number)),
    };
    let first = u64::from(watch.attempt() - 1) * OF_AN_ATTEMPT;
    let (out, begun) = Telling::begin(events, watch, mark).await?;
    let mut out = Numbered { out, next: first, after };
    match begun {
        Begun::Behind => out.next += BEFORE_TEXT + out.out.watch().texts_seen(),
        Begun::FromStart => {
            let begun = answer.response(None);
            out.send("response.created", json!({ "response": begun })).await?;
            out.send("response.in_progress", json!({ "response": begun })).await?;
            let item = answer.item("in_progress", None);
            out.send("response.output_item.added", json!({ "output_index": 0, "item": item })).await?;
            out.send("response.content_part.added", at(json!({ "part": part("") }))).await?;
        }
    }
    let outcome = loop {
        match out.out.next().await? {
            Progress::Text(text) => {
                let delta = at(json!({ "delta": text, "logprobs": [] }));
                out.send("response.output_text.delta", delta).await?;
            }
            // The Responses API knows no event for raw thoughts that all of its clients accept.
            Progress::Thought(_) => {}
            Progress::Ended(outcome) => break outcome,
        }
    };
    let (text, finish) = match &outcome {
        Outcome::Completed { text, finish, .. } => (text, finish),
        // The stream ends here, and the response does not.
        Outcome::Interrupted => {
            let error = json!(ApiError::stopping().body());
            return out.remark("error", error["error"].clone()).await;
        }
        failed => return out.remark("response.failed", json!({ "response": answer.response(Some(failed)) })).await,
    };
    out.send("response.output_text.done", at(json!({ "text": text, "logprobs": [] }))).await?;
    out.send("response.content_part.done", at(json!({ "part": part(text) }))).await?;
    let (name, status) = match finish {
        Finish::Stop => ("response.completed", "completed"),
        Finish::Length => ("response.incomplete", "incomplete"),
    };
    let item = answer.item(status, Some(text));
    out.send("response.output_item.done", json!({ "output_index": 0, "item": item })).await?;
    out.send(name, json!({ "response": answer.response(Some(&outcome)) })).await
}
