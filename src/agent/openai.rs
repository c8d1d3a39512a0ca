//! Any endpoint that speaks OpenAI's chat completions, streaming: OpenAI itself, vLLM, llama.cpp, Ollama, LiteLLM ...
//!
//! <https://platform.openai.com/docs/api-reference/chat-streaming>. Vendors deviate, so unknown fields are ignored and
//! absent ones forgiven; what is not forgiven is a stream that ends before it says so.

use std::time::Duration;

use reqwest::Response;
use serde::Deserialize;
use serde_json::json;

use super::{Events, Prompt};
use crate::model::disposition::Disposition;
use crate::model::message::{Message, Role};
use crate::model::turn::{AgentError, Finish, TurnEnd, TurnEvent, Usage};
use crate::secret::{self, ExposeSecret, SecretString};
use crate::web::{self, LazyClient, cause, clip};

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
    client: LazyClient,
}

impl OpenAi {
    /// A model; nothing is read or connected yet.
    pub fn new(config: Config) -> Self {
        Self { client: LazyClient::new(config.connect_timeout), config }
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
        let mut request = self.client.client().map_err(retry)?.post(&url).json(&self.body(prompt));
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

    async fn refusal(&self, response: Response) -> AgentError {
        let status = response.status();
        let disposition = web::disposition(status, response.headers());
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
