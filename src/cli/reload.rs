//! `hermes-gateway reload`: returns when the new configuration is in force, or was refused.

use clap::Args;
use hyper::Method;

use super::client::Client;
use super::{Failure, Which};
use crate::exit::Exit;
use crate::http::control::ReloadReport;

#[derive(Debug, Args)]
pub struct Reload {
    #[command(flatten)]
    which: Which,
}

pub async fn execute(reload: &Reload) -> Result<Exit, Failure> {
    let client = Client::new(reload.which.places()?.control_socket());
    let report: ReloadReport = client.call(Method::POST, "/reload").await?;
    if !report.problems.is_empty() {
        let message = format!("refused, the running configuration stays:\n{}", report.problems.join("\n"));
        return Err(Failure { exit: Exit::Config, message });
    }
    match report.applied.as_slice() {
        [] => println!("reloaded; nothing changed"),
        applied => println!("reloaded; changed: {}", applied.join(", ")),
    }
    if !report.needs_restart.is_empty() {
        println!("waiting for 'hermes-gateway restart': {}", report.needs_restart.join(", "));
    }
    Ok(Exit::Ok)
}
