//! Loss of power: not only the process is gone, but everything that was not on the disk.
//!
//! A layer (`unsynced.c`) is preloaded into the real gateway and writes down every change of a file or a name in the
//! state directory, and every successful fsync and fdatasync. From that log the harness makes, for any moment of the
//! process's life, disks as the next boot can find them. [`disk::PoweredDisk`] is the whole of it; it knows nothing of
//! what the files mean, so a test of anything else that must survive needs no more than that.
//!
//! # What is modelled
//!
//! - A file's content is durable by fsync or fdatasync of that file, as far as it was written before the call.
//! - A name is durable by fsync of its directory, and by nothing else: a synced file whose directory was not synced is
//!   not there. That is less than any file system of today gives. The state directory's own name, in the one above it,
//!   is a name like all others.
//! - Of what is not durable anything may arrive. Of a file: any of its changes without the others, or sectors of 512
//!   bytes each as it was after some change or other, with a length of some time or other. Of a directory: its names up
//!   to some change, or each name as it was after some change or other; only a rename never loses both names.
//! - The order of changes to different files and directories means nothing.
//! - The index of SQLite's log (`-shm`) is memory: it is gone, empty, zeros or noise.
//!
//! # What is not
//!
//! - Sectors that hold what was never written to them, disks that forget what they have confirmed, sectors torn inside.
//! - Permissions, owners and times: everything is its owner's only.
//! - Changes through mmap, copy_file_range, sendfile or fallocate, and calls that go around libc. Names that change so
//!   are noticed at the next change that is seen, contents are not; but then the files are not as the log says when the
//!   process is dead, and [`disk::PoweredDisk::cut`] fails. A sync that is not seen only makes the disk look worse.
//! - Several processes at once in one directory; renames between directories in one step.

use std::collections::BTreeSet;

use crate::gateway::{Gateway, Home};

mod dice;
mod directory;
mod disk;
mod file;
mod image;
mod log;
mod platter;
mod turns;

use dice::Dice;
use disk::{PoweredDisk, images};
use log::Moment;
use platter::Fate;
use turns::{Acknowledged, Verdict, assert_whole, examine, storm};

fn start(home: &Home, disk: &PoweredDisk) -> Gateway {
    let mut command = home.command("run");
    disk.command_env(&mut command);
    home.start_by(command)
}

#[test]
fn nothing_that_was_acknowledged_is_lost_with_the_power() {
    // Lives of one store, one after the other, and how many stores: a new one keeps the disks small.
    const LIVES: u64 = 15;
    const STORES: u64 = 4;
    for store in 0..STORES {
        let home = Home::new();
        let Some(mut disk) = PoweredDisk::new(&home.state()) else { return };
        let mut dice = Dice::new(store);
        let (mut owed, mut key): (Vec<Acknowledged>, Option<Vec<u8>>) = (Vec::new(), None);
        for life in 0..LIVES {
            let name = format!("store {store} life {life}");
            let mut gateway = start(&home, &disk);
            let ready = disk.now();
            let enough = 1 + dice.below(60);
            let told = storm(&mut gateway, &disk, &name, enough, |gateway| match life % 5 {
                4 => assert!(gateway.terminate().success()),
                _ => gateway.kill(),
            });
            let cut = disk.cut();
            // The process's death is one moment among many.
            let any = (0..3).map(|_| *dice.pick(cut.moments())).filter(|moment| key.is_some() || *moment >= ready);
            let moments: Vec<Moment> = any.chain([cut.end()]).collect();
            let mut possible = Vec::new();
            for moment in moments {
                let due: Vec<_> = owed.iter().chain(told.iter().filter(|a| a.at <= moment)).cloned().collect();
                for image in images(&cut, moment, 2, &mut dice) {
                    let place = format!("{name}, power lost at {moment:?} of {cut:?}");
                    assert_whole(&image, &due, &place);
                    let found = image.file("api-key").expect("the key is there");
                    assert_eq!(key.get_or_insert_with(|| found.to_owned()), found, "{place}: another key");
                    possible.push((image, due.clone()));
                }
            }
            let (image, due) = possible.swap_remove(dice.below(possible.len()));
            owed = due.into_iter().map(|a| Acknowledged { at: Moment::BEGIN, ..a }).collect();
            disk.restore(&image);
        }
        let mut gateway = start(&home, &disk);
        assert_eq!(gateway.ask("after all that"), "after all that");
        assert!(gateway.terminate().success());
    }
}

