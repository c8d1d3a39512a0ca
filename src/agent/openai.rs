//! Any endpoint that speaks OpenAI's chat completions, streaming: OpenAI itself, vLLM, llama.cpp, Ollama, LiteLLM ...
//!
//! <https://platform.openai.com/docs/api-reference/chat-streaming>. Vendors deviate, so unknown fields are ignored and
//! absent ones forgiven; what is not forgiven is a stream that ends before it says so.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::{Events, Prompt};
use crate::model::disposition::Disposition;
use crate::model::message::{Message, Role};
use crate::model::turn::{AgentError, Finish, TurnEnd, TurnEvent, Usage};
use crate::secret::{self, ExposeSecret, SecretString};

mod stream;

use stream::Lines;

/// Longest piece of an error answer that is shown, in bytes.
const MAX_ERROR_BODY: usize = 4096;

/// Where the model is and how to ask it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Up to and including the version, without a slash at the end: `https://api.openai.com/v1`.
    pub base_url: String,
    /// The model's name there.
    pub model: String,
    /// Where the key is; `None` for endpoints that want none.
    pub key: Option<secret::Source>,
    /// What the model is told first.
    pub system_prompt: Option<String>,
    /// Longest time to a connection.
    pub connect_timeout: Duration,
    /// Longest silence, before the first byte and between any two.
    pub idle_timeout: Duration,
}

/// A model behind an endpoint.
#[derive(Debug)]
pub struct OpenAi {
    config: Config,
    // Made at the first turn: TLS roots cost megabytes that an idle gateway need not have.
    client: OnceLock<Client>,
}

impl OpenAi {
    /// A model; nothing is read or connected yet.
    pub fn new(config: Config) -> Self {
        Self { config, client: OnceLock::new() }
    }

    /// Sends the prompt and passes on what the model says.
    pub async fn turn(&self, prompt: Prompt, events: Events) -> Result<TurnEnd, AgentError> {
        let mut lines = Lines::new(self.ask(&prompt).await?, self.config.idle_timeout);
        let (mut finish, mut usage) = (None, None);
        while let Some(data) = lines.next_data().await? {
            if data == "[DONE]" {
                // Some endpoints give no reason; this says that all is said.
                finish.get_or_insert_with(|| "stop".to_owned());
                break;
            }
            let chunk: Chunk = serde_json::from_str(&data).map_err(|e| {
                retry(format!("the model's endpoint sent a line that is no chunk: {}", self.quote(&e.to_string())))
            })?;
            if let Some(error) = chunk.error {
                let told = self.quote(&error.message);
                return Err(retry(format!("the model's endpoint failed while it answered: {told}")));
            }
            usage = chunk.usage.map(Usage::from).or(usage);
            for choice in chunk.choices.into_iter().filter(|choice| choice.index == 0) {
                if let Some(thought) = choice.delta.reasoning_content.filter(|text| !text.is_empty()) {
                    events.send(TurnEvent::Thought(thought)).await?;
                }
                if let Some(text) = choice.delta.content.filter(|text| !text.is_empty()) {
                    events.send(TurnEvent::Text(text)).await?;
                }
                finish = choice.finish_reason.or(finish);
            }
        }
        match finish.as_deref() {
            None => Err(retry("the model's endpoint broke off in the middle of the reply".into())),
            Some("length") => Ok(TurnEnd { finish: Finish::Length, usage }),
            Some(_) => Ok(TurnEnd { finish: Finish::Stop, usage }),
        }
    }

