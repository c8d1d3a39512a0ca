//! Layer 6: the command line. One definition for parser, help, man page and completions; one file for each command.
//! The only place that prints.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::exit::Exit;
use crate::model::id::InstanceName;
use crate::service::directories::{self, Directories, Scope, Wishes};
use crate::service::handshake::{Handshake, Supervisor, UnitDirectories};
use crate::service::mask;

mod backup;
mod check;
mod client;
mod install;
mod lists;
mod outbox;
mod reload;
mod restart;
mod run;
mod send;
mod sessions;
mod status;
mod stop;
mod table;
mod turns;
mod words;

/// The gateway between chats and AI agents, as a systemd service.
#[derive(Debug, Parser)]
#[command(name = "hermes-gateway", version, after_help = EXIT_STATUS, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

const EXIT_STATUS: &str = "\
Exit status: 0 done (status: running) · 1 failed · 2 wrong usage · 3 not running · 4 unknown ·
             73 somebody else holds the state · 75 restart me · 78 configuration";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway in the foreground: what the service does
    Run(run::Run),
    /// Say how the gateway is, by asking it and its supervisor
    Status(status::Status),
    /// Say something to an agent and print its reply as it comes
    Send(send::Send),
    /// Stop the gateway; running turns may end
    Stop(stop::Stop),
    /// Restart the gateway without refusing anybody
    Restart(restart::Restart),
    /// Make the gateway read its configuration again
    Reload(reload::Reload),
    /// Look at what goes out; send again or drop what was given up
    Outbox(outbox::Outbox),
    /// Look at the conversations; begin one anew, export one
    Sessions(sessions::Sessions),
    /// Look at what was asked and what came of it
    Turns(turns::Turns),
    /// Copy all that is kept into a file, while the gateway works
    Backup(backup::Backup),
    /// Check the configuration, all of it at once
    Check(check::Check),
    /// Install, enable and start the service
    Install(install::Install),
    /// Stop the service and take back what `install` wrote
    Uninstall(install::Uninstall),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the man page
    Man,
}

/// Which gateway a command is about.
#[derive(Debug, Clone, Args)]
struct Which {
    /// The named gateway; each has its own configuration, state, sockets and unit
    #[arg(long, value_name = "NAME", default_value = InstanceName::DEFAULT, global = true)]
    instance: InstanceName,
    /// The machine's gateway instead of the user's
    #[arg(long, global = true)]
    system: bool,
    /// The configuration file; its drop-ins are beside it, in FILE with .d for .toml
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Where the store and the keys are
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
    /// Where the control socket is
    #[arg(long, value_name = "DIR", global = true)]
    runtime_dir: Option<PathBuf>,
}

impl Which {
    fn scope(&self) -> Scope {
        if self.system { Scope::System } else { Scope::User }
    }

    fn directories(&self, unit: &UnitDirectories) -> Result<Directories, Failure> {
        // Absolute: the same words from another working directory are another place, for the kernel's tables, too.
        let absolute = |path: &Option<PathBuf>| path.as_ref().map(std::path::absolute).transpose();
        let wishes = Wishes {
            instance: self.instance.clone(),
            scope: self.scope(),
            config: absolute(&self.config)?,
            state: absolute(&self.state_dir)?,
            runtime: absolute(&self.runtime_dir)?,
        };
        directories::resolve(&wishes, unit).map_err(|e| Failure::new(Exit::Config, &e))
    }

    /// The places that a command talks to; systemd's variables are for the service only.
    fn places(&self) -> Result<Directories, Failure> {
        self.directories(&UnitDirectories::default())
    }
}

/// A command that did not do as asked: what to print, and the exit status.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, error: &dyn std::error::Error) -> Self {
        Self { exit, message: crate::daemon::chain(error) }
    }

    fn text(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failure, message: message.into() }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(Exit::Failure, &error)
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    // Until somebody listens. A predecessor in this process left them held, too.
    mask::hold();
    // First of all: afterwards there may be threads, and listenfd writes to the environment.
    let handshake = match Handshake::take() {
        Ok(handshake) => handshake,
        Err(e) => return fail(&Failure::text(format!("cannot understand the descriptors that were passed: {e}"))),
    };
    let parsed = CommandLine::try_parse();
    if !matches!(parsed, Ok(CommandLine { command: Command::Run(_) })) {
        // Everything else ends by a signal at once, whatever mask a parent left it.
        mask::release();
    }
    let command_line = match parsed {
        Ok(command_line) => command_line,
        Err(error) => return usage(&error, &handshake),
    };
    match execute(command_line.command, handshake) {
        Ok(exit) => exit.into(),
        Err(failure) => fail(&failure),
    }
}

fn execute(command: Command, handshake: Handshake) -> Result<Exit, Failure> {
    match command {
        Command::Run(run) => return run::execute(run, handshake),
        Command::Check(check) => return check::execute(&check),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut CommandLine::command(), "hermes-gateway", &mut std::io::stdout());
            return Ok(Exit::Ok);
        }
        Command::Man => {
            clap_mangen::Man::new(CommandLine::command()).render(&mut std::io::stdout())?;
            return Ok(Exit::Ok);
        }
        _ => {}
    }
    // Everything else asks somebody and waits for the answer.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Status(status) => status::execute(&status).await,
            Command::Send(send) => send::execute(send).await,
            Command::Stop(stop) => stop::execute(&stop).await,
            Command::Restart(restart) => restart::execute(&restart).await,
            Command::Reload(reload) => reload::execute(&reload).await,
            Command::Outbox(outbox) => outbox::execute(&outbox).await,
            Command::Sessions(sessions) => sessions::execute(&sessions).await,
            Command::Turns(turns) => turns::execute(&turns).await,
            Command::Backup(backup) => backup::execute(&backup).await,
            Command::Install(install) => install::execute(&install).await,
            Command::Uninstall(uninstall) => install::execute_uninstall(&uninstall).await,
            Command::Run(_) | Command::Check(_) | Command::Completions { .. } | Command::Man => Ok(Exit::Ok),
        }
    })
}

fn fail(failure: &Failure) -> ExitCode {
    eprintln!("hermes-gateway: {}", failure.message);
    failure.exit.into()
}

/// A wrong command line, or `--help` and `--version`. Clients that wait at a misconfigured service are told.
fn usage(error: &clap::Error, handshake: &Handshake) -> ExitCode {
    let printed = error.print();
    if !error.use_stderr() {
        return if printed.is_ok() { Exit::Ok.into() } else { Exit::Failure.into() };
    }
    let waiting: Vec<_> = handshake.passed.http.iter().chain(&handshake.passed.control).collect();
    crate::http::refusal::refuse_waiting(&waiting, "the gateway's command line is wrong; see its log");
    match handshake.supervisor {
        // The command line of a unit is configuration: no restart mends it.
        Supervisor::Systemd => Exit::Config.into(),
        Supervisor::StandAlone => Exit::Usage.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
