//! What all agents have in common that are programs: how they are configured, started, bounded, and mourned.
//!
//! A program gets a built environment, never ours: no variable that a supervisor addressed to us and no secret reaches it
//! but what its configuration says. It is a worker ([`crate::service::worker`]), so under systemd it outlives the gateway.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs};

use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::Surroundings;
use crate::model::disposition::Disposition;
use crate::model::id::{SessionId, TurnId};
use crate::model::turn::AgentError;
use crate::service::lock;
use crate::service::worker::{End, Input, Limits, Sandbox, Spec, Worker};
use crate::web::clip;

/// How long a program has to end after it was asked to; then it is killed.
pub const STOP_GRACE: Duration = Duration::from_secs(2);
/// Its share where processors are scarce, of 100: people's messages come first.
const CPU_WEIGHT: u32 = 50;
/// Longest text in an argument or a variable, in bytes: Linux takes 128 KiB with its name and its end.
const MAX_ARGUMENT: usize = 120 * 1024;

/// How a program is run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Where it works; `None`: a directory of its own in the gateway's state.
    pub directory: Option<PathBuf>,
    /// Where it may write beside that, where a sandbox keeps it from writing anywhere.
    pub writable: Vec<PathBuf>,
    /// Variables for it.
    pub environment: Environment,
    /// Bytes of memory that it may use.
    pub memory: u64,
    /// Processes and threads that it may have.
    pub tasks: u64,
    /// Percent of one processor that it may use; `None`: all there are.
    pub cpu: Option<u32>,
}

/// Variables. Their values may be secrets, so the debug form shows only whether two are the same.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(pub BTreeMap<String, String>);

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(name, value)| (name, short_hash(&[value])))).finish()
    }
}

/// Names of variables that the gateway sets itself.
pub const OWN_VARIABLES: [&str; 4] = ["HERMES_SESSION", "HERMES_TURN", "HERMES_INSTANCE", "HERMES_INSTRUCTIONS"];

/// A program of this name that can be run.
#[derive(Debug)]
pub struct Program {
    config: Config,
    surroundings: Surroundings,
    directory: PathBuf,
    name: String,
}

/// What one run needs beyond the configuration.
pub struct Run {
    /// The worker's name.
    pub worker: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Whose conversation it is about.
    pub session: SessionId,
    /// Variables for this run.
    pub variables: BTreeMap<String, String>,
    /// What is on its stdin.
    pub input: Input,
    /// Longest life; `None` where something else bounds it.
    pub runtime: Option<Duration>,
    /// Most bytes of output.
    pub output: u64,
}

impl Program {
    /// A program; does no I/O.
    pub fn new(name: &str, config: Config, surroundings: Surroundings) -> Self {
        let directory = config.directory.clone().unwrap_or_else(|| surroundings.workspaces.join(name));
        Self { config, surroundings, directory, name: name.to_owned() }
    }

    /// As it is configured.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What is around it.
    pub fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    /// Where it works.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A name for the worker of a session, never used before: what was remembered of another one cannot mean this one.
    pub fn session_worker(&self, session: &SessionId) -> String {
        format!("session-{}-{}", short_hash(&[&self.name, session.as_str()]), fresh())
    }

    /// A name for the worker of a turn, never used before.
    pub fn turn_worker(&self, turn: TurnId) -> String {
        format!("turn-{turn}-{}", fresh())
    }

    /// Starts it. Whoever gives up meanwhile leaves no program behind.
    ///
    /// # Errors
    /// When it cannot be started now.
    pub async fn start(&self, run: Run) -> Result<Worker, AgentError> {
        if self.config.directory.is_none() {
            let made = lock::create_private(&self.directory);
            made.map_err(|e| retry(format!("cannot make the agent's directory {}: {e}", self.directory.display())))?;
        } else if !fs::metadata(&self.directory).is_ok_and(|data| data.is_dir()) {
            return Err(halt(format!("the agent's directory {} is not there", self.directory.display())));
        }
        let spec = self.spec(run);
        let workers = self.surroundings.workers.clone();
        let (started, answer) = oneshot::channel();
        self.surroundings.tasks.spawn("agent start", async move {
            if let Err(Ok(unwanted)) = started.send(workers.start(spec).await) {
                unwanted.stop(STOP_GRACE).await;
            }
        });
        match answer.await {
            Ok(Ok(worker)) => Ok(worker),
            Ok(Err(e)) => Err(retry(format!("the agent's program cannot be started: {e}"))),
            Err(_) => Err(retry("the start of the agent's program failed inside the gateway".into())),
        }
    }

