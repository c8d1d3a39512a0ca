//! Workers as children: shell scripts in a temporary directory.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::service::directories::Scope;
use crate::service::handshake::Supervisor;
use crate::service::process;

mod lives;
mod talk;

/// Longest time for anything to become true.
const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    /// One life of the gateway: another one knows nothing of the workers but their files.
    fn life(&self) -> Workers {
        let instance = "default".parse().expect("an instance name");
        Workers::new(Supervisor::StandAlone, Scope::User, &instance, self.directory.path().join("state/workers"))
    }

    fn spec(&self, name: &str, script: &str) -> Spec {
        Spec {
            name: name.to_owned(),
            description: "a test".to_owned(),
            command: vec!["sh".into(), "-c".into(), script.into()],
            environment: BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]),
            directory: self.directory.path().join("work"),
            input: Input::Open,
            limits: Limits::default(),
            sandbox: Sandbox::default(),
        }
    }

    async fn start(&self, name: &str, script: &str) -> Worker {
        self.life().start(self.spec(name, script)).await.expect("started")
    }

    /// What is left in the directory of all workers.
    fn left(&self) -> Vec<String> {
        place::Place::all(&self.directory.path().join("state/workers")).expect("readable")
    }
}

impl Drop for World {
    /// A test that failed leaves nobody behind.
    fn drop(&mut self) {
        holders::kill(self.directory.path());
    }
}

/// All that it writes from `offset` on, to its end.
async fn rest(worker: &Worker, offset: u64) -> String {
    let mut output = worker.output(offset);
    let mut text = Vec::new();
    while let Some(chunk) = in_time(output.next_chunk()).await.expect("readable") {
        text.extend(chunk);
    }
    String::from_utf8(text).expect("text")
}

/// Reads until the text ends with this.
async fn until(output: &mut Output, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let chunk = in_time(output.next_chunk()).await.expect("readable").expect("it still runs");
        text.push_str(std::str::from_utf8(&chunk).expect("text"));
    }
    text
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// Whether a process is there and no zombie.
fn lives(pid: u32) -> bool {
    process::birth(pid).is_some_and(|birth| !birth.zombie)
}

#[test]
fn all_futures_can_go_to_another_thread() {
    fn sends<T: Send>(_: T) {}
    let world = World::new();
    let life = world.life();
    sends(life.start(world.spec("a", "true")));
    sends(life.find("a"));
    let keep = BTreeSet::new();
    sends(life.sweep(&keep));
    sends(async |worker: Worker| (worker.say(b"").await, worker.ended().await, worker.stop(PATIENCE).await));
    sends(async |mut output: Output| output.next_chunk().await);
}
