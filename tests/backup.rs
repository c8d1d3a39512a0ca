//! Backups: one moment of the store, whatever is written meanwhile; and what is restored goes on.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::{Connection, OpenFlags};
use serde_json::json;

use crate::gateway::{Home, raw};
use crate::inside::{plant, platform, stdout, texts};
use crate::receiver::Receiver;

/// A backup, found whole.
fn opened(path: &Path) -> Connection {
    assert_eq!(fs::metadata(path).expect("there").permissions().mode() & 0o777, 0o600);
    let copy = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("opens");
    let mode: String = copy.query_row("PRAGMA journal_mode", [], |row| row.get(0)).expect("asked");
    assert_eq!(mode, "delete", "it is one file, and opens where nothing can be written");
    let verdict: String = copy.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("checked");
    assert_eq!(verdict, "ok");
    copy
}

fn count(store: &Connection, sql: &str) -> i64 {
    store.query_row(sql, [], |row| row.get(0)).expect("counted")
}

/// The names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("read").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_backup_is_one_moment_while_64_clients_write() {
    let home = Home::new();
    let mut gateway = home.start();
    let (address, key) = (gateway.address(), gateway.key());
    let (over, acknowledged) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for client in 0..64 {
            let (over, acknowledged, key) = (&over, &acknowledged, &key);
            scope.spawn(move || {
                for n in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let text = format!("client {client} message {n} {}", "x".repeat(n % 5 * 3000));
                    let body = json!({ "messages": [{ "role": "user", "content": text }] }).to_string();
                    let head = format!(
                        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
                         connection: close\r\ncontent-length: {}\r\n\r\n",
                        body.len()
                    );
                    let answer = raw(address, format!("{head}{body}").as_bytes());
                    assert_eq!(answer.status, 200, "{}", answer.body);
                    acknowledged.lock().expect("no panic").push(text);
                }
            });
        }
        let writing = || acknowledged.lock().expect("no panic").len();
        let before_all = writing();
        for round in 0..3 {
            gateway.await_fact("the clients write", |_| writing() > before_all + 200 * (round + 1));
            let before = acknowledged.lock().expect("no panic").clone();
            let file = home.path().join(format!("backup {round}?#.db"));
            let output = home.output("backup", &[file.to_str().expect("text")]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(writing() > before.len(), "it held up everybody");
            let copy = opened(&file);
            for text in &before {
                let sql = "SELECT count(*) FROM messages WHERE role = 'assistant' AND content = ?1";
                let found: u32 = copy.query_row(sql, [text], |row| row.get(0)).expect("counted");
                assert_eq!(found, 1, "{text}");
            }
            let torn = "SELECT count(*) FROM turns t WHERE (SELECT count(*) FROM messages WHERE turn = t.id) \
                        <> iif(t.state = 'completed', 2, 1)";
            assert_eq!(count(&copy, torn), 0);
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(gateway.terminate().success());
    assert_eq!(names(&home.state()), ["api-key", "gateway.db"], "nothing is left of them");
}

#[test]
fn what_is_restored_goes_on() {
    let home = Home::new();
    plant(&home, &[("ops:1", "pending", "first"), ("ops:1", "pending", "second"), ("ops:2", "dead", "third")]);
    // An endpoint that never answers: the first one is on its way while the backup is made.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let url = format!("http://{}/", silent.local_addr().expect("an address"));
    home.configure(&format!("[platforms.ops]\nkind = \"callback\"\nurl = \"{url}\"\nidempotent = false\n"));
    let mut gateway = home.start();
    gateway.await_fact("it is being sent", |_| {
        stdout(&home.output("outbox", &["show", "1"])).contains("state     leased\n")
    });
    home.output("send", &["--session", "old", "a question of today"]);
    let file = home.path().join("backup.db");
    assert!(home.output("backup", &[file.to_str().expect("text")]).status.success());
    gateway.kill();

    let other = Home::new();
    let receiver = Receiver::start();
    other.configure(&platform("ops", &receiver, "idempotent = false"));
    fs::create_dir(other.state()).expect("made");
    fs::copy(&file, other.state().join("gateway.db")).expect("restored");
    let mut gateway = other.start();
    gateway.await_fact("what waited is delivered", |_| texts(&receiver) == ["first", "second"]);
    let repeated: Vec<_> = receiver.calls().iter().map(|call| call.body["possibly_repeated"] == true).collect();
    assert_eq!(repeated, [true, false], "nobody knows what became of the first one");
    let export = stdout(&other.output("sessions", &["export", "old"]));
    assert!(export.lines().count() == 2 && export.contains("answer") && export.contains("of today"), "{export}");
    let dead = stdout(&other.output("outbox", &["list", "--state", "dead"]));
    assert!(dead.contains("ops:2"), "{dead}");
    assert!(gateway.terminate().success());
}

#[test]
fn a_backup_replaces_nothing_unasked_and_leaves_nothing_half_done() {
    let home = Home::new();
    let mut gateway = home.start();
    gateway.ask("to be kept");
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("kept.db");
    let backup = |arguments: &[&str]| {
        let output = home.command("backup").arg(&file).args(arguments).output().expect("runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    fs::write(&file, "mine").expect("written");
    let (code, told) = backup(&[]);
    assert!(code == Some(1) && told.contains("--force"), "{told}");
    assert_eq!(fs::read_to_string(&file).expect("read"), "mine");
    assert_eq!(backup(&["--force"]), (Some(0), String::new()));
    assert_eq!(count(&opened(&file), "SELECT count(*) FROM turns"), 1);
    // What a killed backup left is no obstacle; a link of somebody else is one.
    let partial = place.path().join("kept.db.partial");
    fs::write(&partial, vec![b'x'; 1 << 20]).expect("written");
    fs::set_permissions(&partial, PermissionsExt::from_mode(0o644)).expect("chmod");
    assert_eq!(backup(&["--force"]), (Some(0), String::new()));
    assert_eq!(count(&opened(&file), "SELECT count(*) FROM turns"), 1);
    symlink(home.config_file(), &partial).expect("linked");
    let (code, told) = backup(&["--force"]);
    assert!(code == Some(1) && told.contains("kept.db.partial"), "{told}");
    fs::remove_file(&partial).expect("removed");
    assert_eq!(names(place.path()), ["kept.db"]);

    // To the standard output, byte for byte a store.
    let output = home.output("backup", &["-"]);
    assert!(output.status.success());
    let piped = place.path().join("piped.db");
    fs::write(&piped, &output.stdout).expect("written");
    fs::set_permissions(&piped, PermissionsExt::from_mode(0o600)).expect("chmod");
    assert_eq!(count(&opened(&piped), "SELECT count(*) FROM turns"), 1);

    // Without a gateway: also what is still in the log of one that was killed.
    gateway.ask("the last word");
    gateway.kill();
    assert!(home.state().join("gateway.db-wal").exists());
    let (code, told) = backup(&["--force"]);
    assert!(code == Some(0) && told.contains("no gateway runs here"), "{told}");
    assert_eq!(count(&opened(&file), "SELECT count(*) FROM turns"), 2);
    // A store that is not whole makes no backup that would be taken for one.
    let store = home.state().join("gateway.db");
    for rest in ["gateway.db-wal", "gateway.db-shm"] {
        let _gone_already = fs::remove_file(home.state().join(rest));
    }
    let mut bytes = fs::read(&store).expect("read");
    let (length, before) = (bytes.len(), fs::read(&file).expect("read"));
    bytes[length / 2..].fill(0xee);
    fs::write(&store, &bytes).expect("written");
    let (code, told) = backup(&["--force"]);
    assert!(code == Some(1) && told.contains("not whole"), "{told}");
    assert!(fs::read(&file).expect("read") == before, "the last good one is as it was");
    assert_eq!(names(place.path()), ["kept.db", "piped.db"]);
    fs::remove_file(&store).expect("removed");
    let (code, told) = backup(&["--force"]);
    assert!(code == Some(1) && told.contains("there is no store in"), "{told}");
}