    async fn ask(&self, prompt: &Prompt) -> Result<Response, AgentError> {
        let url = format!("{}/chat/completions", self.config.base_url);
        let mut request = self.client()?.post(&url).json(&self.body(prompt));
        if let Some(key) = self.key()? {
            request = request.bearer_auth(key.expose_secret());
        }
        let silence = || retry(format!("{url} said nothing for {:?}", self.config.idle_timeout));
        let sent = tokio::time::timeout(self.config.idle_timeout, request.send()).await.map_err(|_| silence())?;
        let response = sent.map_err(|e| retry(format!("cannot reach {url}: {}", cause(&e))))?;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    fn body(&self, prompt: &Prompt) -> serde_json::Value {
        let system = [&self.config.system_prompt, &prompt.instructions].into_iter().flatten();
        let system = system.map(|text| Message { role: Role::System, content: text.clone() });
        let messages: Vec<_> = system.chain(prompt.messages.iter().cloned()).collect();
        json!({
            "model": self.config.model,
            "messages": messages,
            "stream": true,
            "stream_options": { "include_usage": true },
        })
    }

    /// Read for each turn, so that a rotated key counts at once.
    fn key(&self) -> Result<Option<SecretString>, AgentError> {
        let read = self.config.key.as_ref().map(secret::read).transpose();
        read.map_err(|e| AgentError { disposition: Disposition::Halt, message: format!("the agent has no key: {e}") })
    }

    fn client(&self) -> Result<&Client, AgentError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        // Only the first call of the process can succeed, and it need not be ours.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let client = Client::builder()
            .connect_timeout(self.config.connect_timeout)
            .user_agent(concat!("hermes-gateway/", env!("CARGO_PKG_VERSION")))
            // A redirect would carry the key to another host.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| retry(format!("cannot set up an HTTP client: {}", cause(&e))))?;
        Ok(self.client.get_or_init(|| client))
    }

    async fn refusal(&self, response: Response) -> AgentError {
        let status = response.status();
        let after = response.headers().get("retry-after").and_then(|value| retry_after(value.to_str().ok()?));
        let disposition = match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT => {
                Disposition::Retry { after }
            }
            _ if status.is_server_error() => Disposition::Retry { after },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Disposition::Halt,
            _ => Disposition::Reject,
        };
        let mut body = Vec::new();
        let mut lines = Lines::new(response, self.config.idle_timeout);
        while let Ok(Some(chunk)) = lines.next_chunk().await
            && body.len() < MAX_ERROR_BODY
        {
            body.extend_from_slice(&chunk);
        }
        let body = String::from_utf8_lossy(&body);
        let told = serde_json::from_str::<ErrorBody>(&body).map(|body| body.error.message);
        let told = told.unwrap_or_else(|_| body.into_owned());
        let message = format!("the model's endpoint answered {status}: {}", self.quote(&told));
        AgentError { disposition, message }
    }

    /// What an endpoint said, short and without our key: some quote the key they refuse.
    fn quote(&self, text: &str) -> String {
        match self.key() {
            Ok(Some(key)) => clip(&text.replace(key.expose_secret(), "[REDACTED]")),
            _ => clip(text),
        }
    }
}

fn retry(message: String) -> AgentError {
    AgentError { disposition: Disposition::Retry { after: None }, message }
}

/// The innermost cause of a client error: reqwest's own text repeats the URL and hides the reason.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn clip(text: &str) -> String {
    let mut clipped: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    if clipped.len() < text.len() {
        clipped.push('…');
    }
    clipped
}

/// `Retry-After` in its two forms: seconds, or an HTTP date.
fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<f64>() {
        return Duration::try_from_secs_f64(seconds.max(0.0)).ok();
    }
    let then = httpdate::parse_http_date(value).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(then.saturating_sub(SystemTime::now().duration_since(UNIX_EPOCH).ok()?))
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<WireUsage>,
    error: Option<WireError>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    #[serde(default)]
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
    /// What vLLM, llama.cpp and DeepSeek call thinking aloud.
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

impl From<WireUsage> for Usage {
    fn from(usage: WireUsage) -> Self {
        Self { input_tokens: usage.prompt_tokens, output_tokens: usage.completion_tokens }
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    error: WireError,
}

#[derive(Deserialize)]
struct WireError {
    message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_retry_after_are_understood() {
        assert_eq!(retry_after("3"), Some(Duration::from_secs(3)));
        assert_eq!(retry_after("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(retry_after("-1"), Some(Duration::ZERO));
        assert_eq!(retry_after("Thu, 01 Jan 1970 00:00:10 GMT"), Some(Duration::ZERO));
        assert!(retry_after("Fri, 31 Dec 2100 23:59:59 GMT").is_some_and(|wait| wait > Duration::from_secs(1)));
        assert_eq!(retry_after("soon"), None);
    }
}
