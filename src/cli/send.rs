//! `hermes-gateway send`

use std::io::{IsTerminal, Read, Write};

use clap::Args;
use hyper::Method;

use super::client::{Client, EventReader};
use super::{Failure, Which};
use crate::exit::Exit;
use crate::http::control::SendRequest;

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
    let client = Client::new(send.which.places()?.control_socket());
    let response = client.open(Method::POST, "/turns", serde_json::to_vec(&request)?.into()).await?;
    let mut events = EventReader::new(response);
    let mut out = std::io::stdout().lock();
    let mut ends_with_newline = true;
    while let Some((event, data)) = events.next().await? {
        match event.as_str() {
            "text" => {
                let text = data["text"].as_str().unwrap_or_default();
                ends_with_newline = text.ends_with('\n');
                out.write_all(text.as_bytes())?;
                out.flush()?;
            }
            "end" => {
                if !ends_with_newline {
                    writeln!(out)?;
                }
                return Ok(Exit::Ok);
            }
            _ => return Err(Failure::text(data["error"]["message"].as_str().unwrap_or("the turn failed"))),
        }
    }
    Err(Failure::text("the gateway went away in the middle of the reply"))
}
