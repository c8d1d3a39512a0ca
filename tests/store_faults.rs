//! Disks that are full, read-only or damaged, and a gateway that is killed while it writes.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rusqlite::{Connection, OpenFlags};
use serde_json::json;

use crate::gateway::{Answer, Gateway, Home};

mod mount;

use mount::{Mount, end_of, start_or_end};

fn ask(gateway: &Gateway, text: &str) -> Answer {
    let body = json!({ "messages": [{ "role": "user", "content": text }] }).to_string();
    gateway.request("POST", "/v1/chat/completions", &body)
}

/// The store of a gateway that does not run, found whole.
pub fn stopped_store(state: &Path) -> Connection {
    let store = Connection::open(state.join("gateway.db")).expect("the store opens");
    let verdict: String = store.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("checked");
    assert_eq!(verdict, "ok");
    store
}

/// How many turns in this state have been told this text.
pub fn turns(store: &Connection, state: &str, text: &str) -> u32 {
    let sql = "SELECT count(*) FROM turns t JOIN messages m ON m.turn = t.id \
               WHERE m.role = 'user' AND t.state LIKE ?1 AND m.content = ?2";
    store.query_row(sql, [state, text], |row| row.get(0)).expect("counted")
}

#[test]
fn a_full_disk_is_told_as_such_and_forgotten_when_there_is_room() {
    let home = Home::new();
    let Some(mount) = Mount::new(&home.state(), "4m") else { return };
    let mut gateway = home.start();
    assert_eq!(gateway.ask("before"), "before");
    mount.fill();
    let large = "x".repeat(500_000);
    for _ in 0..2 {
        let answer = ask(&gateway, &large);
        let error = &answer.json()["error"];
        assert_eq!((answer.status, error["code"].as_str()), (507, Some("store_full")), "{}", answer.body);
        assert_eq!((error["type"].as_str(), answer.header("retry-after")), (Some("server_error"), Some("1")));
        assert!(error["message"].as_str().is_some_and(|text| text.contains("disk")), "{}", answer.body);
    }
    // It serves what needs no disk, and says how it is.
    assert_eq!(gateway.request("GET", "/v1/models", "").status, 200);
    assert!(gateway.log().contains("the disk takes no more data"), "{}", gateway.log());
    // What small requests are told is true, whichever way it goes: there may be room left inside of the files.
    let small: Vec<_> = (0..50).map(|n| (format!("small {n}"), ask(&gateway, &format!("small {n}")).status)).collect();
    assert!(small.iter().all(|(_, status)| [200, 507].contains(status)), "{small:?}");
    mount.empty();
    assert_eq!(ask(&gateway, &large).status, 200, "{}", gateway.log());
    assert_eq!(gateway.ask("after"), "after");
    assert!(gateway.terminate().success());
    {
        let store = stopped_store(&home.state());
        assert_eq!((turns(&store, "completed", &large), turns(&store, "%", &large)), (1, 1), "nothing half-written");
        for (text, status) in &small {
            assert_eq!(turns(&store, "completed", text), u32::from(*status == 200), "{text} was answered {status}");
        }
    }
}

#[test]
fn a_start_on_a_disk_that_takes_nothing_says_why_and_a_later_one_succeeds() {
    let home = Home::new();
    let Some(mount) = Mount::new(&home.state(), "4m") else { return };
    for stage in ["the first start", "a later start", "a start after a kill"] {
        for trouble in ["full", "read-only"] {
            if trouble == "full" {
                mount.fill()
            } else {
                mount.remount("ro")
            }
            match start_or_end(&home) {
                // With SQLite's files of a killed life there is nothing to be made; requests are told, one by one.
                Ok(gateway) => {
                    assert_ne!(stage, "the first start");
                    assert_eq!(ask(&gateway, &"x".repeat(500_000)).status, 507, "{stage}, {trouble}");
                }
                Err(output) => {
                    let told = String::from_utf8_lossy(&output.stderr);
                    assert!(told.contains(&home.state().display().to_string()), "{stage}, {trouble}: {told}");
                    // 78 would be for ever: systemd does not try again when there is room.
                    assert_eq!(output.status.code(), Some(1), "{stage}, {trouble}: {told}");
                }
            }
            if trouble == "full" { mount.empty() } else { mount.remount("rw") }
        }
        let mut gateway = home.start();
        assert_eq!(gateway.ask("as before"), "as before");
        if stage == "the first start" { assert!(gateway.terminate().success()) } else { gateway.kill() }
    }
}

#[test]
fn an_orderly_stop_leaves_the_store_in_one_file() {
    let home = Home::new();
    for round in 0..30 {
        let mut gateway = home.start();
        gateway.ask("something to write down");
        assert!(gateway.terminate().success());
        // Whoever copies or moves the store then has all of it.
        for rest in ["db-wal", "db-shm"] {
            assert!(!home.state().join("gateway").with_extension(rest).exists(), "round {round}: gateway.{rest}");
        }
    }
}

