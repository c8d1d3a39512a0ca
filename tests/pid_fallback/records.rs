//! What lies in place of the pid file, and what a record says.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use rustix::fs::{CWD, FileType, Mode};
use serde_json::{Value, json};

use super::{Bystander, assert_answers, assert_refused, can_run, ended, holders, naming, record_of_a_dead_gateway};
use super::{said, stat, stop};
use crate::gateway::{BINARY, Home};

/// Asserts that nobody has come to harm, and nothing of the user's.
type Unharmed = Box<dyn FnMut(&str)>;

/// Lays something in place of the pid file, given the path and a perfect record of a dead gateway.
type Plant<'a> = (&'static str, &'a dyn Fn(&Path, &Value) -> Unharmed);

fn nobody() -> Unharmed {
    Box::new(|_| ())
}

fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::write(path, content).expect("the record is planted");
}

/// Plants a record of a bystander that is perfect but for this change.
fn named(path: &Path, record: &Value, change: impl Fn(&mut Value)) -> Unharmed {
    let mut bystander = Bystander::new();
    let mut record = naming(record, bystander.pid(), bystander.start_ticks());
    change(&mut record);
    write(path, record.to_string());
    Box::new(move |when| bystander.assert_unharmed(when))
}

fn other_boot(record: &mut Value) {
    record["boot_id"] = "0123456789abcdef0123456789abcdef".into();
}

fn other_namespace(record: &mut Value) {
    record["pid_namespace"] = (record["pid_namespace"].as_u64().expect("an inode") + 1).into();
}

fn hermes(pid: u32, start_ticks: u64) -> String {
    let argv = ["hermes", "gateway", "run"];
    json!({ "pid": pid, "kind": "hermes-gateway", "argv": argv, "start_time": start_ticks }).to_string()
}

fn thread_id(path: &Path, record: &Value) -> Unharmed {
    let (send, ids) = mpsc::channel();
    let (alive, ends) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        send.send(rustix::thread::gettid().as_raw_pid()).expect("somebody waits for the id");
        let _ended = ends.recv();
    });
    let id = ids.recv().expect("the thread tells its id").cast_unsigned();
    let ticks = fs::read_to_string(format!("/proc/self/task/{id}/stat")).expect("the thread lives");
    let ticks = ticks.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(19)?.parse().ok());
    write(path, naming(record, id, ticks.expect("start ticks")).to_string());
    Box::new(move |when| {
        let _keeps_it_alive = &alive;
        assert!(!thread.is_finished(), "{when}: the thread ended");
    })
}

fn zombie(path: &Path, record: &Value) -> Unharmed {
    let zombie = Bystander::zombie();
    write(path, naming(record, zombie.pid(), zombie.start_ticks()).to_string());
    Box::new(move |when| assert_eq!(stat(zombie.pid()).map(|(state, _)| state), Some('Z'), "{when}"))
}

fn directory(path: &Path, _: &Value) -> Unharmed {
    fs::create_dir(path).expect("a directory");
    write(&path.join("precious"), "kept");
    let (path, aside) = (path.to_owned(), aside(path));
    Box::new(move |when| {
        let kept = [&path, &aside].map(|place| fs::read(place.join("precious")).ok());
        assert!(kept.contains(&Some(b"kept".to_vec())), "{when}: what was in the directory is gone");
    })
}

fn aside(path: &Path) -> PathBuf {
    path.with_file_name("gateway.pid.set-aside.1")
}

/// A link to a file of the user, beside the runtime directory.
fn linked(path: &Path, _: &Value) -> Unharmed {
    let file = path.with_file_name("precious");
    write(&file, "of the user");
    symlink(&file, path).expect("a link");
    Box::new(move |when| assert_eq!(fs::read(&file).expect("it is there"), b"of the user", "{when}"))
}

fn dangling(path: &Path, _: &Value) -> Unharmed {
    let target = path.with_file_name("nowhere");
    symlink(&target, path).expect("a link");
    Box::new(move |when| assert!(!target.exists(), "{when}: the link's target was made"))
}

fn to_dev_null(path: &Path, _: &Value) -> Unharmed {
    symlink("/dev/null", path).expect("a link");
    let is_device = || fs::metadata("/dev/null").expect("it is there").file_type().is_char_device();
    Box::new(move |when| assert!(is_device(), "{when}"))
}

fn fifo(path: &Path, _: &Value) -> Unharmed {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
    nobody()
}

