//! Reload and check: all or nothing, every problem at once, and whoever is being served notices nothing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::gateway::{Gateway, Home, PATIENCE, raw};

const CHAT: &str = "/v1/chat/completions";

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The status of a request to this model with a message of so many bytes.
fn asked(gateway: &Gateway, model: &str, bytes: usize) -> u16 {
    let body = json!({ "model": model, "messages": [{ "role": "user", "content": "x".repeat(bytes) }] });
    gateway.request("POST", CHAT, &body.to_string()).status
}

fn last_reload(gateway: &Gateway) -> String {
    gateway.status().and_then(|status| Some(status["last_reload"].as_str()?.to_owned())).unwrap_or_default()
}

fn reload(home: &Home) -> Output {
    home.output("reload", &[])
}

fn write_key(path: &Path, key: &str) {
    std::fs::write(path, key).expect("written");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).expect("chmod");
}

#[test]
fn what_can_be_applied_is_applied_and_the_rest_is_named() {
    let home = Home::new();
    let mut gateway = home.start();
    let (pid, address) = (gateway.pid(), gateway.address());
    assert_eq!((asked(&gateway, "second", 1), asked(&gateway, "echo", 5000)), (404, 200));
    assert!(!gateway.log().contains("DEBUG"));
    let changed = "[http]\nlisten = [\"127.0.0.1:1\"]\nmax_body = \"2KiB\"\nmax_connections = 7\n\
                   [agents]\ndefault = \"second\"\n[agents.second]\nkind = \"echo\"\n[log]\nlevel = \"debug\"\n";
    home.configure(changed);
    let output = reload(&home);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    assert_eq!(
        stdout(&output),
        "reloaded; changed: agents.default, agents.second, http.max_body, log.level\n\
         waiting for 'hermes-gateway restart': http.listen, http.max_connections\n"
    );
    assert_eq!((asked(&gateway, "second", 1), asked(&gateway, "echo", 5000)), (200, 413));
    let status = gateway.status().expect("a status");
    assert_eq!((&status["parts"]["agents"]["default"], &status["identity"]["pid"]), (&json!("second"), &json!(pid)));
    assert!(gateway.log().contains("DEBUG"), "debug records come at once");
    // What waits for a restart is named again until it comes, and nothing else is.
    assert_eq!(
        stdout(&reload(&home)),
        "reloaded; nothing changed\nwaiting for 'hermes-gateway restart': http.listen, http.max_connections\n"
    );
    // A signal does the same, and says so in the log and in the status.
    home.configure("");
    gateway.signal(Signal::HUP);
    gateway.await_fact("the old configuration is back", |gateway| last_reload(gateway).contains("agents.second"));
    assert_eq!((asked(&gateway, "second", 1), asked(&gateway, "echo", 5000)), (404, 200));
    assert!(gateway.log().contains("reloaded, changed: agents.default, agents.second, http.max_body, log.level"));
    assert_eq!(gateway.address(), address);
    assert_eq!(stdout(&reload(&home)), "reloaded; nothing changed\n");
}

#[test]
fn a_bad_file_is_refused_whole_and_the_old_one_serves() {
    let home = Home::new();
    home.configure("http.max_body = \"2KiB\"\n");
    let mut gateway = home.start();
    home.configure("[http]\nlisten = [\"127.0.0.1:0\"]\nmax_body = \"1MiB\"\nmax_bdy = 1\n[turns]\nmax_running = 0\n");
    let output = reload(&home);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(78), ""));
    let file = home.config_file();
    let problems = [
        format!("{}:4:11: http.max_bdy: there is no such key; did you mean 'max_body'?", file.display()),
        format!("{}:6:15: turns.max_running: expected a whole number from 1 to 10000, found 0", file.display()),
    ];
    for problem in &problems {
        assert!(stderr(&output).contains(problem), "{problem}\n{}", stderr(&output));
    }
    assert_eq!((asked(&gateway, "echo", 10), asked(&gateway, "echo", 3000)), (200, 413), "the old bounds hold");
    let status = home.output("status", &[]);
    assert!(stdout(&status).contains("reload refused"), "{}", stdout(&status));
    assert!(gateway.log().contains("reload refused") && gateway.log().contains("max_bdy"));
    // The same by a signal, with a file that is no TOML, no text, a directory, or gone.
    let make: [fn(&Path); 4] = [
        |path| std::fs::write(path, "[http\nmax_body").expect("written"),
        |path| std::fs::write(path, b"\xff\xfe").expect("written"),
        |path| std::fs::remove_file(path).and_then(|()| std::fs::create_dir(path)).expect("made"),
        |path| std::fs::remove_dir(path).expect("removed"),
    ];
    for (make, told) in make.into_iter().zip(["gateway.toml:1:", "not UTF-8", "cannot be read", "No such file"]) {
        make(&file);
        gateway.signal(Signal::HUP);
        gateway.await_fact(told, |gateway| last_reload(gateway).contains(told));
        assert_eq!((asked(&gateway, "echo", 10), asked(&gateway, "echo", 3000)), (200, 413), "{told}");
        assert_eq!(reload(&home).status.code(), Some(78), "{told}");
    }
    home.configure("");
    assert_eq!(stdout(&reload(&home)), "reloaded; changed: http.max_body\n");
    assert!(!stdout(&home.output("status", &[])).contains("refused"));
    assert!(gateway.terminate().success());
}