    fn spec(&self, run: Run) -> Spec {
        let home = self.directory.display().to_string();
        let defaults = [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LANG", "C.UTF-8"), ("HOME", &home)];
        let mut environment: BTreeMap<_, _> = defaults.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        environment.extend(self.config.environment.0.clone());
        environment.insert("HERMES_SESSION".into(), run.session.to_string());
        environment.insert("HERMES_INSTANCE".into(), self.surroundings.instance.to_string());
        environment.extend(run.variables);
        Spec {
            name: run.worker,
            description: format!("Agent {} of hermes-gateway, session {}", self.name, run.session),
            command: run.command,
            environment,
            directory: self.directory.clone(),
            input: run.input,
            limits: Limits {
                memory: Some(self.config.memory),
                tasks: Some(self.config.tasks),
                cpu_percent: self.config.cpu,
                cpu_weight: Some(CPU_WEIGHT),
                runtime: run.runtime,
                output: run.output,
            },
            sandbox: Sandbox {
                writable: [&self.directory].into_iter().chain(&self.config.writable).cloned().collect(),
                hidden: self.surroundings.hidden.clone(),
                network: true,
            },
        }
    }

    /// Ends a worker for which nobody waits, beside whatever else there is to do.
    pub fn stop_later(&self, worker: Worker) {
        self.surroundings.tasks.spawn("agent stop", async move {
            worker.stop(STOP_GRACE).await;
        });
    }

    /// Whether a turn that is dropped now goes on in the gateway's next life: then its worker is not to be touched.
    pub fn goes_on_without_us(&self, worker: &Worker) -> bool {
        self.surroundings.stop.is_hard() && worker.unit().is_some()
    }
}

/// A command whose stdout is a pipe, which `cat` empties into the worker's spool as fast as it fills; its status is the
/// program's. Event loops (Python's asyncio, for one) refuse to write to a regular file, which a spool is.
pub fn into_a_pipe(command: &[String]) -> Vec<String> {
    // Descriptor 3 is the spool; 4 brings the program's status past the end of the pipe.
    const PIPED: &str =
        r#"exec 3>&1; s=$({ { "$@" 3>&- 4>&-; echo $? >&4; } | /bin/cat >&3 3>&- 4>&-; } 4>&1); exit "$s""#;
    let shell = ["/bin/sh", "-c", PIPED, "agent"].map(str::to_owned);
    shell.into_iter().chain(command.iter().cloned()).collect()
}

/// Whether a text fits where the kernel takes arguments and variables.
///
/// # Errors
/// When it does not: it can never.
pub fn fit(what: &str, text: &str) -> Result<(), AgentError> {
    if text.len() > MAX_ARGUMENT {
        return Err(reject(format!("{what} is longer than the {MAX_ARGUMENT} bytes that a program can be given so")));
    }
    if text.contains('\0') {
        return Err(reject(format!("{what} has a zero byte in it, which a program cannot be given so")));
    }
    Ok(())
}

/// What is told of a program's end.
pub async fn obituary(worker: &Worker, end: End) -> String {
    let journal = worker.unit().map(|unit| format!(" (its log: journalctl --unit {unit})"));
    let said = worker.complaints().await.map(|tail| format!(": {}", last_words(&tail)));
    format!("{end}{}", said.or(journal).unwrap_or_default())
}

/// The end of what it complained about, on one line.
fn last_words(tail: &str) -> String {
    let lines: Vec<_> = tail.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(3)..];
    clip(&last.join("; "))
}

/// A failure that another attempt may mend; nothing was asked of the agent yet.
pub fn retry(message: String) -> AgentError {
    AgentError { disposition: Disposition::Retry { after: None }, message }
}

/// A failure of this turn; what was asked may have been acted upon, so it is not asked twice.
pub fn reject(message: String) -> AgentError {
    AgentError { disposition: Disposition::Reject, message }
}

/// A failure that only a person can mend.
pub fn halt(message: String) -> AgentError {
    AgentError { disposition: Disposition::Halt, message }
}

/// A few digits that differ where the parts do.
fn short_hash(parts: &[&str]) -> String {
    Sha256::digest(parts.join("\0")).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A few digits that nobody had before.
fn fresh() -> String {
    let random = uuid::Uuid::now_v7().as_u64_pair().1;
    format!("{:08x}", random & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_debug_form_tells_values_apart_and_does_not_tell_them() {
        let with = |value: &str| format!("{:?}", Environment([("KEY".to_owned(), value.to_owned())].into()));
        assert_ne!(with("secret-1"), with("secret-2"));
        assert!(with("secret-1").contains("KEY") && !with("secret-1").contains("secret"));
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused_with_a_reason() {
        assert!(fit("the message", "hello").is_ok());
        assert!(fit("the message", &"x".repeat(MAX_ARGUMENT + 1)).expect_err("too long").message.contains("longer"));
        assert!(fit("the message", "a\0b").expect_err("zero").message.contains("zero byte"));
    }

    #[test]
    fn last_words_are_the_last_lines_on_one() {
        assert_eq!(last_words("a\n\nb\r\nc\n d \n"), "b; c; d");
        assert_eq!(last_words(""), "");
    }
}