fn living_socket(path: &Path, _: &Value) -> Unharmed {
    let listener = UnixListener::bind(path).expect("a socket");
    Box::new(move |when| assert!(listener.local_addr().is_ok(), "{when}"))
}

fn closed(path: &Path, record: &Value) -> Unharmed {
    let unharmed = named(path, record, |_| ());
    fs::set_permissions(path, PermissionsExt::from_mode(0o000)).expect("the mode is set");
    unharmed
}

fn text(content: &'static str) -> impl Fn(&Path, &Value) -> Unharmed {
    move |path, _| {
        write(path, content);
        nobody()
    }
}

#[test]
fn whatever_lies_there_a_start_works_and_nobody_is_signalled() {
    let table: [Plant; 22] = [
        ("nothing", &|_, _| nobody()),
        ("the record of a dead gateway", &|path, record| {
            write(path, record.to_string());
            nobody()
        }),
        ("a perfect record of a living bystander", &|path, record| named(path, record, |_| ())),
        ("a recycled pid", &|path, record| named(path, record, |r| r["start_ticks"] = 4711.into())),
        ("another boot", &|path, record| named(path, record, other_boot)),
        ("another pid namespace", &|path, record| named(path, record, other_namespace)),
        ("pid 1", &|path, record| {
            write(path, naming(record, 1, stat(1).expect("pid 1 lives").1).to_string());
            nobody()
        }),
        ("a thread", &thread_id),
        ("a zombie", &zombie),
        ("garbage", &|path, _| {
            write(path, b"\xff\xfe\x00{]\n\x07");
            nobody()
        }),
        ("an empty file", &text("")),
        ("a torn record", &text("{\"pid\":4711,\"start_ti")),
        ("a bare pid", &|path, record| {
            let unharmed = named(path, record, |_| ());
            let pid = serde_json::from_slice::<Value>(&fs::read(path).expect("planted")).expect("JSON")["pid"].clone();
            write(path, format!("{pid}\n"));
            unharmed
        }),
        ("a record of Hermes", &|path, record| {
            let mut bystander = Bystander::new();
            write(path, hermes(bystander.pid(), bystander.start_ticks()));
            assert!(record["pid"].is_u64());
            Box::new(move |when| bystander.assert_unharmed(when))
        }),
        ("a directory", &directory),
        ("a file that may not be opened", &closed),
        ("a link to /dev/null", &to_dev_null),
        ("a dangling link", &dangling),
        ("a link to a file of the user", &linked),
        ("a FIFO", &fifo),
        ("a socket", &living_socket),
        ("ten megabytes", &|path, _| {
            write(path, vec![b'7'; 10_000_000]);
            nobody()
        }),
    ];
    for (what, plant) in table {
        let home = Home::new();
        // Killed, so its control socket is stale as well.
        let record = record_of_a_dead_gateway(&home);
        fs::remove_file(home.pid_file()).expect("the pid file is there");
        let mut unharmed = plant(&home.pid_file(), &record);
        stop(&home);
        unharmed(&format!("{what}, after a stop with nothing running"));
        let mut gateway = home.start();
        assert_eq!(gateway.ask(what), what);
        assert_eq!(holders(&home.pid_file()), [gateway.pid()], "{what}: the file is where the lock is");
        unharmed(&format!("{what}, after the start"));
        let stopped = stop(&home);
        assert!(stopped.status.success(), "{what}: {}", said(&stopped));
        assert!(gateway.wait().success(), "{what}");
        unharmed(&format!("{what}, after the stop"));
    }
}

#[test]
fn a_record_with_the_starters_own_pid_is_a_predecessors() {
    let home = Home::new();
    let record = naming(&record_of_a_dead_gateway(&home), 0, 0).to_string();
    // The shell becomes the gateway: its pid and its start ticks are in the record, truly.
    let script = r#"printf '%s' "$1" | sed "s/\"pid\":0/\"pid\":$$/
        s/\"start_ticks\":0/\"start_ticks\":$(cut -d ' ' -f 22 /proc/$$/stat)/" > "$2"; cp "$2" "$2.copy"; shift 2; exec "$@""#;
    let path = home.pid_file().display().to_string();
    let mut gateway = home.start_by(home.wrapped("sh", &["-c", script, "sh", &record, &path, BINARY], "run"));
    let planted = fs::read(home.runtime().join("gateway.pid.copy")).expect("the planted record");
    let planted: Value = serde_json::from_slice(&planted).expect("JSON");
    assert_eq!(planted["pid"], gateway.pid(), "the plant was right");
    assert_eq!(planted["start_ticks"], stat(gateway.pid()).expect("it lives").1, "the plant was right");
    assert_eq!(gateway.ask("me"), "me");
    assert!(stop(&home).status.success());
    assert!(gateway.wait().success());
}

