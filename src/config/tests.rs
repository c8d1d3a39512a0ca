//! Configurations as people write them.

use super::*;

fn directories(dir: &tempfile::TempDir) -> Directories {
    Directories {
        config_file: dir.path().join("gateway.toml"),
        config_named: false,
        config_drop_ins: dir.path().join("gateway.d"),
        state: dir.path().join("state"),
        runtime: dir.path().join("run"),
    }
}

fn load_text(text: &str) -> Result<Config, Vec<String>> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("gateway.toml"), text).expect("written");
    let strip = |problems: Problems| {
        let prefix = format!("{}/", dir.path().display());
        problems.lines().iter().map(|line| line.replace(&prefix, "")).collect()
    };
    load(&directories(&dir)).map_err(strip)
}

fn defaults() -> Config {
    load_text("").expect("an empty file is a configuration")
}

#[test]
fn without_a_file_the_embedded_agent_answers() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = load(&directories(&dir)).expect("defaults");
    assert_eq!((config.default_agent.as_str(), config.agents.len(), &config.listen), ("echo", 1, &None));
    let named = Directories { config_named: true, ..directories(&dir) };
    let problems = load(&named).expect_err("a named file must be there").to_string();
    assert!(problems.contains("gateway.toml: cannot be read"), "{problems}");
}

#[test]
fn the_default_file_is_a_configuration_and_changes_nothing() {
    assert_eq!(load_text(DEFAULT_FILE).expect("valid").facts(), defaults().facts());
}

#[test]
fn the_default_file_documents_every_key_with_its_default() {
    let is_section =
        |line: &str| ["agents", "platforms", "webhooks"].iter().any(|s| line.starts_with(&format!("# [{s}.")));
    let is_setting = |line: &str| is_section(line) || line.starts_with("# ") && line.contains(" = ");
    let uncommented: String = DEFAULT_FILE
        .lines()
        .map(|line| if is_setting(line) { line.trim_start_matches("# ") } else { line })
        // Alternatives to each other, and examples.
        .filter(|line| !["key_file", "header", "timestamp_header"].iter().any(|key| line.starts_with(key)))
        .map(|line| format!("{line}\n"))
        .collect();
    let config = load_text(&uncommented).expect("every documented key is valid");
    let (given, default) = (config.facts(), defaults().facts());
    for (key, value) in &default {
        match key.as_str() {
            "http.listen" => assert_eq!(given[key], "127.0.0.1:8642"),
            "http.key" => assert_eq!(given[key], "credential 'api-key'"),
            _ => assert_eq!(&given[key], value, "{key}"),
        }
        let name = key.rsplit('.').next().expect("a name");
        assert!(DEFAULT_FILE.contains(name), "{key} is documented");
    }
    assert!(given.contains_key("agents.gpt") && given.contains_key("platforms.ops"));
    assert!(given.contains_key("webhooks.issues"));
}

#[test]
fn all_problems_are_told_at_once_with_place_key_and_expectation() {
    let text = r#"
        [http]
        listen = "127.0.0.1:8642"
        max_bdy = "1MiB"
        header_timeout = 10
        [turns]
        max_running = 0
        [agents]
        default = "nobody"
        [agents.gpt]
        kind = "openai"
        base_url = "ftp://x"
        key_file = "relative"
        [agents.odd]
        kind = "odd"
        [agents.none]
        [logs]
        level = "loud"
    "#;
    let expected = [
        "gateway.toml:3:18: http.listen: expected a list of addresses like \"127.0.0.1:8642\", \"[::1]:8642\" or \
         \"unix:/run/me/http.sock\", found \"127.0.0.1:8642\"",
        "gateway.toml:5:26: http.header_timeout: expected a duration from \"1s\" to \"10m\", like \"30s\", found 10",
        "gateway.toml:4:19: http.max_bdy: there is no such key; did you mean 'max_body'?",
        "gateway.toml:7:23: turns.max_running: expected a whole number from 1 to 10000, found 0",
        "gateway.toml:10:9: agents.gpt.model: is needed here and missing",
        "gateway.toml:12:20: agents.gpt.base_url: expected an http or https URL without password and query, found \
         \"ftp://x\"",
        "gateway.toml:13:20: agents.gpt.key_file: expected an absolute path, found \"relative\"",
        "gateway.toml:16:9: agents.none.kind: is needed here and missing",
        "gateway.toml:15:16: agents.odd.kind: expected \"echo\", \"openai\", \"command\" or \"acp\", found \"odd\"",
        "gateway.toml:9:19: agents.default: there is no agent 'nobody'; there is: echo, gpt",
        "gateway.toml:17:9: logs: there is no such key; did you mean 'log'?",
    ];
    let mut found = load_text(text).expect_err("problems");
    let mut expected: Vec<_> = expected.iter().map(|line| (*line).to_owned()).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn broken_toml_says_where_and_bad_bytes_are_no_text() {
    let problems = load_text("[http]\nmax_body = \n[turns\n").expect_err("problems");
    assert!(problems.len() >= 2 && problems.iter().all(|line| line.starts_with("gateway.toml:")), "{problems:?}");
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("gateway.toml"), b"\xff\xfe").expect("written");
    let problems = load(&directories(&dir)).expect_err("problems").to_string();
    assert!(problems.contains("not UTF-8"), "{problems}");
}

