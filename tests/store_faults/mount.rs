//! A disk that can be full or read-only, and programs that may not hang on it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use crate::gateway::{Gateway, Home, PATIENCE};

/// A small file system in memory, gone with this value.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts one of this size on `path`, or says loudly why not. In CI it must be possible.
    pub fn new(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(path).expect("a mount point");
        let options = format!("size={size},mode=0700");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).output();
        let failed = match output {
            Ok(output) if output.status.success() => return Some(Self(path.to_owned())),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(e) => e.to_string(),
        };
        assert!(std::env::var_os("CI").is_none(), "no tmpfs in CI: {failed}");
        eprintln!("SKIPPED: no test with a full or read-only disk; mounting a tmpfs needs root: {failed}");
        None
    }

    /// Changes its options, `ro` say.
    pub fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let status = Command::new("mount").args(["-o", &options]).arg(&self.0).status().expect("mount runs");
        assert!(status.success(), "remount {options}");
    }

    /// Takes all room that is left.
    pub fn fill(&self) {
        let mut file = fs::File::create(self.ballast()).expect("a file");
        let block = [0u8; 4096];
        while file.write_all(&block).is_ok() {}
    }

    /// Gives the room back.
    pub fn empty(&self) {
        fs::remove_file(self.ballast()).expect("removed");
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a gateway of a failed test may not be dead yet, and the mount must go in any case.
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking(), "the mount is gone");
    }
}

/// What a command printed and how it ended; fails if it does not end.
pub fn end_of(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().expect("waited").is_none() && Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let late = child.try_wait().expect("waited").is_none();
    child.kill().expect("killed, or ended before");
    let output = child.wait_with_output().expect("its output");
    assert!(!late, "it does not end within {PATIENCE:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A gateway that serves, or how its start ended.
pub fn start_or_end(home: &Home) -> Result<Gateway, Output> {
    // Two looks at the same start would race; two starts in the same trouble fare the same.
    let mut tried = home.command("run").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let deadline = Instant::now() + PATIENCE;
    let serves = loop {
        if tried.try_wait().expect("waited").is_some() {
            break false;
        }
        if String::from_utf8_lossy(&home.output("status", &[]).stdout).contains(" is running\n") {
            break true;
        }
        assert!(Instant::now() < deadline, "it neither serves nor ends");
    };
    if serves {
        tried.kill().expect("killed");
    }
    let output = tried.wait_with_output().expect("its output");
    if serves { Ok(home.start()) } else { Err(output) }
}
