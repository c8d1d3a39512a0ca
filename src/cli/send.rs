//! `hermes-gateway send`
//!
//! The gateway may be restarted or die in the middle of a reply: the rest is printed when it is back. Whoever ends this
//! command takes back what they asked.

use std::io::{IsTerminal, Read, Write};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use clap::Args;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Response, body::Incoming};
use serde_json::Value;

use super::client::{Client, ClientError, EventReader};
use super::{Failure, Which};
use crate::exit::Exit;
use crate::http::control::SendRequest;

/// How long the gateway may be away in the middle of a reply.
const AWAY: Duration = Duration::from_secs(60);
/// How often it is looked for meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After this long somebody who watches should know what they wait for.
const TELL_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub struct Send {
    #[command(flatten)]
    which: Which,
    /// What to say; from standard input if it is left out or '-'
    text: Option<String>,
    /// The conversation to say it in
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// The agent to say it to
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
}

pub async fn execute(send: Send) -> Result<Exit, Failure> {
    let text = match send.text {
        Some(text) if text != "-" => text,
        None if std::io::stdin().is_terminal() => {
            return Err(Failure { exit: Exit::Usage, message: "say what to send, or pipe it in".into() });
        }
        _ => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
    };
    let request = SendRequest { text, session: send.session, agent: send.agent };
    let mut asking = Asking {
        client: Client::new(send.which.places()?.control_socket()),
        request: serde_json::to_vec(&request)?.into(),
        key: format!("send-{}", uuid::Uuid::now_v7().simple()),
        last_id: None,
    };
    let mut printed = Printed { ends_with_newline: true };
    let mut absence = Absence::new();
    loop {
        let failure = match asking.ask().await {
            Ok(response) => {
                absence.end();
                let mut events = EventReader::new(response);
                let ended = print(&mut events, &mut printed, &mut absence).await;
                asking.last_id = events.last_id().map(str::to_owned).or(asking.last_id);
                match ended? {
                    None => return Ok(Exit::Ok),
                    Some(away) => away,
                }
            }
            // Before it ever heard us, a gateway that is not there is just not there.
            Err(e @ ClientError::NotRunning { .. }) if !absence.was_there => return Err(e.into()),
            Err(e @ (ClientError::Denied { .. } | ClientError::Refused(_))) => return Err(e.into()),
            Err(e) => e.to_string(),
        };
        absence.goes_on(&failure)?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What is asked, and what of the answer has come.
struct Asking {
    client: Client,
    request: Bytes,
    /// By it the gateway knows the request again, and its successor.
    key: String,
    last_id: Option<String>,
}

impl Asking {
    async fn ask(&self) -> Result<Response<Incoming>, ClientError> {
        let mut headers = HeaderMap::new();
        for (name, value) in [("idempotency-key", Some(&self.key)), ("last-event-id", self.last_id.as_ref())] {
            if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        self.client.open_with(Method::POST, "/turns", headers, self.request.clone().into()).await
    }
}

struct Printed {
    ends_with_newline: bool,
}

impl Printed {
    fn text(&mut self, text: &str) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        self.ends_with_newline = text.ends_with('\n');
        out.flush()
    }

    fn end_line(&mut self) -> std::io::Result<()> {
        if self.ends_with_newline { Ok(()) } else { self.text("\n") }
    }
}

/// Prints the reply as it comes; `None` at its end, or why the gateway went away before.
async fn print(
    events: &mut EventReader,
    printed: &mut Printed,
    absence: &mut Absence,
) -> Result<Option<String>, Failure> {
    loop {
        let (event, data) = match events.next().await {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(Some("the connection ended".into())),
            Err(e) => return Ok(Some(e.to_string())),
        };
        match event.as_str() {
            "text" => {
                absence.is_over();
                printed.text(data["text"].as_str().unwrap_or_default())?;
            }
            // What is printed cannot be taken back.
            "again" => {
                printed.end_line()?;
                eprintln!("the gateway went away in the middle of the reply, and now the agent begins again:");
            }
            "end" => {
                printed.end_line()?;
                return Ok(None);
            }
            _ if data["error"]["code"] == "gateway_stopping" => return Ok(Some(message(&data).to_owned())),
            _ => return Err(Failure::text(message(&data))),
        }
    }
}

fn message(data: &Value) -> &str {
    data["error"]["message"].as_str().unwrap_or("the turn failed")
}

/// How long the gateway has been away since the last word of the reply.
struct Absence {
    was_there: bool,
    since: Option<Instant>,
    before: Duration,
    told: bool,
}

impl Absence {
    /// It has to come for the first time.
    fn new() -> Self {
        Self { was_there: false, since: Some(Instant::now()), before: Duration::ZERO, told: false }
    }

    /// It answers again. That alone does not count for much: it may go away again before it says a word.
    fn end(&mut self) {
        self.was_there = true;
        self.before += self.since.take().map(|since| since.elapsed()).unwrap_or_default();
    }

    /// The reply goes on.
    fn is_over(&mut self) {
        (self.before, self.told) = (Duration::ZERO, false);
    }

    fn goes_on(&mut self, why: &str) -> Result<(), Failure> {
        let so_far = self.before + self.since.get_or_insert_with(Instant::now).elapsed();
        if so_far > AWAY {
            return Err(Failure::text(match self.was_there {
                true => format!("the gateway went away in the middle of the reply, and has not come back: {why}"),
                false => why.to_owned(),
            }));
        }
        if so_far > TELL_AFTER && self.was_there && !self.told {
            eprintln!("the gateway went away in the middle of the reply; waiting {AWAY:?} for it to come back");
            self.told = true;
        }
        Ok(())
    }
}
