//! `hermes-gateway stop`: through the supervisor where there is one, else the process itself, and nobody by name.

use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::{Failure, Which};
use crate::exit::Exit;
use crate::service::pidfile::{LiveGateway, NoGateway};
use crate::service::systemd::{ManagerError, ServiceManager};
use crate::service::units::UnitNames;

/// How long a stand-alone gateway may drain before it is ended.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a killed process may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct Stop {
    #[command(flatten)]
    which: Which,
}

pub async fn execute(stop: &Stop) -> Result<Exit, Failure> {
    let places = stop.which.places()?;
    match LiveGateway::find(&places.pid_file()) {
        Ok(gateway) => stop_process(&gateway),
        // No pid that we may signal: the unit's manager may know it, or the process itself may hear us.
        Err(no_gateway) => {
            if stop_unit(&stop.which).await? {
                return Ok(Exit::Ok);
            }
            match (ask_it(&Client::new(places.control_socket())).await, no_gateway) {
                (Ok(true), _) => Ok(Exit::Ok),
                (Ok(false), NoGateway::NotRunning(_)) => {
                    println!("hermes-gateway ({}) was not running", stop.which.instance);
                    Ok(Exit::Ok)
                }
                (Ok(false), unproven) => Err(unproven.into()),
                (Err(failure), _) => Err(failure),
            }
        }
    }
}

/// Whether there was a unit to stop.
async fn stop_unit(which: &Which) -> Result<bool, Failure> {
    let units = UnitNames::of(&which.instance);
    let manager = match ServiceManager::connect(which.scope()).await {
        Err(ManagerError::NotBooted | ManagerError::NoUserManager(_) | ManagerError::NoUserBus(_)) => return Ok(false),
        connected => connected?,
    };
    let report = manager.report(&units.service).await?;
    if report.load_state != "loaded" || report.active_state == "inactive" {
        return Ok(false);
    }
    manager.stop(&units.service).await?;
    println!("stopped {}", units.service);
    println!("its sockets stay: the next connection starts it again; 'hermes-gateway uninstall' ends that");
    Ok(true)
}

fn stop_process(gateway: &LiveGateway) -> Result<Exit, Failure> {
    let pid = gateway.record.pid;
    gateway.terminate()?;
    if !gateway.wait(PATIENCE)? {
        eprintln!("pid {pid} did not end within {PATIENCE:?} and is killed");
        gateway.kill()?;
        if !gateway.wait(KILL_PATIENCE)? {
            return Err(Failure::text(format!("pid {pid} does not end")));
        }
    }
    println!("stopped pid {pid}");
    Ok(Exit::Ok)
}

/// For a gateway whose pid means nothing here, or is 1: it hears us all the same. Whether there was one.
async fn ask_it(client: &Client) -> Result<bool, Failure> {
    let status: Value = match client.call(Method::GET, "/status").await {
        Err(ClientError::NotRunning { .. }) => return Ok(false),
        status => status?,
    };
    if status["identity"]["supervisor"] != "stand-alone" {
        return Err(Failure::text("systemd would start it again: stop it by 'systemctl stop', in its scope"));
    }
    let _told: Value = client.call(Method::POST, "/stop").await?;
    let waited = tokio::time::timeout(PATIENCE, async {
        while !matches!(client.call::<Value>(Method::GET, "/health").await, Err(ClientError::NotRunning { .. })) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    waited.await.map_err(|_| Failure::text(format!("the gateway did not stop within {PATIENCE:?}")))?;
    println!("stopped");
    Ok(true)
}