#[test]
fn drop_ins_replace_key_by_key_in_the_order_of_their_names() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let places = directories(&dir);
    std::fs::create_dir(&places.config_drop_ins).expect("made");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    write("gateway.toml", "[turns]\nmax_running = 1\nmax_queued = 1\n");
    write("gateway.d/20-b.toml", "[turns]\nmax_running = 3\n");
    write("gateway.d/10-a.toml", "[turns]\nmax_running = 2\ntimeout = \"2m\"\n");
    write("gateway.d/notes.txt", "not toml");
    let turns = load(&places).expect("valid").turns;
    assert_eq!((turns.max_running, turns.max_queued, turns.timeout), (3, 1, Duration::from_secs(120)));
    write("gateway.d/30-c.toml", "[turns]\nmax_runing = 4\n");
    let problems = load(&places).expect_err("a problem").to_string();
    assert!(problems.contains("30-c.toml:2:14: turns.max_runing"), "{problems}");
}

#[test]
fn how_long_things_are_kept_has_bounds_in_words() {
    let kept = |text: &str| load_text(&format!("[retention]\n{text}\n")).map(|config| config.retention);
    let config = kept("keep = \"30d\"\nmax_size = \"2GiB\"").expect("valid");
    assert_eq!((config.keep.as_secs(), config.max_size), (30 * 86_400, Some(2 << 30)));
    assert_eq!(kept("max_size = \"0\"").expect("valid").max_size, None);
    for (wrong, told) in [
        ("keep = \"59m\"", "expected a duration from \"1h\" to \"36500d\", like \"30s\", found \"59m\""),
        ("max_size = \"1KiB\"", "at least \"1MiB\", like \"2GiB\", found \"1KiB\""),
        ("max_size = 0", "found 0"),
    ] {
        let problems = kept(wrong).expect_err("a problem");
        assert!(problems.len() == 1 && problems[0].contains(told), "{problems:?}");
    }
}

#[test]
fn changes_are_sorted_into_applicable_and_waiting() {
    let new = load_text(
        "[http]\nlisten = [\"[::1]:1\"]\nmax_body = \"1MiB\"\nmax_connections = 2\n[agents.b]\nkind = \"echo\"\n\
         [log]\nlevel = \"debug\"\n",
    )
    .expect("valid");
    let (applicable, waiting) = defaults().changes(&new);
    assert_eq!(applicable, ["agents.b", "http.max_body", "log.level"]);
    assert_eq!(waiting, ["http.listen", "http.max_connections"]);
    assert_eq!(new.changes(&new), (vec![], vec![]));
}

#[test]
fn what_the_default_file_shows_of_programs_are_their_defaults() {
    let minimal = "[agents.script]\nkind = \"command\"\ncommand = [\"/usr/local/bin/answer\", \"-v\"]\n\
        [agents.codex]\nkind = \"acp\"\ncommand = [\"/usr/local/bin/codex-acp\"]\n";
    let shown: String = DEFAULT_FILE
        .lines()
        .skip_while(|line| !line.starts_with("# [agents.script]"))
        .take_while(|line| *line != "[platforms]")
        .map(|line| line.trim_start_matches("# "))
        // Without these there is something else than a value.
        .filter(|line| !line.starts_with("directory") && !line.starts_with("cpu"))
        .map(|line| format!("{line}\n"))
        .collect();
    let agents = |text: &str| load_text(text).expect("valid").agents;
    assert_eq!(agents(&shown), agents(minimal));
}

#[test]
fn mistakes_in_programs_are_told_with_their_place() {
    let text = r#"
        [agents."a b/c"]
        kind = "acp"
        [agents."x/y"]
        kind = "acp"
        command = []
        cpu = "0%"
        permission = "ask"
        [agents.d]
        kind = "command"
        command = ["p", "{message}"]
        environment = { HERMES_TURN = "1", "a=b" = "", PORT = 80 }
        memory = "1B"
        [agents.e]
        kind = "command"
        command = ["p"]
        input = "argument"
        idle = "1m"
    "#;
    let expected = [
        "gateway.toml:11:19: agents.d.command: has {message}, which is replaced with input = \"argument\" only",
        "gateway.toml:12:39: agents.d.environment.HERMES_TURN: is set by the gateway itself",
        "gateway.toml:12:52: agents.d.environment.a=b: is not a name that a variable can have",
        "gateway.toml:12:63: agents.d.environment.PORT: expected a string, found 80",
        "gateway.toml:13:18: agents.d.memory: expected a size from 1048576 to 1099511627776 bytes, like \"10MiB\", found \
         \"1B\"",
        "gateway.toml:16:19: agents.e.command: has no {message} among its arguments, where the message goes",
        "gateway.toml:18:16: agents.e.idle: there is no such key",
        "gateway.toml:2:9: agents.a b/c.command: is needed here and missing",
        "gateway.toml:2:9: agents.a b/c.directory: is needed here: the agent's name is no name of a directory",
        "gateway.toml:2:9: agents.a b/c: is not a name that an agent can have",
        "gateway.toml:4:9: agents.x/y.directory: is needed here: the agent's name is no name of a directory",
        "gateway.toml:6:19: agents.x/y.command: expected a list of a program and its arguments, like [\"prog\", \"-x\"], \
         found a list",
        "gateway.toml:7:15: agents.x/y.cpu: expected percent of one processor, like \"150%\", found \"0%\"",
        "gateway.toml:8:22: agents.x/y.permission: expected \"deny\" or \"allow_once\", found \"ask\"",
    ];
    let mut found = load_text(text).expect_err("problems");
    found.sort();
    assert_eq!(found, expected);
}