/// The only tests in which a record is read at all: without a holder of the lock nobody looks at it.
#[test]
fn a_held_lock_and_a_false_record_get_nobody_signalled() {
    type Lie<'a> = (&'static str, &'a dyn Fn(&Value, &Bystander, &Bystander) -> Vec<u8>);
    let json = |record: Value| record.to_string().into_bytes();
    let of_holder = |record: &Value, holder: &Bystander| naming(record, holder.pid(), holder.start_ticks());
    let changed = |record: &Value, holder: &Bystander, change: fn(&mut Value)| {
        let mut record = of_holder(record, holder);
        change(&mut record);
        json(record)
    };
    let lies: [Lie; 10] = [
        ("a bystander", &|r, _, bystander| json(of_holder(r, bystander))),
        ("a dead process", &|r, _, _| json(r.clone())),
        ("the holder's number, recycled", &|r, holder, _| json(naming(r, holder.pid(), holder.start_ticks() - 1))),
        ("the holder in another boot", &|r, holder, _| changed(r, holder, other_boot)),
        ("the holder in another pid namespace", &|r, holder, _| changed(r, holder, other_namespace)),
        ("pid 1", &|r, _, _| json(naming(r, 1, stat(1).expect("pid 1 lives").1))),
        ("a bare number", &|_, holder, _| holder.pid().to_string().into_bytes()),
        ("Hermes' format", &|_, holder, _| hermes(holder.pid(), holder.start_ticks()).into_bytes()),
        ("garbage", &|_, _, _| b"\xff\x00".to_vec()),
        ("nothing", &|_, _, _| Vec::new()),
    ];
    let home = Home::new();
    let record = record_of_a_dead_gateway(&home);
    for (what, lie) in lies {
        let mut holder = Bystander::holding(&home.pid_file());
        let mut bystander = Bystander::new();
        write(&home.pid_file(), lie(&record, &holder, &bystander));
        assert_refused(home.command("run"), holder.pid());
        let mut replace = home.command("run");
        replace.arg("--replace");
        assert_refused(replace, holder.pid());
        let stopped = stop(&home);
        assert!(!stopped.status.success(), "{what}: {}", said(&stopped));
        holder.assert_unharmed(what);
        bystander.assert_unharmed(what);
    }
    // Against a test that proves nothing: the same with the truth, and the holder is ended.
    let mut holder = Bystander::holding(&home.pid_file());
    write(&home.pid_file(), json(of_holder(&record, &holder)));
    let stopped = stop(&home);
    assert!(stopped.status.success(), "{}", said(&stopped));
    assert!(!holder.child.wait().expect("a child").success(), "the true holder was signalled");
    let mut gateway = home.start();
    assert!(gateway.terminate().success());
}

#[test]
fn a_file_that_an_unprivileged_user_may_not_open_is_moved_aside() {
    const NOBODY: [&str; 5] = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let probe = [&["setpriv"][..], &NOBODY, &["true"]].concat();
    if !can_run("a pid file of mode 000 without root's powers", &probe) {
        return;
    }
    let home = Home::new();
    let binary = home.path().join("hermes-gateway");
    fs::copy(BINARY, &binary).expect("a copy of the binary");
    for directory in [home.runtime(), home.state()] {
        fs::create_dir(&directory).expect("a directory");
        chown(directory, Some(65534), Some(65534)).expect("it is given away");
    }
    fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).expect("the mode is set");
    write(&home.pid_file(), "precious");
    fs::set_permissions(home.pid_file(), PermissionsExt::from_mode(0o000)).expect("the mode is set");
    let binary = binary.display().to_string();
    let arguments = [&NOBODY[..], &[&binary]].concat();
    let mut gateway = home.start_by(home.wrapped("setpriv", &arguments, "run"));
    assert_eq!(gateway.ask("hello"), "hello");
    assert_answers(&home);
    let kept = aside(&home.pid_file());
    assert_eq!(fs::read(&kept).expect("it was kept"), b"precious");
    assert_eq!(kept.metadata().expect("metadata").permissions().mode() & 0o777, 0);
    let mut stop = home.wrapped("setpriv", &arguments, "stop");
    stop.args(super::NO_UNIT);
    let stopped = ended(stop);
    assert!(stopped.status.success(), "{}", said(&stopped));
    assert!(gateway.wait().success());
}
