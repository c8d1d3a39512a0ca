//! A disk that can hang: no request to write is answered or refused until it is well again.
//!
//! It is a loop device on a file of a file system below, and to freeze that one is to hang the device. So `fdatasync`
//! waits where it waits for broken hardware, and like there no signal ends who waits. A keeper makes it and clears it
//! away. However the test ends, the keeper's stdin does, and it thaws first: nothing of the host waits for ever.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Answers a line for each line: the device at first, then `done`.
const KEEPER: &str = r#"
set -eu
below=$1/below
clear_away() {
    fsfreeze --unfreeze "$below" || true
    for place in $(findmnt --noheadings --output TARGET --source "$device"); do umount --lazy "$place"; done
    losetup --detach "$device"
    umount --lazy "$below"
} 2>/dev/null
truncate --size 64M "$below.img"
mkfs.ext4 -q "$below.img"
mkdir "$below"
mount -o loop "$below.img" "$below"
rm "$below.img"
device= && trap clear_away EXIT
truncate --size 32M "$below/disk"
mkfs.ext4 -q "$below/disk"
device=$(losetup --find --show "$below/disk")
echo "$device"
while read -r order; do
    case $order in
    hang) fsfreeze --freeze "$below" ;;
    heal) fsfreeze --unfreeze "$below" ;;
    *) mount "$device" "$order" ;;
    esac
    echo done
done
"#;

/// A small disk, gone with this value.
pub struct Disk {
    keeper: Child,
    answers: BufReader<ChildStdout>,
    device: PathBuf,
    _directory: tempfile::TempDir,
}

impl Disk {
    /// Makes one with an empty file system, or says loudly why it cannot. In CI it must be possible.
    pub fn new() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "disk"])
            .arg(directory.path())
            // Out of the terminal's reach: Ctrl-C ends the test, whose end ends the keeper in its own order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the shell runs");
        let answers = BufReader::new(keeper.stdout.take().expect("it is piped"));
        let mut disk = Self { keeper, answers, device: PathBuf::new(), _directory: directory };
        match disk.answer() {
            Some(device) => disk.device = device.into(),
            None => {
                assert!(std::env::var_os("CI").is_none(), "no loop device in CI, see the words of its tools");
                eprintln!("SKIPPED: no test with a disk that hangs: it needs root, loop devices and e2fsprogs");
                return None;
            }
        }
        Some(disk)
    }

    /// The block device, on which there is an ext4.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Mounts it on this directory, which is made.
    pub fn mount(&mut self, path: &Path) {
        std::fs::create_dir_all(path).expect("a mount point");
        self.order(path.to_str().expect("UTF-8"));
    }

    /// Hangs it for as long as what comes back lives. That must go before anything that waits for the gateway's end.
    pub fn hang(&mut self) -> Hung<'_> {
        self.order("hang");
        Hung(self)
    }

    fn order(&mut self, order: &str) {
        let stdin = self.keeper.stdin.as_mut().expect("it is piped");
        writeln!(stdin, "{order}").expect("the keeper listens");
        assert_eq!(self.answer().as_deref(), Some("done"), "{order}");
    }

    fn answer(&mut self) -> Option<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the keeper's words are text");
        line.strip_suffix('\n').map(str::to_owned)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Waiting closes its stdin first, on which it clears away.
        let ended = self.keeper.wait();
        assert!(ended.is_ok() || std::thread::panicking(), "{ended:?}");
    }
}

/// A disk that hangs. It is healed when this goes.
pub struct Hung<'a>(&'a mut Disk);

impl Drop for Hung<'_> {
    fn drop(&mut self) {
        self.0.order("heal");
    }
}