#[test]
fn a_first_start_that_loses_power_anywhere_is_followed_by_one_that_serves() {
    let home = Home::new();
    let Some(mut disk) = PoweredDisk::new(&home.state()) else { return };
    start(&home, &disk).kill();
    let cut = disk.cut();
    let mut dice = Dice::new(1);
    // Many moments leave the same disk.
    let mut tried = BTreeSet::new();
    for moment in cut.moments() {
        for image in images(&cut, *moment, 2, &mut dice) {
            if !tried.insert(image.clone()) {
                continue;
            }
            disk.restore(&image);
            start(&home, &disk).kill();
            // The power goes once more while the second start mends what the first one left.
            let again = disk.cut();
            let moment = *dice.pick(again.moments());
            disk.restore(&again.image(moment, Fate::Something(&mut dice)));
            let mut gateway = start(&home, &disk);
            assert_eq!(gateway.ask("hello"), "hello");
            gateway.kill();
        }
    }
}

#[test]
fn a_key_that_clients_were_told_stays_the_key() {
    let home = Home::new();
    assert!(home.start().terminate().success());
    // Somebody wants a new one. This time no store is made beside it, whose syncs could hide a missing one.
    std::fs::remove_file(home.state().join("api-key")).expect("removed");
    let Some(disk) = PoweredDisk::new(&home.state()) else { return };
    let mut gateway = start(&home, &disk);
    let (key, told) = (gateway.key(), disk.now());
    gateway.kill();
    let cut = disk.cut();
    for moment in cut.moments().iter().filter(|moment| **moment >= told) {
        for image in images(&cut, *moment, 2, &mut Dice::new(moment.0)) {
            assert_eq!(
                image.file("api-key"),
                Some(format!("{key}\n").as_bytes()),
                "power lost at {moment:?} of {cut:?}"
            );
        }
    }
}

#[test]
fn an_orderly_stop_that_loses_power_anywhere_loses_nothing() {
    let home = Home::new();
    let Some(disk) = PoweredDisk::new(&home.state()) else { return };
    let mut gateway = start(&home, &disk);
    let mut asked = Moment::BEGIN;
    let told = storm(&mut gateway, &disk, "stop", 20, |gateway| {
        asked = disk.now();
        assert!(gateway.terminate().success());
    });
    let cut = disk.cut();
    let mut dice = Dice::new(2);
    for moment in cut.moments().iter().filter(|moment| **moment >= asked) {
        let due: Vec<_> = told.iter().filter(|a| a.at <= *moment).cloned().collect();
        for image in images(&cut, *moment, 1, &mut dice) {
            assert_whole(&image, &due, &format!("power lost at {moment:?} of {cut:?}"));
        }
    }
}

#[test]
fn a_store_that_only_says_that_it_syncs_is_convicted() {
    for lie in ["files", "directories", "all"] {
        let home = Home::new();
        let Some(mut disk) = PoweredDisk::new(&home.state()) else { return };
        disk.lie(lie);
        let mut gateway = start(&home, &disk);
        let told = storm(&mut gateway, &disk, lie, 20, Gateway::kill);
        let cut = disk.cut();
        // A process that dies takes nothing with it, however it syncs.
        assert_whole(&cut.image(cut.end(), Fate::Everything), &told, lie);
        let Err(Verdict::Missing(missing)) = examine(&cut.image(cut.end(), Fate::Nothing), &told) else {
            panic!("{lie}: acquitted, or damaged without having lost anything");
        };
        assert_eq!(missing.len(), told.len(), "{lie}");
    }
}

#[test]
fn a_layer_that_overlooks_something_does_not_acquit_anybody() {
    let home = Home::new();
    let Some(disk) = PoweredDisk::new(&home.state()) else { return };
    assert_eq!(disk.try_cut().expect_err("nobody was there"), "it was not loaded");
    let mut gateway = start(&home, &disk);
    gateway.ask("something to write down");
    gateway.kill();
    disk.cut();
    let file = std::fs::File::options().write(true).open(home.state().join("gateway.db-wal")).expect("the log");
    std::os::unix::fs::FileExt::write_at(&file, b"unseen", 50).expect("written");
    let overlooked = disk.try_cut().expect_err("it was not seen");
    assert!(overlooked.contains("gateway.db-wal"), "{overlooked}");
}
