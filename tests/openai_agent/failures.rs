//! An endpoint that refuses, breaks off or falls silent.

use super::*;
use endpoint::fails;

/// The answer is a 502 whose message contains `what`.
fn failed(answer: &Answer, what: &str) {
    let error = &answer.json()["error"];
    assert_eq!((answer.status, &error["code"]), (502, &json!("agent_failed")), "{}", answer.body);
    assert!(error["message"].as_str().is_some_and(|text| text.contains(what)), "{what}: {}", answer.body);
}

fn hello() -> Value {
    json!({ "messages": [user("hi")] })
}

#[test]
fn a_busy_endpoint_is_asked_again_when_it_says_and_the_client_never_knows() {
    for (status, headers, least) in [
        ("429 Too Many Requests", "retry-after: 1\r\n", Duration::from_secs(1)),
        ("500 Internal Server Error", "", Duration::ZERO),
        ("503 Service Unavailable", "retry-after: 0.1\r\n", Duration::from_millis(100)),
    ] {
        let endpoint = Endpoint::new(vec![fails(status, headers, "busy"), says("now")]);
        let home = Home::new();
        endpoint.configure(&home, "");
        let gateway = home.start();
        let began = Instant::now();
        assert_eq!(gateway.ask("hi"), "now");
        assert!(began.elapsed() >= least, "{status}: asked again after {:?}", began.elapsed());
        assert_eq!(
            (endpoint.asked().messages(), endpoint.asked().messages()),
            (said(&[("user", "hi")]), said(&[("user", "hi")]))
        );
        assert!(gateway.log().contains("asked again"), "{status}");
    }
}

#[test]
fn a_refusal_is_told_at_once_and_never_with_the_key() {
    const KEY: &str = "sk-0123456789abcdefghijklmnopqrstuvwxyz";
    let (quoted, late) = (format!("wrong key {KEY}"), format!("{}{KEY}", "x".repeat(280)));
    let script = vec![
        fails("401 Unauthorized", "", &quoted),
        fails("403 Forbidden", "", &quoted),
        fails("400 Bad Request", "", &quoted),
        fails("404 Not Found", "", &quoted),
        fails("301 Moved", "location: http://127.0.0.1:1/\r\n", &quoted),
        // Where the message is cut, the key is not to stick out.
        fails("401 Unauthorized", "", &late),
    ];
    let count = script.len();
    let endpoint = Endpoint::new(script);
    let home = Home::new();
    let file = home.path().join("model-key");
    std::fs::write(&file, KEY).expect("written");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("chmod");
    endpoint.configure(&home, &format!("key_file = \"{}\"", file.display()));
    let gateway = home.start();
    for _ in 0..count {
        let answer = chat(&gateway, &hello());
        failed(&answer, "answered");
        endpoint.asked();
        assert!(endpoint.was_asked_no_more(), "{}", answer.body);
        assert!(!answer.body.contains(&KEY[..12]), "{}", answer.body);
    }
    assert!(!gateway.log().contains(&KEY[..12]), "{}", gateway.log());
    std::fs::remove_file(&file).expect("removed");
    failed(&chat(&gateway, &hello()), "no key");
}

#[test]
fn an_error_inside_of_a_stream_does_not_show_the_key_either() {
    const KEY: &str = "sk-0123456789abcdefghijklmnopqrstuvwxyz";
    let breaks = |event: String| -> endpoint::Reply {
        Box::new(move |stream| {
            begin(stream);
            write(stream, &(text("so far") + &event));
        })
    };
    let error = json!({ "error": { "message": format!("key {KEY} was revoked") } });
    let script = vec![breaks(format!("data: {error}\n\n")), breaks(format!("data: \"{KEY}\"\n\n"))];
    let endpoint = Endpoint::new(script);
    let home = Home::new();
    let file = home.path().join("model-key");
    std::fs::write(&file, KEY).expect("written");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("chmod");
    endpoint.configure(&home, &format!("key_file = \"{}\"", file.display()));
    let gateway = home.start();
    for _ in 0..2 {
        let answer = chat(&gateway, &hello());
        failed(&answer, "the model's endpoint");
        assert!(!answer.body.contains(KEY), "{}", answer.body);
    }
    assert!(!gateway.log().contains(KEY), "{}", gateway.log());
}

#[test]
fn an_endpoint_that_is_not_there_is_asked_a_few_times_and_then_told() {
    let home = Home::new();
    // Nobody listens where somebody just did.
    Endpoint::new(Vec::new()).configure(&home, "");
    let gateway = home.start();
    let began = Instant::now();
    failed(&chat(&gateway, &hello()), "cannot reach");
    assert_eq!(gateway.log().matches("asked again").count(), 3);
    assert!(began.elapsed() < Duration::from_secs(8));
}

#[test]
fn what_was_said_is_not_said_again_when_the_stream_breaks() {
    let chunked = |stream: &mut TcpStream| {
        write(stream, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
        let event = text("so far");
        write(stream, &format!("{:x}\r\n{event}\r\n", event.len()));
    };
    let closes = |stream: &mut TcpStream| {
        begin(stream);
        write(stream, &text("so far"));
    };
    let script: Vec<endpoint::Reply> = vec![Box::new(chunked), Box::new(closes), Box::new(chunked), Box::new(chunked)];
    let endpoint = Endpoint::new(script);
    let home = Home::new();
    endpoint.configure(&home, "");
    let gateway = home.start();
    for _ in 0..2 {
        failed(&chat(&gateway, &hello()), "broke off");
        endpoint.asked();
        assert!(endpoint.was_asked_no_more());
    }
    let streaming = json!({ "messages": [user("hi")], "stream": true });
    let events = Reader::open(&gateway, CHAT, "", &streaming).rest();
    assert_eq!(joined(&events, "content"), "so far");
    assert_eq!(events.last().expect("events")["error"]["code"], "agent_failed", "{events:?}");
    let events = Reader::open(&gateway, "/v1/responses", "", &json!({ "input": "hi", "stream": true })).rest();
    let last = events.last().expect("events");
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
    assert_eq!(last["response"]["error"]["code"], "server_error", "{last}");
    // What was never finished is no part of the conversation, and is told as it is.
    let path = format!("/v1/responses/{}", last["response"]["id"].as_str().expect("an id"));
    assert_eq!(gateway.request("GET", &path, "").json()["status"], "failed");
}

#[test]
fn an_endpoint_that_falls_silent_is_left() {
    let silent_after = |said: &'static str| -> endpoint::Reply {
        Box::new(move |stream| {
            write(stream, said);
            let _until_it_leaves = std::io::Read::read(stream, &mut [0]);
        })
    };
    let begun = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {\"choices\": [{\"delta\": {\"content\": \"x\"}}]}\n\n";
    let endpoint = Endpoint::new(vec![silent_after(""), says("awake"), silent_after(begun)]);
    let home = Home::new();
    endpoint.configure(&home, "idle_timeout = \"1s\"");
    let gateway = home.start();
    assert_eq!(gateway.ask("hi"), "awake");
    failed(&chat(&gateway, &hello()), "fell silent");
}

#[test]
fn a_stream_that_says_it_is_done_is_done() {
    let unfinished: endpoint::Reply = Box::new(|stream| {
        begin(stream);
        write(stream, &(text("all of it") + "data: [DONE]\n\n"));
    });
    let endpoint = Endpoint::new(vec![unfinished]);
    let home = Home::new();
    endpoint.configure(&home, "");
    assert_eq!(home.start().ask("hi"), "all of it");
}
