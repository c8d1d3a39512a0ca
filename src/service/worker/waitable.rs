//! Descriptors that the runtime waits for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Lets the runtime wait for a descriptor. Only to be called inside of one.
#[expect(unsafe_code, reason = "the runtime asks for a promise about the descriptor's life")]
pub(super) fn waitable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and has the same number for as long as it lives, and the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}
