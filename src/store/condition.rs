//! How the store is. A trouble of the disk is told when it begins and when it ends, not at each piece of work that meets it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::StoreError;

/// What is wrong with the store, if something is.
#[derive(Debug)]
pub struct Condition {
    path: PathBuf,
    trouble: Mutex<Option<StoreError>>,
}

impl Condition {
    /// Nothing is known to be wrong with this file.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), trouble: Mutex::default() }
    }

    /// What is wrong.
    pub fn trouble(&self) -> Option<StoreError> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Something was written, or not.
    pub fn wrote<T>(&self, result: &Result<T, StoreError>) {
        match result {
            Ok(_) => self.note(None),
            Err(error) if error.lasts() => self.note(Some(error)),
            Err(_) => {}
        }
    }

    /// Something was read, or not. What can be read says nothing about whether there is room.
    pub fn read<T>(&self, result: &Result<T, StoreError>) {
        if let Err(error @ StoreError::Damaged(_)) = result {
            self.note(Some(error));
        }
    }

    fn note(&self, now: Option<&StoreError>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let store = self.path.display();
        match (&*trouble, now) {
            // A damaged page stays one while other pages are written; only another life, on another file, can tell.
            (Some(StoreError::Damaged(_)), _) | (None, None) => return,
            (Some(StoreError::NoRoom(_)), Some(StoreError::NoRoom(_))) => return,
            (_, Some(error @ StoreError::Damaged(_))) => tracing::error!(
                %store, error = %error,
                "the store is damaged: what lies on the damaged pages can be neither read nor changed, all else goes on; \
                 stop the gateway, keep a copy of the file, and restore a backup or what `sqlite3 {store} .recover` saves"
            ),
            (_, Some(error)) => tracing::error!(
                %store, error = %error,
                "nothing can be stored, so nothing new is taken; what was taken waits. Make room on its disk, or make it \
                 writable: then all goes on by itself"
            ),
            (Some(_), None) => tracing::info!(%store, "the store takes data again"),
        }
        *trouble = now.cloned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_knows_what_is_wrong_for_as_long_as_it_is() {
        let condition = Condition::new(Path::new("x"));
        let (full, damaged) = (StoreError::NoRoom("full".into()), StoreError::Damaged("page 7".into()));
        condition.wrote::<()>(&Err(StoreError::Failed("a key was used twice".into())));
        condition.read::<()>(&Err(full.clone()));
        assert_eq!(condition.trouble(), None);
        condition.wrote::<()>(&Err(full.clone()));
        condition.read(&Ok(()));
        assert_eq!(condition.trouble(), Some(full.clone()));
        condition.wrote(&Ok(()));
        assert_eq!(condition.trouble(), None);
        condition.wrote::<()>(&Err(full.clone()));
        condition.read::<()>(&Err(damaged.clone()));
        condition.wrote(&Ok(()));
        condition.wrote::<()>(&Err(full));
        assert_eq!(condition.trouble(), Some(damaged));
    }
}
