//! Libraries that are not ours, unmodified, against a running gateway: OpenAI's clients, and those that sign webhooks.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::gateway::{Gateway, Home};

/// The programs that the clients need, with what tells that they work.
const TOOLS: [(&str, &[&str]); 4] = [
    ("python3", &["-c", "import venv, ensurepip"]),
    ("node", &["--version"]),
    ("npm", &["--version"]),
    ("sh", &["-c", ":"]),
];

fn output_of(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|e| e.to_string())?;
    let text = || format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(output) } else { Err(format!("{}\n{}", output.status, text())) }
}

/// Installs the pinned clients, once for all runs; `None`, loudly, where that cannot work. In CI it must.
fn installed() -> Option<PathBuf> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("test-clients");
    let missing = TOOLS.into_iter().find_map(|(tool, arguments)| {
        let tried = output_of(Command::new(tool).args(arguments));
        tried.err().map(|e| format!("{tool} is missing or incomplete: {e}"))
    });
    if let Some(missing) = missing {
        assert!(std::env::var_os("CI").is_none(), "no client libraries in CI: {missing}");
        eprintln!("SKIPPED: no test with client libraries: {missing}");
        return None;
    }
    let setup = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/setup.sh");
    output_of(Command::new(setup).arg(&place)).unwrap_or_else(|e| panic!("{setup}: {e}"));
    Some(place)
}

/// Runs a client's script, which fails at its first failing case and counts those before it.
fn run(gateway: &Gateway, program: &Path, script: &Path) {
    run_with(gateway, program, script, &[format!("http://{}/v1", gateway.address()), gateway.key()]);
}

fn run_with(gateway: &Gateway, program: &Path, script: &Path, arguments: &[String]) {
    let told = output_of(Command::new(program).arg(script).args(arguments));
    let told = told.unwrap_or_else(|e| panic!("{}: {e}\n{}", script.display(), gateway.log()));
    let stdout = String::from_utf8_lossy(&told.stdout);
    let last = stdout.lines().last().unwrap_or_default();
    let passed = last.strip_suffix(" passed, 0 failed").and_then(|count| count.parse::<u32>().ok());
    assert!(passed.is_some_and(|count| count > 10), "{}: {stdout}", script.display());
}

#[test]
fn the_openai_client_for_python_finds_what_it_expects() {
    let Some(place) = installed() else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/openai_client.py");
    run(&Home::new().start(), &place.join("venv/bin/python"), Path::new(script));
}

#[test]
fn the_openai_client_for_node_finds_what_it_expects() {
    let Some(place) = installed() else { return };
    run(&Home::new().start(), Path::new("node"), &place.join("openai_client.mjs"));
}

/// Each sender's webhook, with the secret that its script has; replies of those that deliver go to `port`.
fn webhooks(port: u16) -> Home {
    let home = Home::new();
    let standard = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let hooks = [
        ("slack", "slack", "8f742231b10e8888abcd99yyyzzz85a5", "events = [\"app_mention\"]\nprompt = \"{event.text}\""),
        ("standard", "standard", standard, "prompt = \"{data.text}\""),
        ("svix", "standard", standard, "prompt = \"{data.text}\""),
        (
            "github",
            "github",
            "It's a Secret to Everybody",
            "events = [\"issues.opened\"]\nsession = \"{repository.full_name}\"",
        ),
        ("stripe", "stripe", "whsec_test_secret_of_the_tests", "prompt = \"{type}\""),
    ];
    let mut toml = format!("[platforms.out]\nkind = \"callback\"\nurl = \"http://127.0.0.1:{port}/\"\n");
    let mut keys = String::new();
    for (name, scheme, secret, more) in hooks {
        let file = home.path().join(name);
        fs::write(&file, secret).expect("written");
        fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("chmod");
        if name == "standard" {
            keys = format!("key_file = \"{}\"\n", file.display());
        }
        let deliver = if ["slack", "standard"].contains(&name) && port > 0 { "deliver = \"out\"" } else { "" };
        let file = file.display();
        toml.push_str(&format!("[webhooks.{name}]\nscheme = \"{scheme}\"\nkey_file = \"{file}\"\n{more}\n{deliver}\n"));
    }
    home.configure(&toml.replacen("kind =", &format!("{keys}kind ="), 1));
    home
}

#[test]
fn what_slack_and_standard_webhooks_sign_is_let_in_and_our_callbacks_are_found_rightly_signed() {
    let Some(place) = installed() else { return };
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let home = webhooks(free.port());
    let gateway = home.start();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/webhook_senders.py");
    let arguments = [format!("http://{}", gateway.address()), free.port().to_string()];
    run_with(&gateway, &place.join("venv/bin/python"), Path::new(script), &arguments);
}

#[test]
fn what_github_stripe_and_svix_sign_is_let_in() {
    let Some(place) = installed() else { return };
    let home = webhooks(0);
    let gateway = home.start();
    let arguments = [format!("http://{}", gateway.address())];
    run_with(&gateway, Path::new("node"), &place.join("webhook_senders.mjs"), &arguments);
}