#[test]
fn a_rotated_key_replaces_the_old_one_and_a_bad_one_does_not() {
    let home = Home::new();
    let file = home.path().join("key");
    write_key(&file, "old-key\n");
    home.configure(&format!("http.key_file = \"{}\"\n", file.display()));
    let gateway = home.start();
    let opens = |key: &str| {
        let head =
            format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n");
        raw(gateway.address(), head.as_bytes()).status == 200
    };
    assert!(opens("old-key") && !opens("new-key"));
    write_key(&file, "new-key\n");
    assert!(opens("old-key"), "not before the reload");
    let output = reload(&home);
    assert_eq!(stdout(&output), "reloaded; changed: http.key\n");
    assert!(!opens("old-key") && opens("new-key"));
    type Spoil = fn(&Path);
    let spoil: [(Spoil, &str); 3] = [
        (|path| write_key(path, ""), "must hold one line"),
        (|path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o644)).expect("chmod"), "chmod 600"),
        (|path| std::fs::remove_file(path).expect("removed"), "cannot read"),
    ];
    for (spoil, told) in spoil {
        write_key(&file, "third-key\n");
        spoil(&file);
        let output = reload(&home);
        assert_eq!(output.status.code(), Some(78), "{told}");
        assert!(stderr(&output).contains(told), "{told}: {}", stderr(&output));
        assert!(opens("new-key") && !opens("third-key") && !opens(""), "{told}");
    }
    for key in ["old-key", "new-key", "third-key"] {
        assert!(!gateway.log().contains(key), "{}", gateway.log());
    }
}

#[test]
fn a_running_turn_keeps_its_agent_over_a_reload() {
    let home = Home::new();
    home.configure("[agents.slow]\nkind = \"echo\"\ndelay = \"100ms\"\n");
    let gateway = home.start();
    let words: String = (0..20).map(|n| format!("word{n} ")).collect();
    let body =
        json!({ "model": "slow", "stream": true, "messages": [{ "role": "user", "content": words }] }).to_string();
    let mut stream = TcpStream::connect(gateway.address()).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n", gateway.key());
    write!(stream, "{head}connection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()).expect("sent");
    let (mut said, mut buffer) = (String::new(), [0; 4096]);
    let mut read = |said: &mut String| {
        let length = stream.read(&mut buffer).expect("a piece");
        said.push_str(std::str::from_utf8(&buffer[..length]).expect("ASCII"));
        length > 0
    };
    while !said.contains("word1 ") {
        assert!(read(&mut said));
    }
    home.configure("");
    assert_eq!(stdout(&reload(&home)), "reloaded; changed: agents.slow\n");
    assert_eq!(asked(&gateway, "slow", 1), 404, "the agent is gone for new turns");
    assert!(!said.contains("word19 "), "the turn was running all the time");
    while read(&mut said) {}
    let pieces = said.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    let text: String = pieces.filter_map(|p| Some(p["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect();
    assert_eq!(text, words);
}

#[test]
fn check_names_every_problem_with_its_place_and_its_own_example_has_none() {
    let home = Home::new();
    let check = |arguments: &[&str]| home.output("check", arguments);
    let file = home.config_file().display().to_string();
    let output = check(&[]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), format!("{file}: ok\n")));
    let default = check(&["--default"]);
    assert_eq!(default.status.code(), Some(0));
    std::fs::write(home.config_file(), &default.stdout).expect("written");
    assert_eq!((check(&[]).status.code(), stdout(&check(&[]))), (Some(0), format!("{file}: ok\n")));
    std::fs::write(home.config_file(), "[log]\nlevel = \"loud\"\n\n[agents]\ndefault = \"nobody\"\n[nonsense]\n")
        .expect("written");
    let drop_ins = home.config_file().with_extension("d");
    std::fs::create_dir(&drop_ins).expect("made");
    std::fs::write(drop_ins.join("10-more.toml"), "[stop]\ngrace = 5\n").expect("written");
    let output = check(&[]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(78), ""));
    let mut told: Vec<_> = stderr(&output).lines().map(str::to_owned).collect();
    assert_eq!(told.remove(0), "hermes-gateway: the configuration is wrong:");
    told.sort();
    let expected = [
        format!(
            "{}/10-more.toml:2:9: stop.grace: expected a duration from \"0ms\" to \"1h\", like \"30s\", found 5",
            drop_ins.display()
        ),
        format!("{file}:2:9: log.level: expected error, warn, info, debug or trace, found \"loud\""),
        format!("{file}:5:11: agents.default: there is no agent 'nobody'; there is: echo"),
        format!("{file}:6:1: nonsense: there is no such key"),
    ];
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(told, expected);
    // A start says the same and ends with the same status, once.
    let started = home.output("run", &[]);
    assert_eq!(started.status.code(), Some(78));
    for problem in &expected {
        assert_eq!(stderr(&started).matches(problem).count(), 1, "{problem}\n{}", stderr(&started));
    }
    std::fs::remove_file(home.config_file()).expect("removed");
    std::fs::remove_dir_all(&drop_ins).expect("removed");
    let output = check(&[]);
    assert_eq!(output.status.code(), Some(78), "a file that was named must be there");
    assert!(stderr(&output).contains("cannot be read"), "{}", stderr(&output));
    assert_eq!(home.output("check", &["--defualt"]).status.code(), Some(2), "wrong usage");
    let nobody = reload(&home);
    assert!(!nobody.status.success() && stderr(&nobody).contains("no gateway runs here"), "{}", stderr(&nobody));
}
