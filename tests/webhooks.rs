//! Webhooks in, callbacks out: signed, filtered, each event once, each reply delivered, whatever happens in between.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::gateway::{Answer, Gateway, Home, raw};
use crate::receiver::Receiver;

/// What the webhooks of these tests are signed with.
pub const SECRET: &str = "a secret of the tests";

/// A home with one webhook `in` (generic HMAC) whose replies go to `receiver`; `hook` and `platform` are further keys.
pub fn home(receiver: &Receiver, agents: &str, hook: &str, platform: &str) -> Home {
    let home = Home::new();
    let secret = home.path().join("secret");
    fs::write(&secret, SECRET).expect("written");
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("chmod");
    home.configure(&format!(
        "{agents}\n[platforms.out]\nkind = \"callback\"\nurl = \"{}\"\n{platform}\n\
         [webhooks.in]\nscheme = \"hmac\"\nkey_file = \"{}\"\ndeliver = \"out\"\nprompt = \"{{text}}\"\n\
         per_minute = 1000000\n{hook}\n",
        receiver.url(),
        secret.display()
    ));
    home
}

/// The request of a signed event.
pub fn request(id: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length is a key");
    mac.update(body.as_bytes());
    let signature: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "POST /webhooks/in HTTP/1.1\r\nhost: x\r\nx-webhook-signature: {signature}\r\nx-webhook-id: {id}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Tells an event.
pub fn tell(gateway: &Gateway, id: &str, text: &str) -> Answer {
    raw(gateway.address(), &request(id, &json!({ "text": text })))
}

/// Waits for so many deliveries; the texts.
fn await_texts(gateway: &mut Gateway, receiver: &Receiver, count: usize) -> Vec<String> {
    gateway.await_fact("the callbacks come", |_| receiver.delivered().len() >= count);
    receiver.delivered().iter().map(|call| call.text().to_owned()).collect()
}

#[test]
fn an_event_is_answered_by_a_callback_once_however_often_it_is_told() {
    let receiver = Receiver::start();
    let home = home(&receiver, "", "", "");
    let mut gateway = home.start();
    let first = tell(&gateway, "1", "hello there");
    assert_eq!((first.status, first.json()["status"].as_str()), (202, Some("accepted")), "{}", first.body);
    let again = tell(&gateway, "1", "hello there");
    assert_eq!((again.status, again.json()["status"].as_str()), (200, Some("duplicate")), "{}", again.body);
    assert_eq!(first.json()["turn"], again.json()["turn"]);
    assert_eq!(await_texts(&mut gateway, &receiver, 1), ["hello there"]);
    gateway.kill();
    let mut gateway = home.start();
    let after = tell(&gateway, "1", "hello there");
    assert_eq!((after.status, &after.json()["turn"]), (200, &first.json()["turn"]), "known after a crash, too");
    tell(&gateway, "2", "next");
    assert_eq!(await_texts(&mut gateway, &receiver, 2), ["hello there", "next"]);
    let call = receiver.calls()[0].clone();
    assert_eq!(
        (call.body["session"].as_str(), call.body["chat"].as_str()),
        (Some("webhook:in:1"), Some("webhook:in:1"))
    );
    assert_eq!((&call.body["turn"], call.body["kind"].as_str()), (&first.json()["turn"], Some("reply")));
    assert_eq!(call.header("idempotency-key"), call.body["id"].as_str());
    assert!(gateway.terminate().success());
}

#[test]
fn who_does_not_sign_or_signs_wrongly_reaches_nobody() {
    let receiver = Receiver::start();
    let home = home(&receiver, "", "", "");
    let mut gateway = home.start();
    let good = String::from_utf8(request("1", &json!({ "text": "x" }))).expect("text");
    let cases = [
        (good.replace("x-webhook-signature", "x-other"), 401),
        (good.replace("\"x\"", "\"y\""), 401),
        (good.replace("POST /webhooks/in", "POST /webhooks/other"), 404),
        (good.replace("POST /webhooks/in", "GET /webhooks/in"), 405),
    ];
    for (request, status) in cases {
        let answer = raw(gateway.address(), request.as_bytes());
        assert_eq!(answer.status, status, "{}", answer.body);
        assert!(answer.json()["error"]["message"].is_string(), "{}", answer.body);
    }
    assert_eq!(tell(&gateway, "2", "the real one").status, 202);
    assert_eq!(await_texts(&mut gateway, &receiver, 1), ["the real one"]);
    assert!(gateway.terminate().success());
}

#[test]
fn a_platform_that_is_down_gets_everything_in_order_when_it_is_back() {
    let receiver = Receiver::start();
    let home = home(&receiver, "", "session = \"shared\"", "");
    let mut gateway = home.start();
    receiver.answer_next(&[(503, ""), (429, "retry-after: 1\r\n"), (500, "")]);
    for n in 0..5 {
        assert_eq!(tell(&gateway, &n.to_string(), &format!("m{n}")).status, 202);
    }
    assert_eq!(await_texts(&mut gateway, &receiver, 5), ["m0", "m1", "m2", "m3", "m4"]);
    let texts: Vec<_> = receiver.calls().iter().map(|call| call.text().to_owned()).collect();
    assert_eq!(texts, ["m0", "m0", "m0", "m0", "m1", "m2", "m3", "m4"]);
    let keys: Vec<_> =
        receiver.calls()[..4].iter().map(|call| call.header("idempotency-key").map(str::to_owned)).collect();
    assert!(keys.iter().all(|key| *key == keys[0] && key.is_some()), "a repetition has the same key: {keys:?}");
    assert!(gateway.terminate().success());
}

#[test]
fn long_replies_go_out_in_parts_that_fit() {
    let receiver = Receiver::start();
    let home = home(&receiver, "", "", "max_length = 100");
    let mut gateway = home.start();
    let text: String = (0..100).map(|n| format!("word{n} ")).collect();
    tell(&gateway, "long", &text);
    gateway.await_fact("the last part comes", |_| {
        receiver.calls().last().is_some_and(|call| call.body["part"] == call.body["parts"])
    });
    let calls = receiver.calls();
    assert!(calls.len() > 5 && calls.iter().all(|call| call.text().chars().count() <= 100));
    assert_eq!(calls.iter().map(|call| call.text()).collect::<String>(), text);
}

#[test]
fn a_stop_records_what_still_comes_and_the_successor_answers_it() {
    let receiver = Receiver::start();
    let home = home(&receiver, "[agents.echo]\nkind = \"echo\"\ndelay = \"300ms\"\n", "session = \"shared\"", "");
    let mut gateway = home.start();
    for n in 0..4 {
        assert_eq!(tell(&gateway, &n.to_string(), &format!("m{n}")).status, 202);
    }
    // The first runs, the others wait for it: it may end, they are the successor's.
    assert!(gateway.terminate().success());
    let before = receiver.calls().len();
    assert!(before <= 1, "{before}");
    let mut gateway = home.start();
    assert_eq!(await_texts(&mut gateway, &receiver, 4), ["m0", "m1", "m2", "m3"]);
    assert!(gateway.terminate().success());
}
