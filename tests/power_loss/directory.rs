//! A directory's names on a disk that may lose power.

use std::collections::{BTreeMap, BTreeSet};

use super::dice::Dice;
use super::log::Moment;

/// The number of a file or directory; unlike an inode it is never given away again.
pub type Object = usize;
/// Names and what they stand for.
pub type Names = BTreeMap<String, Object>;

/// A directory.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    durable: Names,
    /// As it was after each change since.
    unsynced: Vec<(Moment, Names)>,
}

impl Directory {
    /// A directory that lies on the disk already.
    pub fn durable(names: Names) -> Self {
        Self { durable: names, unsynced: Vec::new() }
    }

    /// It was seen with these names.
    pub fn seen(&mut self, at: Moment, names: Names) {
        self.unsynced.push((at, names));
    }

    /// What it was before this moment is on the disk.
    pub fn synced(&mut self, before: Moment) {
        if let Some((_, names)) = self.unsynced.extract_if(.., |(at, _)| *at < before).last() {
            self.durable = names;
        }
    }

    /// Only what was synced.
    pub fn synced_only(&self) -> Names {
        self.durable.clone()
    }

    /// As the process saw it.
    pub fn all(&self) -> Names {
        self.unsynced.last().map_or(&self.durable, |(_, names)| names).clone()
    }

    /// Something of what was not synced: up to some change, or each name as it was after some change or other.
    pub fn some(&self, dice: &mut Dice) -> Names {
        let versions: Vec<&Names> = [&self.durable].into_iter().chain(self.unsynced.iter().map(|(_, n)| n)).collect();
        if dice.hits(8) {
            return (*dice.pick(&versions)).clone();
        }
        let names: BTreeSet<&String> = versions.iter().flat_map(|version| version.keys()).collect();
        let entry = |name: &String, version: &Names| version.get(name).map(|object| (name.clone(), *object));
        let mut mixed: Names =
            names.into_iter().filter_map(|name| entry(name, dice.pick::<&Names>(&versions))).collect();
        // A rename takes the old name and gives the new one in one step on every file system: never both are gone.
        for (name, object) in &self.durable {
            if versions.iter().all(|version| version.values().any(|o| o == object))
                && !mixed.values().any(|o| o == object)
            {
                mixed.entry(name.clone()).or_insert(*object);
            }
        }
        mixed
    }
}

fn names(of: &[(&str, Object)]) -> Names {
    of.iter().map(|(name, object)| (String::from(*name), *object)).collect()
}

#[test]
fn names_arrive_with_the_directory_s_own_sync_and_a_rename_loses_nothing() {
    let mut directory = Directory::durable(names(&[("kept", 0)]));
    directory.seen(Moment(1), names(&[("kept", 0), ("new", 1)]));
    directory.seen(Moment(2), names(&[("moved", 0), ("new", 1)]));
    assert_eq!(directory.synced_only(), names(&[("kept", 0)]));
    let fates: BTreeSet<Names> = (0..2000).map(|seed| directory.some(&mut Dice::new(seed))).collect();
    assert!(fates.iter().all(|fate| fate.values().any(|object| *object == 0)), "{fates:?}");
    assert!(fates.contains(&names(&[("moved", 0)])) && fates.contains(&names(&[("kept", 0)])), "{fates:?}");
    directory.synced(Moment(2));
    assert_eq!(directory.synced_only(), names(&[("kept", 0), ("new", 1)]));
    assert_eq!(directory.all(), names(&[("moved", 0), ("new", 1)]));
}
