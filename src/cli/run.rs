//! `hermes-gateway run`

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{ArgAction, Args};

use super::{Failure, Which};
use crate::daemon::{self, Ending, Hold, Ready, Start};
use crate::exit::Exit;
use crate::journal::Journal;
use crate::service::deadline::Deadline;
use crate::service::handshake::{GENERATION, Handshake, Supervisor};
use crate::service::signals;

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    which: Which,
    /// Take over from a stand-alone gateway that runs: ask it to stop, end it if it does not
    #[arg(long)]
    replace: bool,
    /// Log more; twice: everything of ours, thrice: everything
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
}

pub fn execute(run: Run, handshake: Handshake) -> Result<Exit, Failure> {
    // Before anything that can get stuck, a journal that does not read, say.
    let deadline = Deadline::default();
    let signals = signals::listen(deadline.clone())?;
    // Remembered now: after an update this path holds the new binary, and /proc/self/exe the deleted old one.
    let binary = std::env::current_exe()?;
    let instance = run.which.instance.clone();
    let (supervisor, generation) = (handshake.supervisor, handshake.generation);
    let directories = run.which.directories(&handshake.directories)?;
    let journal = Journal::open(instance.as_str(), run.verbose)?;
    let start = Start { handshake, instance, directories, replace: run.replace, journal, signals, deadline };
    let greet = |ready: &Ready| {
        if supervisor == Supervisor::StandAlone && std::io::stderr().is_terminal() {
            greet(ready, &run.which);
        }
    };
    match daemon::run(start, greet) {
        Ok(Ending::Stopped) => Ok(Exit::Ok),
        Ok(Ending::Restart(None)) => Ok(Exit::Restart),
        Ok(Ending::Restart(Some(hold))) => Err(succeed(binary, &hold, generation)),
        // The log has told it already; a second time on the same terminal or in the same journal helps nobody.
        Err(error) => Ok(error.exit()),
    }
}

/// Becomes the successor: same process, same sockets, same locks, new program. Returns only if that fails.
fn succeed(binary: PathBuf, hold: &Hold, generation: u32) -> Failure {
    let variables = match hold.keep_for_successor() {
        Ok(variables) => variables,
        Err(e) => return Failure::text(format!("cannot hand over to a successor: {e}")),
    };
    let become_it = |program: &Path| {
        Command::new(program)
            .args(std::env::args_os().skip(1).filter(|argument| argument != "--replace"))
            .envs(variables.clone())
            .env(GENERATION, (generation + 1).to_string())
            .exec()
    };
    let error = become_it(&binary);
    // Removed without a replacement: what runs now can still run on.
    tracing::error!(binary = %binary.display(), error = %error, "the program is gone; going on with the running one");
    let error = become_it(Path::new("/proc/self/exe"));
    Failure::text(format!("cannot start the successor {}: {error}", binary.display()))
}

/// For whoever starts it by hand the first time.
fn greet(ready: &Ready, which: &Which) {
    let send = match which.instance.is_default() {
        true => "hermes-gateway send \"hello\"".to_owned(),
        false => format!("hermes-gateway send --instance {} \"hello\"", which.instance),
    };
    eprintln!("\n  Try it, from another terminal:\n\n    {send}");
    let key_file = ready.key_source.strip_prefix("file ");
    if let (Some(address), Some(key_file)) = (ready.http.iter().find(|place| !place.starts_with("unix:")), key_file) {
        eprintln!(
            "\n    curl http://{address}/v1/chat/completions -H \"Authorization: Bearer $(cat {key_file})\" \\\n      \
             -d '{{\"messages\": [{{\"role\": \"user\", \"content\": \"hello\"}}]}}'"
        );
    }
    eprintln!("\n  Ctrl-C stops it; `hermes-gateway install` makes it a service.\n");
}
