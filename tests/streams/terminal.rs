//! `hermes-gateway send` and a gateway that goes away meanwhile.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use super::{TRICKY, restart, slow_home};
use crate::gateway::{Gateway, Home};
use crate::openai_agent::endpoint::{Endpoint, says, waits};

/// A `send` that has printed something.
struct Send {
    child: Child,
    said: Vec<u8>,
}

impl Send {
    fn begin(mut command: Command, text: &str) -> Self {
        let mut child =
            command.arg(text).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let mut said = vec![0; 1];
        child.stdout.as_mut().expect("piped").read_exact(&mut said).expect("the reply begins");
        Self { child, said }
    }

    /// All that it printed, and what it said about it.
    fn end(mut self) -> (String, String) {
        self.child.stdout.take().expect("piped").read_to_end(&mut self.said).expect("read");
        let ended = self.child.wait_with_output().expect("ends");
        let told = String::from_utf8(ended.stderr).expect("UTF-8");
        assert!(ended.status.success(), "{told}");
        (String::from_utf8(self.said).expect("UTF-8"), told)
    }
}

fn turns_that_run(gateway: &Gateway) -> u64 {
    gateway.status().expect("a status")["parts"]["turns"]["running"].as_u64().expect("a number")
}

#[test]
fn send_prints_the_rest_when_the_gateway_is_back() {
    let home = slow_home();
    let mut gateway = home.start();
    let text = TRICKY.repeat(3);
    for by in ["kill", "restart"] {
        let send = Send::begin(home.command("send"), &text);
        match by {
            "kill" => {
                gateway.kill();
                // Away for a while: nobody listens, not even the kernel.
                thread::sleep(std::time::Duration::from_millis(500));
                gateway = home.start();
            }
            _ => restart(&home),
        }
        let (printed, told) = send.end();
        assert_eq!((printed, told), (format!("{text}\n"), String::new()), "{by}");
    }
    assert!(gateway.terminate().success());
}

#[test]
fn send_says_so_when_the_agent_begins_again() {
    let (_go, gate) = std::sync::mpsc::channel();
    let endpoint = Endpoint::new(vec![waits("first try", "", gate, std::sync::mpsc::channel().0), says("second try")]);
    let home = Home::new();
    endpoint.configure(&home, "");
    let mut gateway = home.start();
    let mut send = Send::begin(home.command("send"), "hi");
    send.said.resize("first try".len(), 0);
    send.child.stdout.as_mut().expect("piped").read_exact(&mut send.said[1..]).expect("the first try");
    gateway.kill();
    let mut gateway = home.start();
    let (printed, told) = send.end();
    assert_eq!(printed, "first try\nsecond try\n");
    assert!(told.contains("begins again"), "{told}");
    assert!(gateway.terminate().success());
}

#[test]
fn who_ends_send_takes_back_what_they_asked() {
    let home = slow_home();
    let mut gateway = home.start();
    for (life, signal) in [("the first", Signal::INT), ("the first", Signal::KILL), ("the second", Signal::INT)] {
        let send = Send::begin(home.command("send"), &TRICKY.repeat(100));
        if life == "the second" {
            gateway.kill();
            gateway = home.start();
            gateway.await_fact("its successor runs it and send is back", |gateway| {
                let metrics = gateway.request("GET", "/metrics", "").body;
                let asked = metrics.lines().any(|line| line.contains("route=\"/turns\"") && line.ends_with(" 1"));
                asked && turns_that_run(gateway) == 1
            });
        }
        assert_eq!(turns_that_run(&gateway), 1, "{life}");
        let Send { mut child, .. } = send;
        kill_process(Pid::from_child(&child), signal).expect("signalled");
        child.wait().expect("ended");
        gateway.await_fact("the turn is cancelled", |gateway| {
            turns_that_run(gateway) == 0
                && gateway.request("GET", "/metrics", "").body.contains("outcome=\"cancelled\"")
        });
    }
    assert!(gateway.terminate().success());
}

#[test]
fn send_to_nobody_fails_at_once() {
    let home = Home::new();
    let began = std::time::Instant::now();
    let ended = home.output("send", &["hi"]);
    assert!(!ended.status.success() && began.elapsed() < std::time::Duration::from_secs(5));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("no gateway runs here"));
}
