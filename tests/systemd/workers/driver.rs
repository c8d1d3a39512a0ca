//! A life of the gateway, as far as workers are concerned: a process that starts, finds and reads workers as it is told.
//!
//! It is this very test binary, run inside of a machine as the one test below, which does what `WORKER_DO` says: a verb,
//! a worker's name, and the rest. What it finds out it prints in lines that begin with [`TOLD`], as JSON strings.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use hermes_gateway::service::directories::Scope;
use hermes_gateway::service::handshake::Supervisor;
use hermes_gateway::service::worker::{Input, Limits, Output, Sandbox, Spec, Worker, Workers};

/// Before each line for the test outside.
pub const TOLD: &str = "told: ";

fn tell(text: impl std::fmt::Display) {
    println!("{TOLD}{}", serde_json::Value::String(text.to_string()));
    std::io::stdout().flush().expect("stdout");
}

#[test]
#[ignore = "the other tests run it inside of a machine"]
fn driver() {
    let Ok(order) = std::env::var("WORKER_DO") else { return };
    let mut words = order.splitn(3, ' ');
    let mut word = || words.next().unwrap_or("").to_owned();
    let (verb, name, rest) = (word(), word(), word());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        let scope = if std::env::var_os("WORKER_SYSTEM").is_some() { Scope::System } else { Scope::User };
        let home = PathBuf::from(std::env::var_os("HOME").expect("HOME"));
        let instance = "default".parse().expect("an instance name");
        let workers = Workers::new(Supervisor::Systemd, scope, &instance, home.join("state/workers"));
        carry_out(&workers, &home, &verb, &name, &rest).await;
    });
}

async fn carry_out(workers: &Workers, home: &std::path::Path, verb: &str, name: &str, rest: &str) {
    let found = async || workers.find(name).await.expect("asked").expect("found");
    match verb {
        "start" => match workers.start(spec(home, name, rest)).await {
            Ok(worker) => tell(format!("{} {:?}", worker.unit().unwrap_or("child"), worker.pid().await.is_some())),
            Err(e) => tell(format!("error: {e}")),
        },
        // A whole life of a worker.
        "converse" => {
            let worker = workers.start(spec(home, name, rest)).await.expect("started");
            tell(format!("{} {:?}", worker.unit().unwrap_or("child"), worker.pid().await.is_some()));
            worker.say(b"hello\n").await.expect("said");
            let mut output = worker.output(0);
            let heard = output.next_chunk().await.expect("read").expect("it runs");
            tell(String::from_utf8_lossy(&heard));
            tell(output.forget(output.offset()).is_ok());
            tell(worker.stop(Duration::from_secs(2)).await);
        }
        // Reads so many bytes, then goes on living until it is killed.
        "follow" => {
            read(&mut found().await.output(0), rest.parse().expect("a number")).await;
            std::future::pending::<()>().await;
        }
        "read" => read(&mut found().await.output(rest.parse().expect("an offset")), usize::MAX).await,
        "forget" => {
            let output = found().await.output(0);
            tell(output.forget(rest.parse().expect("an offset")).is_ok());
        }
        "say" => {
            tell(format!("{:?}", found().await.say(format!("{rest}\n").as_bytes()).await.map_err(|e| e.to_string())))
        }
        "await" => {
            let worker = found().await;
            tell(worker.pid().await.is_some());
            tell(worker.ended().await);
        }
        "end" => tell(found().await.ended().await),
        "stop" => tell(found().await.stop(Duration::from_secs(2)).await),
        "find" => tell(workers.find(name).await.expect("asked").map_or("none".into(), |w: Worker| w.name().to_owned())),
        "sweep" => {
            let keep: BTreeSet<String> = rest.split_whitespace().map(str::to_owned).collect();
            let mut swept = workers.sweep(&keep).await.expect("swept");
            swept.sort();
            tell(swept.join(" "));
        }
        other => panic!("no such verb: {other}"),
    }
}

/// Reads until so many bytes are there, or until the end.
async fn read(output: &mut Output, bytes: usize) {
    let mut text = Vec::new();
    while text.len() < bytes {
        let Some(chunk) = output.next_chunk().await.expect("read") else { break };
        text.extend(chunk);
    }
    tell(output.offset());
    tell(String::from_utf8_lossy(&text));
}

fn spec(home: &std::path::Path, name: &str, script: &str) -> Spec {
    let set = |variable: &str| std::env::var(variable).ok();
    let number = |variable: &str| set(variable).map(|value| value.parse::<u64>().expect("a number"));
    let path = ("PATH".to_owned(), "/usr/bin:/bin".to_owned());
    let odd = ("ODD".to_owned(), "a \"b\" $HOME `c` \\n %h\nsecond line".to_owned());
    Spec {
        name: name.to_owned(),
        description: format!("a worker in a test: {name}"),
        command: vec![set("WORKER_PROGRAM").unwrap_or("sh".into()), "-c".into(), script.to_owned()],
        environment: BTreeMap::from([path, odd]),
        directory: home.join("work"),
        input: set("WORKER_INPUT").map_or(Input::Open, |bytes| Input::Bytes(bytes.into_bytes())),
        limits: Limits {
            memory: number("WORKER_MEMORY"),
            tasks: number("WORKER_TASKS"),
            cpu_percent: None,
            cpu_weight: None,
            runtime: number("WORKER_SECONDS").map(Duration::from_secs),
            output: number("WORKER_OUTPUT").unwrap_or(1 << 20),
        },
        sandbox: Sandbox {
            writable: set("WORKER_WRITABLE").map(PathBuf::from).into_iter().collect(),
            hidden: set("WORKER_HIDDEN").map(PathBuf::from).into_iter().collect(),
            network: set("WORKER_NO_NETWORK").is_none(),
        },
    }
}
