//! What is on a disk when the power is back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A directory's content at rest. Everything belongs to its owner only, for permissions are not followed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Image {
    /// `None` is a directory; the first part of each path is the directory itself.
    found: BTreeMap<PathBuf, Option<Vec<u8>>>,
}

impl Image {
    pub(super) fn new(found: BTreeMap<PathBuf, Option<Vec<u8>>>) -> Self {
        Self { found }
    }

    /// A file's content, by its path in the directory.
    pub fn file(&self, path: &str) -> Option<&[u8]> {
        self.inside().find_map(|(inner, node)| if inner == Path::new(path) { node.as_deref() } else { None })
    }

    /// Puts everything where nothing is; makes the directory if it is there at all.
    pub fn lay_down(&self, directory: &Path) {
        for (path, node) in self.inside() {
            let path = if path == Path::new("") { directory.to_owned() } else { directory.join(path) };
            match node {
                None => fs::DirBuilder::new().mode(0o700).create(path).expect("a directory is made"),
                Some(content) => {
                    let file = fs::File::options().write(true).create_new(true).mode(0o600).open(path);
                    std::io::Write::write_all(&mut file.expect("a file is made"), content).expect("written");
                }
            }
        }
    }

    /// Puts it where it stays, for a person to look at.
    pub fn keep(&self) -> PathBuf {
        let place = tempfile::tempdir().expect("a temporary directory").keep();
        self.lay_down(&place.join("disk"));
        place
    }

    fn inside(&self) -> impl Iterator<Item = (&Path, &Option<Vec<u8>>)> {
        self.found.iter().map(|(path, node)| {
            let mut parts = path.components();
            parts.next();
            (parts.as_path(), node)
        })
    }
}
