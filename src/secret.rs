//! Secrets: where they come from and how they are kept from going anywhere else.
//!
//! A secret is read from a systemd credential or from a file that only its owner can read. It is never taken from argv
//! or the environment, shows as `[REDACTED]` in every debug output, and its memory is wiped when it is dropped.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use libsystemd::credentials::CredentialsLoader;
use rustix::rand::GetRandomFlags;
pub use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

/// Largest secret that is read, in bytes; systemd's own limit for a credential.
const MAX_BYTES: u64 = 1024 * 1024;

/// Where a secret is to be read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The systemd credential of this name (`LoadCredential=` or `SetCredential=`).
    Credential(String),
    /// A file, owned by us and readable by nobody else.
    File(PathBuf),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Credential(name) => write!(f, "credential '{name}'"),
            Self::File(path) => write!(f, "file {}", path.display()),
        }
    }
}

/// Why a secret could not be read. Never contains any of it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// systemd passed us no such credential.
    #[error("credential '{0}' was not passed to this service: add LoadCredential={0}:/path/to/file to its unit")]
    NoCredential(String),
    /// The file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The key could not be made; trying again may help.
    #[error("cannot make the key {path}")]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others than we could read it.
    #[error("{path} has mode {mode:04o}, so others can read it: run chmod 600 {path}")]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// No file, too long, no text, or nothing in it.
    #[error("{0} must hold one line of text, not empty and at most 1 MiB")]
    Unusable(Source),
}

/// Reads a secret, without the line end behind it.
pub fn read(source: &Source) -> Result<SecretString, SecretError> {
    let bytes = match source {
        Source::Credential(name) => read_credential(name)?,
        Source::File(path) => read_file(path)?,
    };
    let unusable = || SecretError::Unusable(source.clone());
    let text = String::from_utf8(bytes).map_err(|_| unusable())?;
    let line = text.trim_end_matches(['\r', '\n']);
    if line.is_empty() || line.chars().any(char::is_control) {
        return Err(unusable());
    }
    Ok(SecretString::from(line.to_owned()))
}

/// Whether systemd passed us a credential of this name.
pub fn has_credential(name: &str) -> bool {
    CredentialsLoader::open().is_ok_and(|loader| loader.get(name).is_ok())
}

fn read_credential(name: &str) -> Result<Vec<u8>, SecretError> {
    let missing = || SecretError::NoCredential(name.to_owned());
    // The loader would open `..` as well: a credential's name is a plain file name.
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err(missing());
    }
    let file = CredentialsLoader::open().and_then(|loader| loader.get(name)).map_err(|_| missing())?;
    bounded(file).map_err(|source| SecretError::Read { path: PathBuf::from(name), source })
}

fn read_file(path: &Path) -> Result<Vec<u8>, SecretError> {
    let failed = |source| SecretError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SecretError::TooOpen { path: path.to_owned(), mode });
    }
    if !meta.is_file() {
        return Err(SecretError::Unusable(Source::File(path.to_owned())));
    }
    bounded(file).map_err(failed)
}

fn bounded(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads the key in `path`, or makes one there on first use: 32 random bytes as base64url, mode 0600, complete or
/// absent, never half-written.
pub fn read_or_create_key(path: &Path) -> Result<SecretString, SecretError> {
    let source = Source::File(path.to_owned());
    match read(&source) {
        Err(SecretError::Read { source: e, .. }) if e.kind() == io::ErrorKind::NotFound => {
            create_key(path).map_err(|e| SecretError::Create { path: path.to_owned(), source: e })?;
            read(&source)
        }
        other => other,
    }
}

fn create_key(path: &Path) -> io::Result<()> {
    let mut random = [0u8; 32];
    // Up to 256 bytes come whole or not at all; see getrandom(2).
    rustix::rand::getrandom(&mut random, GetRandomFlags::empty())?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".key-").permissions(owner_only()).tempfile_in(directory)?;
    writeln!(file, "{}", BASE64_URL_SAFE_NO_PAD.encode(random))?;
    file.as_file().sync_all()?;
    // `persist_noclobber`: of two that make the key at once, one wins and both read the winner's.
    match file.persist_noclobber(path) {
        Err(e) if e.error.kind() != io::ErrorKind::AlreadyExists => return Err(e.error),
        _ => {}
    }
    File::options().read(true).custom_flags(rustix::fs::OFlags::DIRECTORY.bits() as i32).open(directory)?.sync_all()
}

fn owner_only() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o600)
}

/// Compares in a time that depends on the lengths only.
pub fn matches(secret: &SecretString, offered: &str) -> bool {
    secret.expose_secret().as_bytes().ct_eq(offered.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, Source) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("secret");
        std::fs::write(&path, content).expect("write");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("chmod");
        (dir, Source::File(path))
    }

    #[test]
    fn a_secret_is_one_private_line() {
        let (_dir, source) = file(b"s3cret\n", 0o600);
        let secret = read(&source).expect("readable");
        assert!(matches(&secret, "s3cret"));
        assert!(!matches(&secret, "s3cret\n") && !matches(&secret, "") && !matches(&secret, "s3creT"));
        assert!(!format!("{secret:?}").contains("s3cret"));
    }

    #[test]
    fn open_modes_and_unusable_contents_are_refused_without_showing_them() {
        for (content, mode, expected) in [
            (&b"s3cret"[..], 0o644, "chmod 600"),
            (b"", 0o600, "must hold one line"),
            (b"s3cret\ntwo", 0o600, "must hold one line"),
            (b"s3cret\xff", 0o600, "must hold one line"),
        ] {
            let (_dir, source) = file(content, mode);
            let error = read(&source).expect_err("refused").to_string();
            assert!(error.contains(expected) && !error.contains("s3cret"), "{error}");
        }
        let missing = read(&Source::Credential("../passwd".into())).expect_err("refused");
        assert!(missing.to_string().contains("LoadCredential="), "{missing}");
    }

    #[test]
    fn the_first_start_makes_a_key_and_later_ones_keep_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("api-key");
        let first = read_or_create_key(&path).expect("made");
        assert_eq!(first.expose_secret().len(), 43);
        assert!(matches(&read_or_create_key(&path).expect("kept"), first.expose_secret()));
        assert_eq!(path.metadata().expect("metadata").mode() & 0o7777, 0o600);
    }
}
