//! Connections: slow ones, busy ones, and one too many.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use serde_json::json;

use super::{CHAT, hello, refused};
use crate::gateway::{Home, PATIENCE, raw};

/// One answer with a content length, from a connection that stays open.
pub fn read_answer(stream: &mut TcpStream) -> String {
    try_read_answer(stream).expect("an answer")
}

/// The same, where it may not come.
pub fn try_read_answer(stream: &mut TcpStream) -> Result<String, String> {
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut text = String::new();
    let mut byte = [0];
    while !text.ends_with("\r\n\r\n") {
        stream.read_exact(&mut byte).map_err(|e| format!("{e} after {text:?}"))?;
        text.push(byte[0].into());
    }
    let length =
        text.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().expect("a number"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).map_err(|e| format!("{e} after {text:?}"))?;
    Ok(text + &String::from_utf8_lossy(&body))
}

#[test]
fn slow_clients_are_told_and_let_go() {
    let home = Home::new();
    home.configure("http.header_timeout = \"1s\"\nhttp.body_timeout = \"1s\"\n");
    let gateway = home.start();
    // `raw` reads until the gateway closes, so each answer here is also a connection that was let go.
    let answer = raw(gateway.address(), b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthoriz");
    refused(&gateway, "half a head", &answer, 408, "request_timeout");
    let key = gateway.key();
    let head =
        format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 100\r\n\r\n{{");
    refused(&gateway, "half a body", &raw(gateway.address(), head.as_bytes()), 408, "request_timeout");
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let home = Home::new();
    home.configure("http.header_timeout = \"1s\"\n");
    let gateway = home.start();
    let mut used = TcpStream::connect(gateway.address()).expect("connects");
    used.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
    assert!(read_answer(&mut used).contains("200 OK"));
    let mut fresh = TcpStream::connect(gateway.address()).expect("connects");
    fresh.set_read_timeout(Some(PATIENCE)).expect("set");
    // A client that sends its next request just now would take anything said here for its answer.
    for (what, stream) in [("used before", &mut used), ("never used", &mut fresh)] {
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("closed in order");
        assert_eq!(said, "", "{what}");
    }
}

#[test]
fn one_connection_can_carry_hundreds_of_requests() {
    let home = Home::new();
    let gateway = home.start();
    let key = gateway.key();
    let request = |n: usize, last: bool| {
        let body = json!({ "messages": [{ "role": "user", "content": format!("number {n}.") }] }).to_string();
        let close = if last { "connection: close\r\n" } else { "" };
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{close}");
        format!("{head}content-length: {}\r\n\r\n{body}", body.len())
    };
    // All at once, without waiting for an answer.
    let all: String = (0..200).map(|n| request(n, n == 199)).collect();
    let answer = raw(gateway.address(), all.as_bytes());
    let replies: Vec<_> =
        answer.body.match_indices("number ").map(|(at, _)| answer.body[at + 7..].split_once('.')).collect();
    let numbers: Vec<usize> = replies.into_iter().filter_map(|reply| reply?.0.parse().ok()).collect();
    assert_eq!(numbers, (0..200).collect::<Vec<_>>(), "an answer each, in the order of the requests");
    // And one after the other.
    let mut stream = TcpStream::connect(gateway.address()).expect("connects");
    for n in 0..200 {
        stream.write_all(request(n, false).as_bytes()).expect("sent");
        assert!(read_answer(&mut stream).contains(&format!("number {n}.")));
    }
    let old =
        format!("POST {CHAT} HTTP/1.0\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n", hello().len());
    let answer = raw(gateway.address(), &[old.as_bytes(), &hello()].concat());
    assert_eq!((answer.status, answer.header("transfer-encoding")), (200, None), "HTTP/1.0 knows no chunks");
}

#[test]
fn a_connection_too_many_waits_until_another_one_closes() {
    let home = Home::new();
    home.configure("http.max_connections = 2\n");
    let gateway = home.start();
    let connect = || {
        let mut stream = TcpStream::connect(gateway.address()).expect("connects");
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
        stream
    };
    let (mut first, mut second) = (connect(), connect());
    assert!(read_answer(&mut first).contains("200 OK") && read_answer(&mut second).contains("200 OK"));
    let mut third = connect();
    // The control socket has places of its own; its answer shows that the gateway had time to answer the third one.
    assert_eq!(gateway.status().expect("a status")["parts"]["http"]["connections"], 3);
    third.set_nonblocking(true).expect("set");
    assert_eq!(third.read(&mut [0]).expect_err("no answer yet").kind(), ErrorKind::WouldBlock);
    third.set_nonblocking(false).expect("set");
    drop(first);
    assert!(read_answer(&mut third).contains("200 OK"));
}
