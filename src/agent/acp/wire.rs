//! The Agent Client Protocol's messages, as far as a client without an editor needs them: JSON-RPC 2.0, one object a line.
//!
//! <https://agentclientprotocol.com/protocol/v1/overview>. Agents are ahead of any list of types, so what is unknown is
//! ignored and only what is used is looked at; what is no JSON-RPC at all is a breach.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::web::clip;

/// The version of the protocol that is spoken here.
pub const VERSION: u64 = 1;
/// Longest line, in bytes: a tool's result may quote a whole file.
pub const MAX_LINE: usize = 4 * 1024 * 1024;
/// JSON-RPC's word for a method that is not there.
const METHOD_NOT_FOUND: i64 = -32601;
/// ACP's word for "log in first".
const AUTHENTICATION_REQUIRED: i64 = -32000;

/// What an agent said that is not its protocol; in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the agent said what is not its protocol ({reason}): {line}")]
pub struct Breach {
    reason: String,
    line: String,
}

/// An error that the agent answers with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    code: i64,
    #[serde(default)]
    message: String,
    #[serde(default)]
    data: Value,
}

impl Refusal {
    /// Whether a person has to log in first.
    pub fn wants_login(&self) -> bool {
        self.code == AUTHENTICATION_REQUIRED
    }

    /// What it says, short. The message is often no more than "Internal error", and the reason is beside it.
    pub fn text(&self) -> String {
        let detail = match &self.data {
            Value::Null => String::new(),
            Value::String(text) => format!(": {text}"),
            data => data["details"].as_str().map_or_else(|| format!(": {data}"), |text| format!(": {text}")),
        };
        clip(&format!("{}{detail}", self.message))
    }
}

/// A message of the agent.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// The answer to our request of this number; `None`: to one that it could not read.
    Response(Option<u64>, Result<Value, Refusal>),
    /// It wants to know something: its number, in its own way, the method and the parameters.
    Request(Value, String, Value),
    /// It tells something.
    Notification(String, Value),
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default, deserialize_with = "present")]
    id: Option<Value>,
    method: Option<String>,
    #[serde(default)]
    params: Value,
    #[serde(default, deserialize_with = "present")]
    result: Option<Value>,
    error: Option<Refusal>,
}

/// Tells a `null` from what is not there.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// A line as a message; `None` for an empty one.
pub fn parse(line: &[u8]) -> Result<Option<Incoming>, Breach> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let breach = |reason: String| Breach { reason, line: clip(&String::from_utf8_lossy(line)) };
    if line.first() != Some(&b'{') {
        return Err(breach("no JSON object".into()));
    }
    let envelope: Envelope = serde_json::from_slice(line).map_err(|e| breach(e.to_string()))?;
    let Envelope { id, method, params, result, error } = envelope;
    match (method, id) {
        (Some(method), Some(id)) => Ok(Some(Incoming::Request(id, method, params))),
        (Some(method), None) => Ok(Some(Incoming::Notification(method, params))),
        (None, Some(id)) => match (result, error) {
            (_, Some(refusal)) => Ok(Some(Incoming::Response(id.as_u64(), Err(refusal)))),
            (Some(result), None) => Ok(Some(Incoming::Response(id.as_u64(), Ok(result)))),
            (None, None) => Err(breach("an answer with neither result nor error".into())),
        },
        (None, None) => Err(breach("neither a method nor an id".into())),
    }
}

/// A request.
pub fn request(id: u64, method: &str, params: &Value) -> Vec<u8> {
    line(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }))
}

/// A notification.
pub fn notification(method: &str, params: &Value) -> Vec<u8> {
    line(&json!({ "jsonrpc": "2.0", "method": method, "params": params }))
}

/// The answer to a request.
pub fn answer(id: &Value, result: &Value) -> Vec<u8> {
    line(&json!({ "jsonrpc": "2.0", "id": id, "result": result }))
}

/// The answer to a request that asks for what this client has not.
pub fn no_such_method(id: &Value, method: &str) -> Vec<u8> {
    let message = format!("this client has no {}", clip(method));
    line(&json!({ "jsonrpc": "2.0", "id": id, "error": { "code": METHOD_NOT_FOUND, "message": message } }))
}

fn line(message: &Value) -> Vec<u8> {
    let mut bytes = message.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

/// What this client is and can, for `initialize`.
pub fn introduction() -> Value {
    json!({
        "protocolVersion": VERSION,
        "clientCapabilities": { "fs": { "readTextFile": false, "writeTextFile": false }, "terminal": false },
        "clientInfo": { "name": "hermes-gateway", "version": env!("CARGO_PKG_VERSION") },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_kind_of_message_is_told_apart() {
        let parse = |text: &str| parse(text.as_bytes()).expect("a message").expect("not empty");
        assert_eq!(parse("{\"id\":3,\"result\":null}"), Incoming::Response(Some(3), Ok(Value::Null)));
        let refusal = Refusal { code: -32000, message: "m".into(), data: Value::Null };
        assert!(refusal.wants_login());
        let text = "{\"id\":null,\"error\":{\"code\":-32000,\"message\":\"m\"}}";
        assert_eq!(parse(text), Incoming::Response(None, Err(refusal)));
        let asked = Incoming::Request("a".into(), "fs/read_text_file".into(), json!({ "path": "/" }));
        assert_eq!(parse("{\"id\":\"a\",\"method\":\"fs/read_text_file\",\"params\":{\"path\":\"/\"}}"), asked);
        assert_eq!(parse("{\"method\":\"n\"}"), Incoming::Notification("n".into(), Value::Null));
    }

    #[test]
    fn what_is_no_message_is_a_breach_that_quotes_it() {
        for bad in
            ["Loading model...", "[]", "{}", "{\"id\":1}", "{\"method\":3}", "{\"id\":1,\"error\":\"no\"}", "nul"]
        {
            let breach = parse(bad.as_bytes()).expect_err(bad).to_string();
            assert!(breach.contains(bad), "{breach}");
        }
        assert_eq!(parse(b"  \r"), Ok(None));
    }

    #[test]
    fn the_reason_beside_the_message_is_told() {
        let with = |data: Value| Refusal { code: -32603, message: "Internal error".into(), data }.text();
        assert_eq!(with(json!({ "details": "no credit" })), "Internal error: no credit");
        assert_eq!(with(json!("quota")), "Internal error: quota");
        assert_eq!(with(Value::Null), "Internal error");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100), text in "[{}\\[\\]\",:a-z0-9 ]{0,60}") {
            let _either = parse(&bytes);
            let _either = parse(text.as_bytes());
        }

        #[test]
        fn what_is_said_is_one_line_and_comes_back(id in any::<u64>(), text in "\\PC{0,20}\n?\\PC{0,20}") {
            let bytes = request(id, "m", &json!({ "text": text }));
            prop_assert_eq!(bytes.iter().position(|byte| *byte == b'\n'), Some(bytes.len() - 1));
            let back = parse(&bytes[..bytes.len() - 1]).expect("a message");
            prop_assert_eq!(back, Some(Incoming::Request(id.into(), "m".into(), json!({ "text": text }))));
        }
    }
}
