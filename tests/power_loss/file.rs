//! A file's content on a disk that may lose power: what is durable, and what is on its way.

use std::collections::BTreeMap;

use super::dice::Dice;
use super::log::Moment;

/// What a disk writes wholly or not at all, in bytes.
const SECTOR: usize = 512;

/// A change of a file's content.
#[derive(Debug, Clone)]
pub enum Change {
    /// Bytes at an offset; a gap before them reads as zeros.
    Write { offset: usize, bytes: Vec<u8> },
    /// A new length; what is added reads as zeros.
    Resize(usize),
}

/// A file.
#[derive(Debug, Clone, Default)]
pub struct File {
    durable: Vec<u8>,
    unsynced: Vec<(Moment, Change)>,
}

impl File {
    /// A file that lies on the disk already.
    pub fn durable(content: Vec<u8>) -> Self {
        Self { durable: content, unsynced: Vec::new() }
    }

    /// A change that a process made.
    pub fn change(&mut self, at: Moment, change: Change) {
        self.unsynced.push((at, change));
    }

    /// All changes before this moment are on the disk.
    pub fn synced(&mut self, before: Moment) {
        for (_, change) in self.unsynced.extract_if(.., |(at, _)| *at < before) {
            apply(&mut self.durable, &change);
        }
    }

    /// Only what was synced.
    pub fn synced_only(&self) -> Vec<u8> {
        self.durable.clone()
    }

    /// As the process saw it.
    pub fn all(&self) -> Vec<u8> {
        let mut content = self.durable.clone();
        self.unsynced.iter().for_each(|(_, change)| apply(&mut content, change));
        content
    }

    /// Something of what was not synced.
    pub fn some(&self, dice: &mut Dice) -> Vec<u8> {
        if self.unsynced.is_empty() {
            return self.durable.clone();
        }
        // Nearly nothing, half of it, all but a little: each finds other mistakes.
        let chance = *dice.pick(&[1, 8, 15]);
        if dice.hits(8) { self.whole_changes(dice, chance) } else { self.torn(dice, chance) }
    }

    /// Each change arrived or not.
    fn whole_changes(&self, dice: &mut Dice, chance: usize) -> Vec<u8> {
        let mut content = self.durable.clone();
        for (_, change) in &self.unsynced {
            if dice.hits(chance) {
                apply(&mut content, change);
            }
        }
        content
    }

    /// Each sector is as it was after some change or other, and so is the length.
    fn torn(&self, dice: &mut Dice, chance: usize) -> Vec<u8> {
        let mut now = self.durable.clone();
        let mut sectors: BTreeMap<usize, Vec<[u8; SECTOR]>> = BTreeMap::new();
        let mut lengths = vec![now.len()];
        for (_, change) in &self.unsynced {
            let touched = match change {
                Change::Write { offset, bytes } => *offset..offset + bytes.len(),
                Change::Resize(length) => *length..now.len().max(*length),
            };
            for sector in touched.start / SECTOR..touched.end.div_ceil(SECTOR) {
                sectors.entry(sector).or_insert_with(|| vec![self::sector(&now, sector)]);
            }
            apply(&mut now, change);
            for sector in touched.start / SECTOR..touched.end.div_ceil(SECTOR) {
                sectors.entry(sector).or_default().push(self::sector(&now, sector));
            }
            lengths.push(now.len());
        }
        let mut content = self.durable.clone();
        content.resize(*lengths.last().filter(|_| dice.hits(chance)).unwrap_or(dice.pick(&lengths)), 0);
        for (sector, versions) in sectors {
            let version = versions.last().filter(|_| dice.hits(chance)).unwrap_or(dice.pick(&versions));
            let start = (sector * SECTOR).min(content.len());
            let end = (start + SECTOR).min(content.len());
            content[start..end].copy_from_slice(&version[..end - start]);
        }
        content
    }
}

fn sector(content: &[u8], number: usize) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let rest = content.get(number * SECTOR..).unwrap_or_default();
    let length = rest.len().min(SECTOR);
    bytes[..length].copy_from_slice(&rest[..length]);
    bytes
}

fn apply(content: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Resize(length) => content.resize(*length, 0),
        Change::Write { offset, bytes } => {
            let end = offset + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*offset..end].copy_from_slice(bytes);
        }
    }
}

fn write(file: &mut File, at: u64, offset: usize, bytes: &[u8]) {
    file.change(Moment(at), Change::Write { offset, bytes: bytes.to_vec() });
}

#[test]
fn a_sync_takes_what_was_before_it_and_nothing_else() {
    let mut file = File::durable(b"one".to_vec());
    write(&mut file, 1, 3, b" two");
    write(&mut file, 2, 0, b"ONE");
    file.synced(Moment(2));
    assert_eq!(file.synced_only(), b"one two");
    assert_eq!(file.all(), b"ONE two");
    file.change(Moment(3), Change::Resize(2));
    file.synced(Moment(9));
    assert_eq!((file.synced_only(), file.all()), (b"ON".to_vec(), b"ON".to_vec()));
    assert_eq!(file.some(&mut Dice::new(1)), b"ON");
}

#[test]
fn what_is_on_its_way_arrives_in_every_mixture_and_never_as_something_else() {
    let mut file = File::durable(vec![b'a'; 2 * SECTOR]);
    write(&mut file, 1, 0, &vec![b'b'; 3 * SECTOR]);
    write(&mut file, 2, SECTOR, &vec![b'c'; SECTOR]);
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..500 {
        let content = file.some(&mut Dice::new(seed));
        assert_eq!(content.len() % SECTOR, 0);
        let sectors = content.chunks(SECTOR).map(|sector| {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is never torn");
            if sector[0] == 0 { '0' } else { char::from(sector[0]) }
        });
        seen.insert(sectors.collect::<String>());
    }
    // First sector: a, b; second: a, b, c; third: not there, or zeros of a length that came without its data, or b.
    let mut possible = std::collections::BTreeSet::new();
    for first in ["a", "b"] {
        for second in ["a", "b", "c"] {
            possible.extend(["", "0", "b"].map(|third| format!("{first}{second}{third}")));
        }
    }
    assert_eq!(seen, possible);
}
