//! What an agent tells of its work (`session/update`), as events of the turn.
//!
//! The same updates make the same events, so a turn that is read a second time after a crash reads the same.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::model::turn::TurnEvent;
use crate::web::clip;

/// Tools whose titles are known at the same time; beyond that an update is told without one.
const MAX_TOOLS: usize = 1024;
/// Steps of a plan that are told.
const MAX_STEPS: usize = 50;

/// Tells one turn.
#[derive(Debug, Default)]
pub struct Narrator {
    tools: BTreeMap<String, Tool>,
    last: Last,
    /// Whether the reply has words already.
    has_spoken: bool,
}

#[derive(Debug)]
struct Tool {
    title: String,
    status: String,
}

/// What was told last.
#[derive(Debug, Default, PartialEq, Eq)]
enum Last {
    #[default]
    Nothing,
    /// A piece of the reply.
    Text,
    /// A piece of a thought; whether it ends with a line.
    Thought(bool),
    /// A line about a tool, a permission or a plan.
    Note,
}

impl Narrator {
    /// The events that an update is.
    pub fn hear(&mut self, update: &Value) -> Option<TurnEvent> {
        match update["sessionUpdate"].as_str()? {
            "agent_message_chunk" => self.text(text(update)?),
            "agent_thought_chunk" => self.thought(text(update)?),
            "tool_call" | "tool_call_update" => self.tool(update),
            "plan" => self.plan(update),
            _ => None,
        }
    }

    /// A line of its own among the thoughts.
    pub fn note(&mut self, line: &str) -> Option<TurnEvent> {
        let break_before = if self.last == Last::Thought(false) { "\n" } else { "" };
        self.last = Last::Note;
        Some(TurnEvent::Thought(format!("{break_before}{line}\n")))
    }

    /// What was said before a tool was used and what is said after it are paragraphs: agents leave that to whoever shows
    /// them.
    fn text(&mut self, text: &str) -> Option<TurnEvent> {
        let break_before = if self.has_spoken && self.last == Last::Note { "\n\n" } else { "" };
        self.has_spoken = true;
        self.last = Last::Text;
        Some(TurnEvent::Text(format!("{break_before}{text}")))
    }

    fn thought(&mut self, text: &str) -> Option<TurnEvent> {
        self.last = Last::Thought(text.ends_with('\n'));
        Some(TurnEvent::Thought(text.to_owned()))
    }

    fn tool(&mut self, update: &Value) -> Option<TurnEvent> {
        let id = update["toolCallId"].as_str()?;
        let title = update["title"].as_str().map(clip);
        let known = self.tools.get(id).map(|tool| (tool.title.clone(), tool.status.clone()));
        let (old_title, old_status) = known.unwrap_or_else(|| ("tool".into(), String::new()));
        let title = title.unwrap_or(old_title);
        let first = if old_status.is_empty() { "pending" } else { &old_status };
        let status = clip(update["status"].as_str().unwrap_or(first));
        if self.tools.len() < MAX_TOOLS || self.tools.contains_key(id) {
            self.tools.insert(id.to_owned(), Tool { title: title.clone(), status: status.clone() });
        }
        // A tool's output comes in many updates of the same status.
        if status == old_status { None } else { self.note(&format!("tool: {title} ({status})")) }
    }

    fn plan(&mut self, update: &Value) -> Option<TurnEvent> {
        let steps = update["entries"].as_array()?.iter().take(MAX_STEPS).filter_map(|step| {
            let content = clip(step["content"].as_str()?);
            Some(format!("{content} ({})", clip(step["status"].as_str().unwrap_or("pending"))))
        });
        let steps: Vec<_> = steps.collect();
        if steps.is_empty() { None } else { self.note(&format!("plan: {}", steps.join("; "))) }
    }
}

/// The text of a content block; other kinds have no place in a chat's reply.
fn text(update: &Value) -> Option<&str> {
    let content = &update["content"];
    if content["type"] == "text" { content["text"].as_str().filter(|text| !text.is_empty()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn said(text: &str) -> Value {
        json!({ "sessionUpdate": "agent_message_chunk", "content": { "type": "text", "text": text } })
    }

    #[test]
    fn a_turn_with_tools_reads_as_paragraphs_and_notes() {
        let mut narrator = Narrator::default();
        let tool = |kind: &str, status: &str| json!({ "sessionUpdate": kind, "toolCallId": "1", "status": status });
        let updates = [
            json!({ "sessionUpdate": "agent_thought_chunk", "content": { "type": "text", "text": "hm" } }),
            json!({ "sessionUpdate": "tool_call", "toolCallId": "1", "title": "Read\nfile" }),
            said("Let me "),
            said("look."),
            tool("tool_call_update", "in_progress"),
            tool("tool_call_update", "in_progress"),
            tool("tool_call_update", "completed"),
            said("Done."),
            json!({ "sessionUpdate": "plan", "entries": [{ "content": "a", "status": "completed" }, { "content": "b" }] }),
            json!({ "sessionUpdate": "usage_update", "used": 1 }),
            json!({ "sessionUpdate": "agent_message_chunk", "content": { "type": "image" } }),
        ];
        let events: Vec<_> = updates.iter().filter_map(|update| narrator.hear(update)).collect();
        let (text, thought) = (|t: &str| TurnEvent::Text(t.into()), |t: &str| TurnEvent::Thought(t.into()));
        let expected = [
            thought("hm"),
            thought("\ntool: Read file (pending)\n"),
            text("Let me "),
            text("look."),
            thought("tool: Read file (in_progress)\n"),
            thought("tool: Read file (completed)\n"),
            text("\n\nDone."),
            thought("plan: a (completed); b (pending)\n"),
        ];
        assert_eq!(events, expected);
    }

    proptest! {
        #[test]
        fn any_update_is_told_or_ignored(kind in "(agent_message_chunk|tool_call|plan|x)", key in "[a-z]{0,8}", number in any::<i64>()) {
            let mut narrator = Narrator::default();
            for value in [json!(null), json!(number), json!([number]), json!({ key.clone(): number })] {
                let update = json!({
                    "sessionUpdate": kind, "content": value, "toolCallId": value, "entries": value, "status": value
                });
                narrator.hear(&update);
                narrator.hear(&value);
            }
        }
    }
}
