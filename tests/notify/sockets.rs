//! Listening sockets from `systemd-socket-activate`, which passes them as systemd does: blocking, and by name.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::gateway::{BINARY, Gateway, Home};

const ACTIVATE: &str = "/usr/bin/systemd-socket-activate";

/// Whether it is installed; says so loudly if not, and in CI it must be.
fn installed() -> bool {
    let there = Path::new(ACTIVATE).exists();
    assert!(there || std::env::var_os("CI").is_none(), "{ACTIVATE} is missing in CI (Debian: systemd)");
    if !there {
        eprintln!("SKIPPED: no test of passed sockets: {ACTIVATE} is missing (Debian: systemd)");
    }
    there
}

/// An address where nobody listens.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address")
}

/// A gateway's command behind systemd-socket-activate with these arguments.
fn activated(home: &Home, arguments: &[&str]) -> Command {
    home.wrapped(ACTIVATE, &[arguments, &[BINARY]].concat(), "run")
}

/// Starts it. It waits for `knock`, which is repeated until it is heard.
fn start(home: &Home, arguments: &[&str], knock: impl Fn() -> bool + Send) -> Gateway {
    thread::scope(|scope| {
        let knocking = scope.spawn(move || {
            while !knock() {
                thread::yield_now()
            }
        });
        let gateway = home.start_by(activated(home, arguments));
        knocking.join().expect("no panic");
        gateway
    })
}

fn listeners(gateway: &Gateway) -> Vec<String> {
    let status = gateway.status().expect("a status");
    let listeners = status["identity"]["listeners"].as_array().expect("a list");
    listeners.iter().map(|listener| listener.as_str().expect("text").to_owned()).collect()
}

#[test]
fn passed_sockets_are_adopted_by_their_names_in_any_order() {
    if !installed() {
        return;
    }
    let home = Home::new();
    // Nothing is bound beside what is passed. (The harness adds a `listen =` where it sees none.)
    home.configure("# no listen = here\n");
    std::fs::create_dir(home.runtime()).expect("made");
    let (http, control) = (free_address(), home.runtime().join("control.sock"));
    let (address, path) = (http.to_string(), control.display().to_string());
    // The harness asks the control socket, and that starts the gateway.
    let arguments = ["-l", &path, "-l", &address, "--fdname=control:http"];
    let mut gateway = home.start_by(activated(&home, &arguments));
    assert_eq!(listeners(&gateway), [address.clone(), format!("unix:{path}")]);
    // A blocking accept would hold up a worker; this many at once would show it.
    let _idle: Vec<_> = (0..8).map(|_| TcpStream::connect(http).expect("connects")).collect();
    thread::scope(|scope| {
        for n in 0..8 {
            let gateway = &gateway;
            scope.spawn(move || assert_eq!(gateway.ask(&format!("{n}")), format!("{n}")));
        }
    });
    assert!(home.output("status", &[]).status.success());
    assert!(gateway.terminate().success());
    assert!(control.exists(), "what was passed is never unlinked");
}

#[test]
fn one_socket_without_a_known_name_is_told_and_the_others_serve() {
    if !installed() {
        return;
    }
    let home = Home::new();
    home.configure("# no listen = here\n");
    let (http, odd) = (free_address(), free_address());
    let (address, other) = (http.to_string(), odd.to_string());
    let arguments = ["-l", &address, "-l", &other, "--fdname=http:odd"];
    let gateway = start(&home, &arguments, || TcpStream::connect(http).is_ok());
    assert_eq!(gateway.address(), http);
    assert_eq!(gateway.ask("hello"), "hello");
    let log = gateway.log();
    let told = log.lines().find(|line| line.contains("a passed descriptor is not ours")).expect("an error");
    assert!(told.contains("ERROR") && told.contains("descriptor 4 'odd'"), "{told}");
    assert!(TcpStream::connect(odd).is_err(), "what is not ours is closed");
}

#[test]
fn a_single_socket_needs_no_name() {
    if !installed() {
        return;
    }
    let home = Home::new();
    home.configure("# no listen = here\n");
    let http = free_address();
    let gateway = start(&home, &["-l", &http.to_string()], || TcpStream::connect(http).is_ok());
    assert_eq!(gateway.address(), http);
    assert_eq!(gateway.ask("hello"), "hello");
}

#[test]
fn sockets_of_the_wrong_kind_are_refused_and_ours_are_bound() {
    if !installed() {
        return;
    }
    let knock_udp = |address: SocketAddr| {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        // A refusal of the first packet is told with the second: then nobody listens there yet.
        socket.connect(address).and_then(|()| socket.send(b"x").and(socket.send(b"x"))).is_ok()
    };
    let knock_tcp = |address: SocketAddr| TcpStream::connect(address).is_ok();
    type Case<'a> = (&'a [&'a str], fn(SocketAddr) -> bool, &'a str);
    let cases: [Case; 2] = [
        (&["--datagram", "--fdname=http"], knock_udp, "descriptor 3 'http'"),
        (&["--fdname=control"], knock_tcp, "must be a Unix socket"),
    ];
    for (options, knock, told) in cases {
        let home = Home::new();
        let passed = free_address();
        let address = passed.to_string();
        let gateway = start(&home, &[&["-l", &address], options].concat(), || knock(passed));
        assert_ne!(gateway.address(), passed);
        assert_eq!(gateway.ask("hello"), "hello");
        let log = gateway.log();
        let error = log.lines().find(|line| line.contains("a passed descriptor is not ours")).expect("an error");
        assert!(error.contains("ERROR") && error.contains(told), "{error}");
    }
}
