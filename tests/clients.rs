//! The official OpenAI clients, unmodified, against a running gateway.

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
        assert!(std::env::var_os("CI").is_none(), "no OpenAI clients in CI: {missing}");
        eprintln!("SKIPPED: no test with the OpenAI clients: {missing}");
        return None;
    }
    let setup = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/setup.sh");
    output_of(Command::new(setup).arg(&place)).unwrap_or_else(|e| panic!("{setup}: {e}"));
    Some(place)
}

/// Runs a client's script, which fails at its first failing case and counts those before it.
fn run(gateway: &Gateway, program: &Path, script: &Path) {
    let url = format!("http://{}/v1", gateway.address());
    let told = output_of(Command::new(program).arg(script).arg(url).arg(gateway.key()));
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
