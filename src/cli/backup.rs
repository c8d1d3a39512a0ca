//! `hermes-gateway backup`: all that is kept, as one file.
//!
//! The running gateway makes the copy and passes it on: its store may be another user's, or out of sight in a sandbox.
//! Without one, the store is copied from its directory as it lies there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use clap::Args;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Response};
use rustix::fs::{CWD, OFlags, RenameFlags};
use rustix::io::Errno;

use super::client::{Client, ClientError};
use super::{Failure, Which};
use crate::exit::Exit;
use crate::service::lock;
use crate::store::{FILE_NAME, backup as copies};

/// How long the gateway may take to make the copy, before the first byte of it comes.
const PATIENCE: Duration = Duration::from_secs(3600);

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Backup {
    #[command(flatten)]
    which: Which,
    /// Where to; '-' is the standard output, which cannot be checked
    file: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
}

const AFTER_HELP: &str = "\
It is written to FILE.partial, checked, and only then called FILE. To restore it: stop the gateway, move all of
gateway.db, gateway.db-wal and gateway.db-shm away from its state directory, put the file there as gateway.db, owned by
the gateway's user, and start. What was delivered since the backup was made is delivered again.

Exit status: 0 the backup is there, whole and on disk · 1 it is not, and what was there before is as it was · 2 wrong usage";

pub async fn execute(backup: &Backup) -> Result<Exit, Failure> {
    let places = backup.which.places()?;
    let client = Client::new(places.control_socket()).with_patience(PATIENCE);
    if backup.file.as_os_str() == "-" {
        let mut out = std::io::stdout().lock();
        if out.is_terminal() {
            return Err(Failure { exit: Exit::Usage, message: "a backup is nothing for a terminal".into() });
        }
        let answer = client.open(Method::GET, "/backup", Body::empty()).await?;
        pass_on(answer, &mut out).await?;
        return Ok(Exit::Ok);
    }
    let target = std::path::absolute(&backup.file)?;
    if !backup.force && fs::symlink_metadata(&target).is_ok() {
        return Err(exists(&target));
    }
    let partial = Partial::new(&target)?;
    match client.open(Method::GET, "/backup", Body::empty()).await {
        Ok(answer) => pass_on(answer, &mut &partial.file).await?,
        Err(nobody @ ClientError::NotRunning { .. }) => {
            let store = places.state.join(FILE_NAME);
            if !store.exists() {
                let message =
                    format!("{}, and there is no store in {}", Failure::from(nobody).message, places.state.display());
                return Err(Failure::text(message));
            }
            copies::copy_file(&places.state, &partial.path)?;
            eprintln!("no gateway runs here; copying {}", store.display());
        }
        Err(e) => return Err(e.into()),
    }
    let length = partial.finish(&target, backup.force)?;
    println!("wrote {}, {} KiB", target.display(), length.div_ceil(1024));
    Ok(Exit::Ok)
}

fn exists(target: &Path) -> Failure {
    Failure::text(format!("{} is there already; --force replaces it", target.display()))
}

/// What comes is checked against its announced length by the client underneath.
async fn pass_on(answer: Response<Incoming>, out: &mut impl Write) -> Result<(), Failure> {
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ClientError::Silent(crate::daemon::chain(&e)))?;
        if let Some(piece) = frame.data_ref() {
            out.write_all(piece)?;
        }
    }
    out.flush()?;
    Ok(())
}

/// A backup on its way, held by a lock that dies with its owner; gone with this value unless it is finished.
struct Partial {
    path: PathBuf,
    file: File,
    finished: bool,
}

impl Partial {
    fn new(target: &Path) -> Result<Self, Failure> {
        let mut path = OsString::from(target);
        path.push(".partial");
        let path = PathBuf::from(path);
        let cannot = |e: std::io::Error| Failure::text(format!("cannot write {}: {e}", path.display()));
        // What a killed backup left is written over; somebody else's link is not followed.
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let file = options.open(&path).map_err(cannot)?;
        let locked = lock::try_lock(&file).map_err(cannot)?;
        // The one before us may have renamed it after we had it open.
        let same = |there: fs::Metadata| file.metadata().is_ok_and(|ours| ours.ino() == there.ino());
        if !locked || !fs::symlink_metadata(&path).is_ok_and(same) {
            return Err(Failure::text(format!("another backup is writing {}", path.display())));
        }
        file.set_len(0).map_err(cannot)?;
        file.set_permissions(PermissionsExt::from_mode(0o600)).map_err(cannot)?;
        Ok(Self { path, file, finished: false })
    }

    /// On disk, whole, and under its name; its length in bytes.
    fn finish(mut self, target: &Path, force: bool) -> Result<u64, Failure> {
        self.file.sync_all()?;
        copies::check_copy(&self.path)?;
        self.rename(target, force)?;
        self.finished = true;
        if let Some(directory) = target.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(self.file.metadata()?.len())
    }

    fn rename(&self, target: &Path, force: bool) -> Result<(), Failure> {
        if !force {
            // Atomically not over a file that came in between; not every file system can.
            match rustix::fs::renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => return Err(exists(target)),
                Err(Errno::INVAL | Errno::NOSYS) if fs::symlink_metadata(target).is_ok() => return Err(exists(target)),
                Err(Errno::INVAL | Errno::NOSYS) => {}
                Err(e) => return Err(std::io::Error::from(e).into()),
            }
        }
        Ok(fs::rename(&self.path, target)?)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished
            && let Err(e) = fs::remove_file(&self.path)
            && e.kind() != ErrorKind::NotFound
        {
            eprintln!("hermes-gateway: cannot remove {}: {e}", self.path.display());
        }
    }
}
