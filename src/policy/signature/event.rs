//! What a webhook is about, and how its sender names it: in headers with some senders, in the body with others.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{MAX_DELIVERY_ID, Scheme, standard_headers};

/// The longest name of an event, in bytes. What is longer is no name.
const MAX_NAME: usize = 200;

/// What happened, in the sender's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventType {
    /// Its name: `issues`, `Merge Request Hook`, `invoice.paid`.
    pub name: String,
    /// Other names that a filter may know it by, more exact ones among them: `issues.opened`, `merge_request`,
    /// `merge_request.open`.
    pub also: Vec<String>,
}

impl EventType {
    /// Whether a filter for `wanted` lets it through.
    pub fn matches(&self, wanted: &str) -> bool {
        self.name == wanted || self.also.iter().any(|name| name == wanted)
    }

    /// A name, refined by what was done where that is known.
    fn refined(name: String, action: Option<String>) -> Self {
        let also = action.map(|action| format!("{name}.{action}")).into_iter().collect();
        Self { name, also }
    }
}

/// What the request is about, if it says.
///
/// GitHub says it in `X-GitHub-Event` and `action`; GitLab in `X-Gitlab-Event` and `object_kind`; Stripe and Standard
/// Webhooks in `type`; Slack in `event.type`, or in `type` where there is no event (`url_verification`); others in
/// `X-Event-Type`, `X-Webhook-Event`, `event_type`, `event` or `type`, of which the first counts.
pub fn event_type<'h>(scheme: &Scheme, headers: &impl Fn(&str) -> Option<&'h str>, body: &Value) -> Option<EventType> {
    let header = |name: &str| headers(name).and_then(name_of);
    let field = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).and_then(name_of);
    let gitlab = || {
        let action = || field("/object_attributes/action");
        let kind = field("/object_kind").map(|kind| EventType::refined(kind, action()));
        match (header("X-Gitlab-Event"), kind) {
            (Some(name), Some(kind)) => Some(EventType { name, also: [vec![kind.name], kind.also].concat() }),
            (Some(name), None) => Some(EventType { name, also: Vec::new() }),
            (None, kind) => kind,
        }
    };
    let plain = |name| EventType { name, also: Vec::new() };
    match scheme {
        Scheme::GitHub => header("X-GitHub-Event").map(|name| EventType::refined(name, field("/action"))),
        Scheme::GitLab => gitlab(),
        Scheme::Stripe => field("/type").map(plain),
        Scheme::Slack => field("/event/type").or_else(|| field("/type")).map(plain),
        // GitLab's signing tokens follow the standard, its bodies do not.
        Scheme::Standard => field("/type").map(plain).or_else(gitlab),
        Scheme::Hmac { .. } => {
            let named = header("X-Event-Type").or_else(|| header("X-Webhook-Event"));
            named.or_else(|| ["/event_type", "/event", "/type"].into_iter().find_map(field)).map(plain)
        }
    }
}

/// The sender's name for this delivery where it is in the body: Stripe's `id`, Slack's `event_id`.
pub fn delivery_id_in_body(scheme: &Scheme, body: &Value) -> Option<String> {
    let name = match scheme {
        Scheme::Stripe => "id",
        Scheme::Slack => "event_id",
        Scheme::GitHub | Scheme::GitLab | Scheme::Standard | Scheme::Hmac { .. } => return None,
    };
    body.get(name).and_then(Value::as_str).and_then(id_of)
}

/// The sender's name for this delivery where it is in the headers.
pub(super) fn delivery_id<'h>(
    scheme: &Scheme,
    headers: &impl Fn(&str) -> Option<&'h str>,
    body: &[u8],
) -> Option<String> {
    let header = |name: &str| headers(name).and_then(id_of);
    // What several deliveries can share tells them apart only together with the body: taken alone, the second of two
    // events would pass for a repetition of the first.
    let shared = |name: &str| headers(name).and_then(|id| id_of(&format!("{id}.{}", short_digest(body))));
    match scheme {
        Scheme::GitHub => header("X-GitHub-Delivery"),
        // Before GitLab 17.4 there is only the UUID, which it makes once per webhook and request of its own.
        Scheme::GitLab => header("Idempotency-Key").or_else(|| shared("X-Gitlab-Event-UUID")),
        Scheme::Stripe | Scheme::Slack => None,
        Scheme::Standard => header(standard_headers(headers)[0]),
        // A request id can be that of the request that made the sender send this, and something else besides.
        Scheme::Hmac { .. } => {
            header("X-Webhook-Id").or_else(|| header("Idempotency-Key")).or_else(|| shared("X-Request-Id"))
        }
    }
}

fn name_of(text: &str) -> Option<String> {
    let usable = !text.is_empty() && text.len() <= MAX_NAME && !text.chars().any(char::is_control);
    usable.then(|| text.to_owned())
}

fn id_of(text: &str) -> Option<String> {
    if text.is_empty() {
        return None;
    }
    let plain = text.len() <= MAX_DELIVERY_ID && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    Some(if plain { text.to_owned() } else { format!("sha256:{}", hex(&Sha256::digest(text))) })
}

/// Enough of a digest to tell the events of one sender apart.
fn short_digest(body: &[u8]) -> String {
    hex(&Sha256::digest(body)[..16])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