#[test]
fn a_store_that_is_not_ours_or_not_whole_is_refused_and_left_alone() {
    let whole = Home::new();
    let mut gateway = whole.start();
    gateway.ask(&"something to lose ".repeat(2000));
    assert!(gateway.terminate().success());
    let whole = fs::read(whole.state().join("gateway.db")).expect("a store");
    let edited = |edit: &dyn Fn(&Connection)| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), &whole).expect("written");
        let connection = Connection::open(file.path()).expect("opened");
        edit(&connection);
        drop(connection);
        fs::read(file.path()).expect("read")
    };
    let mut bad_header = whole.clone();
    bad_header[..16].copy_from_slice(b"something else!\0");
    let mut bad_root = whole.clone();
    bad_root[100..200].fill(0xff);
    let cases = [
        (
            "text",
            b"this is no database, but it is as long as a header of one would be, and then some".repeat(10),
            "damaged",
        ),
        ("a bad header", bad_header, "damaged"),
        ("a bad first page", bad_root, "damaged"),
        ("half of it", whole[..whole.len() / 2].to_vec(), "damaged"),
        (
            "a newer one",
            edited(&|c| c.pragma_update(None, "user_version", 99).expect("set")),
            "install the newer version",
        ),
        (
            "another program's",
            edited(&|c| c.pragma_update(None, "application_id", 7).expect("set")),
            "is not a gateway's store",
        ),
    ];
    for (what, bytes, told) in cases {
        let home = Home::new();
        fs::create_dir(home.state()).expect("made");
        let file = home.state().join("gateway.db");
        fs::write(&file, &bytes).expect("written");
        let output = end_of(home.command("run"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{what}: {said}");
        assert!(said.contains(told) && said.contains(&file.display().to_string()), "{what}: {said}");
        assert!(fs::read(&file).expect("read") == bytes, "{what}: the file was changed");
        // SQLite needs a log to read a store in WAL mode; nothing may have been put into it.
        let log = fs::metadata(file.with_extension("db-wal")).map_or(0, |meta| meta.len());
        assert_eq!(log, 0, "{what}: something was written");
    }
}

#[test]
fn nothing_that_was_acknowledged_is_lost_in_ten_kills() {
    const CLIENTS: usize = 8;
    let home = Home::new();
    let acknowledged = Mutex::new(Vec::new());
    for round in 0..10 {
        let mut gateway = home.start();
        let (address, key) = (gateway.address(), gateway.key());
        let enough = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (enough, acknowledged, key) = (&enough, &acknowledged, &key);
                scope.spawn(move || {
                    for n in 0.. {
                        let text = format!("round {round} client {client} message {n} {}", "x".repeat(n % 7 * 1000));
                        let body = json!({ "messages": [{ "role": "user", "content": text }] }).to_string();
                        let head =
                            format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n");
                        let head = format!("{head}connection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                        let Some(answer) = reply(address, &(head + &body)) else { return };
                        // A body that the kill cut off acknowledges nothing.
                        if !answer.starts_with("HTTP/1.1 200 ") || !answer.ends_with('}') {
                            return;
                        }
                        acknowledged.lock().expect("no panic").push(text);
                        enough.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            gateway.await_fact("the storm is on", |_| enough.load(Ordering::Relaxed) > 20 + round * 13);
            gateway.kill();
        });
        let store = stopped_store(&home.state());
        for text in acknowledged.lock().expect("no panic").iter() {
            let sql = "SELECT count(*) FROM turns t JOIN messages q ON q.turn = t.id JOIN messages a ON a.turn = t.id \
                       WHERE t.state = 'completed' AND q.role = 'user' AND q.content = ?1 \
                       AND a.role = 'assistant' AND a.content = ?1";
            let found: u32 = store.query_row(sql, [text], |row| row.get(0)).expect("counted");
            assert_eq!(found, 1, "round {round}: {text}");
        }
    }
    // The next life takes it up and leaves nothing unfinished.
    assert!(home.start().terminate().success());
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let store = Connection::open_with_flags(home.state().join("gateway.db"), flags).expect("the store opens");
    let unfinished = "SELECT count(*) FROM turns WHERE state IN ('queued', 'running')";
    assert_eq!(store.query_row(unfinished, [], |row| row.get::<_, u32>(0)).expect("counted"), 0);
}

/// The whole answer, as far as it came; `None` when nobody listens any more.
fn reply(address: SocketAddr, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let mut answer = String::new();
    stream.write_all(request.as_bytes()).ok()?;
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn what_people_said_is_for_its_owner_only_wherever_it_lies() {
    let home = Home::new();
    fs::create_dir(home.state()).expect("made");
    fs::set_permissions(home.state(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let gateway = home.start();
    gateway.ask("a secret");
    for entry in fs::read_dir(home.state()).expect("read").map(|entry| entry.expect("an entry")) {
        let mode = entry.metadata().expect("metadata").mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", entry.path().display());
    }
}
