//! A gateway under test: the real binary, stand-alone, in directories of its own, on a port of its own.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_hermes-gateway");
/// Longest time for anything to become true; a fact that takes longer is a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Directories of a gateway, gone with this value.
pub struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    /// An empty home, whose gateway listens on a free port.
    pub fn new() -> Self {
        let home = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        home.configure("");
        home
    }

    /// Writes the configuration; the listener is added.
    pub fn configure(&self, toml: &str) {
        let listen = if toml.contains("listen =") { "" } else { "http.listen = [\"127.0.0.1:0\"]\n" };
        fs::write(self.config_file(), format!("{listen}{toml}")).expect("the configuration is written");
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn config_file(&self) -> PathBuf {
        self.path().join("gateway.toml")
    }

    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    pub fn runtime(&self) -> PathBuf {
        self.path().join("run")
    }

    pub fn pid_file(&self) -> PathBuf {
        self.runtime().join("gateway.pid")
    }

    /// A command of the binary, for this home. Its environment is empty but for what every login has.
    pub fn command(&self, verb: &str) -> Command {
        self.wrapped(BINARY, &[], verb)
    }

    /// The same behind a wrapper, `unshare` say.
    pub fn wrapped(&self, program: &str, arguments: &[&str], verb: &str) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).arg(verb);
        command.env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").env("HOME", self.path());
        command.arg("--config").arg(self.config_file());
        command.arg("--state-dir").arg(self.state()).arg("--runtime-dir").arg(self.runtime());
        command
    }

    /// Runs a command to its end.
    pub fn output(&self, verb: &str, arguments: &[&str]) -> Output {
        self.command(verb).args(arguments).output().expect("the binary runs")
    }

    /// Starts the gateway and waits until it serves.
    pub fn start(&self) -> Gateway {
        self.start_by(self.command("run"))
    }

    /// Starts the gateway by this command and waits until it serves.
    pub fn start_by(&self, mut command: Command) -> Gateway {
        let log = self.path().join("log");
        let file = fs::File::options().append(true).create(true).open(&log).expect("a log file");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn().expect("the binary starts");
        let mut gateway =
            Gateway { child, log, state: self.state(), control: self.runtime().join("control.sock"), address: None };
        let status = gateway.await_status();
        gateway.address = status["identity"]["listeners"][0].as_str().and_then(|text| text.parse().ok());
        gateway
    }
}

/// A running gateway; killed and reaped with this value.
pub struct Gateway {
    pub child: Child,
    log: PathBuf,
    state: PathBuf,
    control: PathBuf,
    address: Option<SocketAddr>,
}

impl Gateway {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it serves HTTP.
    pub fn address(&self) -> SocketAddr {
        self.address.expect("the gateway listens on TCP")
    }

    /// The key that it made.
    pub fn key(&self) -> String {
        fs::read_to_string(self.state.join("api-key")).expect("the key").trim().to_owned()
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What the control socket says, once it says "running".
    fn await_status(&mut self) -> Value {
        let mut status = Value::Null;
        self.await_fact("the gateway serves", |gateway| {
            status = gateway.status().unwrap_or_default();
            status["state"] == "running" && status["identity"]["pid"].as_u64().is_some()
        });
        status
    }

    /// What the control socket says now.
    pub fn status(&self) -> Option<Value> {
        let mut stream = std::os::unix::net::UnixStream::connect(&self.control).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(b"GET /status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// Waits for a fact; fails with the log if it does not come true or the gateway dies.
    pub fn await_fact(&mut self, what: &str, mut fact: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !fact(self) {
            let ended = self.child.try_wait().expect("the child can be waited for");
            assert!(ended.is_none(), "{what}: the gateway ended with {ended:?}\n{}", self.log());
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the child can be signalled");
    }

    /// Waits for its end; its exit status.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "the gateway does not end\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks it to stop; its exit status.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    /// Kills it as the kernel would.
    pub fn kill(&mut self) {
        self.signal(rustix::process::Signal::KILL);
        self.wait();
    }

    /// A request with the key and a JSON body (none for GET); the status and the body.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Answer {
        let key = self.key();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\
             content-type: application/json\r\nconnection: close\r\n\r\n"
        );
        raw(self.address(), format!("{head}{body}").as_bytes())
    }

    /// Asks the default agent; its reply.
    pub fn ask(&self, text: &str) -> String {
        let body = serde_json::json!({ "messages": [{ "role": "user", "content": text }] }).to_string();
        let answer = self.request("POST", "/v1/chat/completions", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["choices"][0]["message"]["content"].as_str().expect("a reply").to_owned()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Ours alone: the child is reaped here, so its pid cannot be anybody else's.
        let _already_dead = self.child.kill();
        let _already_reaped = self.child.wait();
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// A header's value, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Sends bytes as they are and reads until the other side closes. Status 0: it closed without a word.
pub fn raw(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    // A refused request may be answered and closed before all of it is written.
    let _refused_early = stream.write_all(request);
    let mut bytes = Vec::new();
    let _reset = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") { dechunk(body) } else { body.to_owned() };
    Answer { status, head: head.to_lowercase(), body }
}

fn dechunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || rest.len() < size {
            break;
        }
        whole.push_str(&rest[..size]);
        body = rest.get(size + 2..).unwrap_or("");
    }
    whole
}

#[test]
fn the_embedded_defaults_answer() {
    let home = Home::new();
    let mut gateway = home.start();
    assert_eq!(gateway.ask("hello there"), "hello there");
    let sent = home.output("send", &["and from the terminal"]);
    assert_eq!(String::from_utf8_lossy(&sent.stdout), "and from the terminal\n");
    assert!(gateway.terminate().success());
}
