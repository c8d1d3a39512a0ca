//! `hermes-gateway restart`: asks the process to give way, and returns when another life answers.

use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::{Failure, Which};
use crate::exit::Exit;

/// How long a restart may take: a drain, systemd's delay, a start.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often the successor is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(25);

#[derive(Debug, Args)]
pub struct Restart {
    #[command(flatten)]
    which: Which,
}

pub async fn execute(restart: &Restart) -> Result<Exit, Failure> {
    let client = Client::new(restart.which.places()?.control_socket());
    let before: Value = client.call(Method::GET, "/status").await?;
    let life = &before["identity"]["life"];
    match client.call::<Value>(Method::POST, "/restart").await {
        Ok(_) => {}
        // Somebody else asked first, and it is on its way out: one restart serves both.
        Err(ClientError::Refused(_) | ClientError::Later(_) | ClientError::Silent(_)) => {}
        Err(e) => return Err(e.into()),
    }
    let successor = async {
        loop {
            if let Ok(now) = client.call::<Value>(Method::GET, "/status").await
                && now["identity"]["life"] != *life
                && now["state"] == "running"
            {
                return now;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let late = |_| Failure::text(format!("no successor answered within {PATIENCE:?}; see 'hermes-gateway status'"));
    let now = tokio::time::timeout(PATIENCE, successor).await.map_err(late)?;
    println!(
        "restarted: pid {}, version {}",
        now["identity"]["pid"],
        now["identity"]["version"].as_str().unwrap_or("?")
    );
    Ok(Exit::Ok)
}
