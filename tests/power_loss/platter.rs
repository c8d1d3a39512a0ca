//! A disk as a process left it: files, directories, and of each what is durable.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::dice::Dice;
use super::directory::{Directory, Names, Object};
use super::file::{Change, File};
use super::image::Image;
use super::log::{Entry, Event, Moment};

/// SQLite's index of its log is memory that processes share: its content is never told and nobody needs it.
const SHARED_MEMORY: &str = "-shm";
/// Length of such a file, in bytes.
const SHARED_LENGTH: usize = 32 * 1024;

/// How much of what was not synced arrives.
#[derive(Debug)]
pub enum Fate<'a> {
    /// Nothing.
    Nothing,
    /// All of it: only the process died.
    Everything,
    /// Something, as chance wants it.
    Something(&'a mut Dice),
}

#[derive(Debug, Clone)]
enum Node {
    File(File),
    Directory(Directory),
}

/// A disk.
#[derive(Debug, Clone)]
pub struct Platter {
    nodes: Vec<Node>,
    /// Which object has an inode now.
    inodes: HashMap<u64, Object>,
    /// The directory above the one that matters; it counts as far as it names that one.
    above: Object,
}

impl Platter {
    /// What lies at this path, all of it durable.
    pub fn lying(directory: &Path) -> Self {
        let mut platter = Self { nodes: Vec::new(), inodes: HashMap::new(), above: 0 };
        let above = directory.parent().expect("a directory above");
        let own = entries(above).into_iter().filter(|entry| Some(entry.name.as_ref()) == directory.file_name());
        platter.above = platter.load(above, own.collect());
        platter
    }

    fn load(&mut self, directory: &Path, entries: Vec<Entry>) -> Object {
        let mut names = Names::new();
        for entry in entries {
            let path = directory.join(&entry.name);
            let object = if entry.directory {
                self.load(&path, self::entries(&path))
            } else {
                self.add(entry.inode, Node::File(File::durable(fs::read(&path).expect("a file is read"))))
            };
            names.insert(entry.name, object);
        }
        let inode = fs::metadata(directory).expect("a directory").ino();
        self.add(inode, Node::Directory(Directory::durable(names)))
    }

    fn add(&mut self, inode: u64, node: Node) -> Object {
        self.nodes.push(node);
        self.inodes.insert(inode, self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    /// Something happened at this moment.
    pub fn apply(&mut self, at: Moment, event: &Event<'_>) {
        match event {
            Event::Begun => {}
            Event::Created(inode) => {
                self.add(*inode, Node::File(File::default()));
            }
            Event::Made(inode) => {
                self.add(*inode, Node::Directory(Directory::default()));
            }
            Event::Written { inode, offset, bytes } => {
                self.file(*inode).change(at, Change::Write { offset: *offset as usize, bytes: bytes.to_vec() });
            }
            Event::Resized { inode, length } => self.file(*inode).change(at, Change::Resize(*length as usize)),
            Event::Names { inode, entries } => {
                let names = entries.iter().map(|entry| (entry.name.clone(), self.object(entry))).collect();
                self.directory(*inode).seen(at, names);
            }
            Event::Synced { inode, before } => match self.inodes.get(inode).map(|object| &mut self.nodes[*object]) {
                Some(Node::File(file)) => file.synced(*before),
                Some(Node::Directory(directory)) => directory.synced(*before),
                None => {}
            },
        }
    }

    /// An inode that was never seen is something new that nobody has touched yet.
    fn object(&mut self, entry: &Entry) -> Object {
        match (entry.directory, self.inodes.get(&entry.inode).map(|object| (*object, &self.nodes[*object]))) {
            (true, Some((object, Node::Directory(_)))) | (false, Some((object, Node::File(_)))) => object,
            (true, _) => self.add(entry.inode, Node::Directory(Directory::default())),
            (false, _) => self.add(entry.inode, Node::File(File::default())),
        }
    }

    fn file(&mut self, inode: u64) -> &mut File {
        let object = self.object(&Entry { name: String::new(), inode, directory: false });
        match &mut self.nodes[object] {
            Node::File(file) => file,
            Node::Directory(_) => unreachable!("a file was asked for"),
        }
    }

    fn directory(&mut self, inode: u64) -> &mut Directory {
        let object = self.object(&Entry { name: String::new(), inode, directory: true });
        match &mut self.nodes[object] {
            Node::Directory(directory) => directory,
            Node::File(_) => unreachable!("a directory was asked for"),
        }
    }

    /// What a file holds for the process; `None` for one that is not known.
    pub fn content(&self, inode: u64) -> Option<Vec<u8>> {
        match &self.nodes[*self.inodes.get(&inode)?] {
            Node::File(file) => Some(file.all()),
            Node::Directory(_) => None,
        }
    }

    /// What the next boot finds.
    pub fn image(&self, mut fate: Fate<'_>) -> Image {
        let mut found = BTreeMap::new();
        self.lay_out(self.above, Path::new(""), &mut fate, &mut found);
        Image::new(found)
    }

    fn lay_out(&self, from: Object, at: &Path, fate: &mut Fate<'_>, found: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
        let Node::Directory(directory) = &self.nodes[from] else { unreachable!("only directories have names") };
        let names = match fate {
            Fate::Nothing => directory.synced_only(),
            Fate::Everything => directory.all(),
            Fate::Something(dice) => directory.some(dice),
        };
        for (name, object) in names {
            let path = at.join(&name);
            match &self.nodes[object] {
                Node::Directory(_) => {
                    found.insert(path.clone(), None);
                    self.lay_out(object, &path, fate, found);
                }
                Node::File(_) if is_shared_memory(&name) => {
                    found.insert(path, Some(anything(fate)));
                }
                Node::File(file) => {
                    let content = match fate {
                        Fate::Nothing => file.synced_only(),
                        Fate::Everything => file.all(),
                        Fate::Something(dice) => file.some(dice),
                    };
                    found.insert(path, Some(content));
                }
            }
        }
    }
}

/// Whether a file's content is memory.
pub fn is_shared_memory(name: &str) -> bool {
    name.ends_with(SHARED_MEMORY)
}

fn anything(fate: &mut Fate<'_>) -> Vec<u8> {
    match fate {
        Fate::Nothing => Vec::new(),
        Fate::Everything => vec![0; SHARED_LENGTH],
        Fate::Something(dice) => {
            (0..dice.below(2) * SHARED_LENGTH / 8).flat_map(|_| dice.next().to_ne_bytes()).collect()
        }
    }
}

/// The files and directories in a directory.
pub fn entries(directory: &Path) -> Vec<Entry> {
    let Ok(read) = fs::read_dir(directory) else { return Vec::new() };
    let mut entries = Vec::new();
    for entry in read.map(|entry| entry.expect("an entry")) {
        let meta = entry.metadata().expect("metadata");
        if meta.is_file() || meta.is_dir() {
            let name = entry.file_name().into_string().expect("names are text");
            entries.push(Entry { name, inode: meta.ino(), directory: meta.is_dir() });
        }
    }
    entries
}
