//! Layer 0: what the exit status says. systemd and scripts decide by it, so each number has one meaning, here.

use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done as asked; for `status`: it runs.
    Ok = 0,
    /// It did not work, and the message says why; as a service: start me again.
    Failure = 1,
    /// The command line is wrong. Not restarted.
    Usage = 2,
    /// `status` (LSB): it does not run.
    NotRunning = 3,
    /// `status` (LSB): there is no telling.
    Unknown = 4,
    /// Somebody else holds the state directory or the pid file. Not restarted.
    Held = 73,
    /// Start me again: `hermes-gateway restart` was called.
    Restart = 75,
    /// The configuration, or something else that no restart can mend. Not restarted.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
