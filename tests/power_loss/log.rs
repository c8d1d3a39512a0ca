//! What the layer wrote down; its other half is `unsynced.c`.

/// A position in the log, in bytes. What happened before it happened before whatever is recorded behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    /// When the power came. What is on the disk then is durable.
    pub const BEGIN: Self = Self(0);
}

/// Something that a process did to its disk. Files and directories are told by their inode.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The layer is in the process.
    Begun,
    /// A new, empty file.
    Created(u64),
    /// A new, empty directory.
    Made(u64),
    /// Bytes were put at an offset of a file.
    Written { inode: u64, offset: u64, bytes: &'a [u8] },
    /// A file has this length, in bytes.
    Resized { inode: u64, length: u64 },
    /// A directory has these entries.
    Names { inode: u64, entries: Vec<Entry> },
    /// All that was recorded of this file or directory before `before` is durable.
    Synced { inode: u64, before: Moment },
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub inode: u64,
    pub directory: bool,
}

/// A log that nobody writes to any more.
#[derive(Debug)]
pub struct Log(Vec<u8>);

/// Kind, length of the payload, inode, number: 64 bits each, in the machine's order.
const HEAD: usize = 32;

impl Log {
    /// A last record that the kill cut off is left out: what it tells of was not begun.
    pub fn new(mut bytes: Vec<u8>) -> Self {
        let whole = Events { bytes: &bytes, at: 0 }.last().map_or(0, |(_, end, _)| end.0);
        bytes.truncate(whole as usize);
        Self(bytes)
    }

    /// Every event with the moments before and after it.
    pub fn events(&self) -> Events<'_> {
        Events { bytes: &self.0, at: 0 }
    }

    /// When the power can have gone, one moment after each event.
    pub fn moments(&self) -> Vec<Moment> {
        self.events().map(|(_, after, _)| after).collect()
    }
}

/// Goes through a log.
pub struct Events<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Events<'a> {
    type Item = (Moment, Moment, Event<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.bytes.get(self.at..self.at + HEAD)?;
        let word = |n: usize| u64::from_ne_bytes(head[n * 8..][..8].try_into().expect("eight bytes"));
        let (kind, length, inode, number) = (word(0), word(1) as usize, word(2), word(3));
        let payload = self.bytes.get(self.at + HEAD..self.at + HEAD + length)?;
        let event = match kind as u8 {
            b'B' => Event::Begun,
            b'C' => Event::Created(inode),
            b'M' => Event::Made(inode),
            b'W' => Event::Written { inode, offset: number, bytes: payload },
            b'R' => Event::Resized { inode, length: number },
            b'N' => Event::Names { inode, entries: entries(payload) },
            b'S' => Event::Synced { inode, before: Moment(number) },
            other => panic!("the layer writes records of kind {other}, which nobody knows"),
        };
        let before = Moment(self.at as u64);
        self.at += HEAD + length;
        Some((before, Moment(self.at as u64), event))
    }
}

/// Inode, a byte that tells a directory, a byte of length, the name.
fn entries(mut list: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    while let Some((inode, rest)) = list.split_first_chunk::<8>() {
        let (directory, length) = (rest[0] == 1, usize::from(rest[1]));
        let name = String::from_utf8(rest[2..2 + length].to_vec()).expect("names are text");
        entries.push(Entry { name, inode: u64::from_ne_bytes(*inode), directory });
        list = &rest[2 + length..];
    }
    entries
}
