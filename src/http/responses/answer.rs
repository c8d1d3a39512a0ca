//! The response object of the Responses API, as far as a text reply fills it.

use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::model::id::TurnId;
use crate::model::turn::{Finish, Outcome, TurnRecord, Usage};

/// A response, but for how its turn goes.
#[derive(Debug)]
pub struct Answer {
    /// The turn.
    pub id: TurnId,
    /// When it was accepted, in seconds since 1970.
    pub created: i64,
    /// What the client called the agent.
    pub model: String,
    /// Instructions for this turn.
    pub instructions: Option<String>,
    /// The response that it continues.
    pub previous: Option<TurnId>,
}

impl From<&TurnRecord> for Answer {
    fn from(record: &TurnRecord) -> Self {
        Self {
            id: record.id,
            created: record.accepted.as_secs(),
            model: record.model.clone(),
            instructions: record.instructions.clone(),
            previous: record.parent,
        }
    }
}

impl Answer {
    /// The response object; without an outcome it is in progress.
    pub fn response(&self, outcome: Option<&Outcome>) -> Value {
        let (status, output) = match outcome {
            None => ("in_progress", json!([])),
            Some(Outcome::Completed { text, finish: Finish::Stop, .. }) => {
                ("completed", json!([self.item("completed", Some(text))]))
            }
            Some(Outcome::Completed { text, finish: Finish::Length, .. }) => {
                ("incomplete", json!([self.item("incomplete", Some(text))]))
            }
            Some(Outcome::Cancelled) => ("cancelled", json!([])),
            Some(Outcome::Failed { .. } | Outcome::Interrupted | Outcome::Parked) => ("failed", json!([])),
            Some(Outcome::Superseded | Outcome::Absorbed(_)) => ("cancelled", json!([])),
        };
        let error = outcome.and_then(ApiError::of_outcome).map(|error| json!(error.body())["error"].clone());
        let usage = match outcome {
            Some(Outcome::Completed { usage, .. }) => wire_usage(*usage),
            _ => Value::Null,
        };
        let incomplete = (status == "incomplete").then(|| json!({ "reason": "max_output_tokens" }));
        json!({
            "id": format!("resp_{}", self.id),
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": error.map(|e| json!({ "code": "server_error", "message": e["message"] })),
            "incomplete_details": incomplete,
            "model": self.model,
            "instructions": self.instructions,
            "previous_response_id": self.previous.map(|id| format!("resp_{id}")),
            "output": output,
            "parallel_tool_calls": true,
            "tool_choice": "auto",
            "tools": [],
            "usage": usage,
        })
    }

    pub fn item(&self, status: &str, text: Option<&str>) -> Value {
        let content: Vec<_> = text.map(part).into_iter().collect();
        let id = self.item_id();
        json!({ "type": "message", "id": id, "role": "assistant", "status": status, "content": content })
    }

    pub fn item_id(&self) -> String {
        format!("msg_{}", self.id)
    }
}

/// A part of an item that holds this text.
pub fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [] })
}

fn wire_usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.input_tokens,
        "input_tokens_details": { "cached_tokens": 0, "cache_write_tokens": 0 },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": usage.input_tokens + usage.output_tokens,
    })
}
