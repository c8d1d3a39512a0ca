//! A directory whose power can be cut: the layer in the process, and what it told when the process is dead.
//!
//! Make a [`PoweredDisk`] of the directory and start the process with [`PoweredDisk::command_env`]. Note
//! [`PoweredDisk::now`] with whatever it acknowledges. Kill it and take the [`Cut`]: for every moment of it the disks of
//! [`images`] must have what was acknowledged by then. [`PoweredDisk::restore`] one of them, and start again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::dice::Dice;
use super::image::Image;
use super::log::{Event, Log, Moment};
use super::platter::{Fate, Platter, entries, is_shared_memory};

/// A directory under watch. One process at a time works in it, started with [`PoweredDisk::command_env`].
pub struct PoweredDisk {
    directory: PathBuf,
    /// Holds the layer and its log; gone with this value.
    workshop: tempfile::TempDir,
    lie: Option<&'static str>,
    /// What was there when the power came.
    before: Platter,
}

impl PoweredDisk {
    /// Watches a directory, which need not be there yet; what is in it is durable. Says loudly why not if there is no C
    /// compiler. In CI there must be one.
    pub fn new(directory: &Path) -> Option<Self> {
        let above = directory.parent().expect("a directory above").canonicalize().expect("it is there");
        let directory = above.join(directory.file_name().expect("a name"));
        let workshop = tempfile::tempdir().expect("a temporary directory");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/power_loss/unsynced.c");
        let mut compiler = Command::new("cc");
        // Where hardening is the compiler's default, it has the same functions as macros.
        compiler.args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-U_FORTIFY_SOURCE", "-pthread", "-o"]);
        match compiler.arg(workshop.path().join("unsynced.so")).arg(source).output() {
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
            Err(e) => {
                assert!(std::env::var_os("CI").is_none(), "no C compiler in CI: {e}");
                eprintln!("SKIPPED: no test of a power loss: cc is missing (Debian: gcc libc6-dev): {e}");
                return None;
            }
        }
        let before = Platter::lying(&directory);
        let disk = Self { directory, workshop, lie: None, before };
        disk.begin_log();
        Some(disk)
    }

    /// From the next process on, syncs of these succeed and do nothing: "files", "directories" or "all".
    pub fn lie(&mut self, about: &'static str) {
        self.lie = Some(about);
    }

    /// Puts the layer into a process that is to be started.
    pub fn command_env(&self, command: &mut Command) {
        command.env("LD_PRELOAD", self.workshop.path().join("unsynced.so"));
        command.env("POWER_LOSS_DIRECTORY", &self.directory).env("POWER_LOSS_LOG", self.log());
        command.envs(self.lie.map(|about| ("POWER_LOSS_LIE", about)));
    }

    /// Now. What the process has acknowledged by now must be on every disk whose power goes later.
    pub fn now(&self) -> Moment {
        Moment(fs::metadata(self.log()).expect("a log").len())
    }

    /// What can be on the disk, whenever the power went; for a process that is dead.
    ///
    /// # Panics
    /// If the layer did not see everything, for then it cannot tell.
    pub fn cut(&self) -> Cut {
        self.try_cut().unwrap_or_else(|overlooked| panic!("the layer is blind: {overlooked}"))
    }

    /// The same; the error says what the layer did not see.
    pub fn try_cut(&self) -> Result<Cut, String> {
        let log = Log::new(fs::read(self.log()).expect("the log"));
        let moments = log.moments();
        if moments.is_empty() {
            return Err("it was not loaded".into());
        }
        let cut = Cut { before: self.before.clone(), log, moments, directory: self.directory.clone() };
        match cut.overlooked(&self.directory) {
            Some(overlooked) => Err(overlooked),
            None => Ok(cut),
        }
    }

    /// The power is back: this is on the disk, all of it durable.
    pub fn restore(&mut self, image: &Image) {
        if self.directory.exists() {
            fs::remove_dir_all(&self.directory).expect("removed");
        }
        image.lay_down(&self.directory);
        self.before = Platter::lying(&self.directory);
        self.begin_log();
    }

    fn begin_log(&self) {
        fs::write(self.log(), "").expect("an empty log");
    }

    fn log(&self) -> PathBuf {
        self.workshop.path().join("log")
    }
}

/// A process's whole life on its disk.
pub struct Cut {
    before: Platter,
    log: Log,
    moments: Vec<Moment>,
    directory: PathBuf,
}

impl Cut {
    /// When the power can have gone, one moment after each thing that the process did. The last one is its death.
    pub fn moments(&self) -> &[Moment] {
        &self.moments
    }

    /// When the process died.
    pub fn end(&self) -> Moment {
        *self.moments.last().expect("it was begun")
    }

    /// The disk at a moment.
    pub fn at(&self, moment: Moment) -> Platter {
        let mut platter = self.before.clone();
        for (at, _, event) in self.log.events().take_while(|(_, after, _)| *after <= moment) {
            platter.apply(at, &event);
        }
        if moment == self.end() {
            self.look_around(&self.directory, &mut platter);
        }
        platter
    }

    /// What is on the disk if at that moment this was the fate of everything unsynced.
    pub fn image(&self, moment: Moment, fate: Fate<'_>) -> Image {
        self.at(moment).image(fate)
    }

    /// Names can change by ways that the layer does not see; at the end they are known from looking.
    fn look_around(&self, directory: &Path, platter: &mut Platter) {
        use std::os::unix::fs::MetadataExt;
        let Ok(meta) = fs::metadata(directory) else { return };
        let entries = entries(directory);
        entries.iter().filter(|e| e.directory).for_each(|e| self.look_around(&directory.join(&e.name), platter));
        platter.apply(self.end(), &Event::Names { inode: meta.ino(), entries });
    }

    /// A file that is not as the layer says. The last thing that it says may have been ended by the kill.
    fn overlooked(&self, directory: &Path) -> Option<String> {
        let last = self.at(self.end());
        let before = self.moments.iter().rev().nth(1).map_or_else(|| self.before.clone(), |moment| self.at(*moment));
        let mut rest = vec![directory.to_owned()];
        while let Some(directory) = rest.pop() {
            for entry in entries(&directory) {
                let path = directory.join(&entry.name);
                if entry.directory {
                    rest.push(path);
                } else if !is_shared_memory(&entry.name) {
                    let real = fs::read(&path).expect("read");
                    let told = [&last, &before].map(|platter| platter.content(entry.inode).unwrap_or_default());
                    if !is_between(&real, &told) {
                        return Some(format!("{} is not as it says", path.display()));
                    }
                }
            }
        }
        None
    }
}

/// Whether a content may be the one on its way to the other.
fn is_between(real: &[u8], [one, other]: &[Vec<u8>; 2]) -> bool {
    let fits = |at: usize| one.get(at) == Some(&real[at]) || other.get(at) == Some(&real[at]);
    let lengths = one.len().min(other.len())..=one.len().max(other.len());
    real == one || lengths.contains(&real.len()) && (0..real.len()).all(fits)
}

impl std::fmt::Debug for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} events", self.moments.len())
    }
}

/// Images of a moment: nothing unsynced, everything, and so many of chance.
pub fn images(cut: &Cut, moment: Moment, of_chance: usize, dice: &mut Dice) -> Vec<Image> {
    let platter = cut.at(moment);
    let mut images = vec![platter.image(Fate::Nothing), platter.image(Fate::Everything)];
    images.extend((0..of_chance).map(|_| platter.image(Fate::Something(dice))));
    images
}
