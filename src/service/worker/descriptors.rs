//! Descriptors: those that the runtime waits for, and those that are not a worker's business.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::io::FdFlags;
use tokio::io::unix::AsyncFd;

/// Lets the runtime wait for a descriptor. Only to be called inside of one.
#[expect(unsafe_code, reason = "the runtime asks for a promise about the descriptor's life")]
pub(super) fn waitable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and has the same number for as long as it lives, and the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

/// Keeps from children whatever we have open beyond the standard streams. What we open ourselves is not passed on
/// anyway; what somebody left open for us (a shell, a container's runtime) would be.
#[expect(unsafe_code, reason = "descriptors that nobody here owns are only numbers")]
pub(super) fn keep_from_children() -> io::Result<()> {
    let number = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok();
    let numbers: Vec<_> = fs::read_dir("/proc/self/fd")?.filter_map(number).filter(|number| *number > 2).collect();
    for number in numbers {
        // SAFETY: used for this one call only, which neither reads nor closes. If the number was closed meanwhile the
        // call fails; if it is another descriptor by now, that one is not passed on either, as it should be.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let _closed_meanwhile = rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC);
    }
    Ok(())
}
