//! How a worker ended, in words for a person.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Bounds;

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal, ours or another's.
    Killed(i32),
    /// It needed more memory than this, in bytes.
    OutOfMemory(Option<u64>),
    /// It ran for longer than this.
    TimedOut(Option<Duration>),
    /// More than this was written and not read, in bytes.
    TooMuchOutput(u64),
    /// It is no more, and nobody was there to learn how it ended.
    Gone,
}

impl End {
    /// Whether it says of itself that it did what it was to do.
    pub fn is_success(self) -> bool {
        self == Self::Exited(0)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(0) => f.write_str("the agent has ended"),
            Self::Exited(status) => write!(f, "the agent has failed with exit status {status}"),
            Self::Killed(signal) => write!(f, "the agent was ended by {}", signal_name(*signal)),
            Self::OutOfMemory(Some(limit)) => write!(f, "the agent ran out of memory ({})", size(*limit)),
            Self::OutOfMemory(None) => f.write_str("the agent was ended because the machine ran out of memory"),
            Self::TimedOut(Some(limit)) => write!(f, "the agent ran for too long ({limit:?})"),
            Self::TimedOut(None) => f.write_str("the agent ran for too long"),
            Self::TooMuchOutput(limit) => write!(f, "the agent wrote more than can be read ({})", size(*limit)),
            Self::Gone => f.write_str("the agent is gone, and nothing is known of its end"),
        }
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

/// Bytes as people write them: whole units where it comes out even.
fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let even = units.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    even.map_or_else(|| format!("{bytes} bytes"), |(unit, name)| format!("{} {name}", bytes / unit))
}

/// What a manager says of the end of a unit's main process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UnitEnd {
    /// `Result`: `success`, `exit-code`, `signal`, `core-dump`, `oom-kill`, `timeout` ...
    pub(super) result: String,
    /// `ExecMainCode`: how a process ends, as in waitid(2); 0 when none has.
    pub(super) code: i32,
    /// `ExecMainStatus`: its status or signal.
    pub(super) status: i32,
}

impl UnitEnd {
    /// As an end of ours.
    pub(super) fn end(&self, bounds: &Bounds) -> End {
        const CLD_EXITED: i32 = 1;
        match (self.result.as_str(), self.code) {
            ("oom-kill", _) => End::OutOfMemory(bounds.memory),
            ("timeout", _) => End::TimedOut(bounds.runtime),
            (_, 0) => End::Gone,
            (_, CLD_EXITED) => End::Exited(self.status),
            _ => End::Killed(self.status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_says_what_a_person_needs_to_mend_it() {
        assert_eq!(End::OutOfMemory(Some(512 << 20)).to_string(), "the agent ran out of memory (512 MiB)");
        assert_eq!(End::TimedOut(Some(Duration::from_secs(90))).to_string(), "the agent ran for too long (90s)");
        assert_eq!(End::TooMuchOutput(1000).to_string(), "the agent wrote more than can be read (1000 bytes)");
        assert_eq!(End::Killed(9).to_string(), "the agent was ended by SIGKILL");
        assert_eq!(End::Killed(40).to_string(), "the agent was ended by signal 40");
    }

    #[test]
    fn what_systemd_says_becomes_an_end() {
        let bounds = Bounds { memory: Some(1 << 20), runtime: Some(Duration::from_secs(1)), output: 1 };
        let end = |result: &str, code, status| UnitEnd { result: result.into(), code, status }.end(&bounds);
        assert_eq!(end("success", 1, 0), End::Exited(0));
        assert_eq!(end("exit-code", 1, 3), End::Exited(3));
        assert_eq!(end("signal", 2, 9), End::Killed(9));
        assert_eq!(end("core-dump", 3, 11), End::Killed(11));
        // SIGTERM is a clean end to systemd, and still no exit.
        assert_eq!(end("success", 2, 15), End::Killed(15));
        assert_eq!(end("oom-kill", 2, 9), End::OutOfMemory(Some(1 << 20)));
        assert_eq!(end("timeout", 2, 15), End::TimedOut(Some(Duration::from_secs(1))));
        assert_eq!(end("success", 0, 0), End::Gone);
    }
}
