//! Webhooks and their replies on a disk that is full.

use std::collections::BTreeMap;

use super::mount::Mount;
use super::stopped_store;
use crate::gateway::{Answer, Gateway};
use crate::receiver::Receiver;
use crate::webhooks::{home, tell};

/// An echo that takes its time, so that what is going on at the moment of a fault is known.
const SLOW: &str = "[agents.echo]\nkind = \"echo\"\ndelay = \"400ms\"\n";

fn assert_refused(answer: &Answer) {
    let error = &answer.json()["error"];
    assert_eq!((answer.status, error["code"].as_str()), (507, Some("store_full")), "{}", answer.body);
    assert!(answer.header("retry-after").is_some(), "{}", answer.head);
    assert!(error["message"].as_str().is_some_and(|text| text.contains("disk")), "{}", answer.body);
}

fn readiness(gateway: &Gateway) -> u16 {
    gateway.request("GET", "/health/ready", "").status
}

/// Each text that the platform has, with the number of keys it came by.
fn keys(receiver: &Receiver) -> BTreeMap<String, usize> {
    let calls = receiver.delivered();
    calls.iter().fold(BTreeMap::new(), |mut keys, call| {
        *keys.entry(call.text().to_owned()).or_default() += 1;
        keys
    })
}

#[test]
fn what_was_taken_before_the_disk_was_full_is_answered_once_when_there_is_room() {
    let receiver = Receiver::start();
    let home = home(&receiver, SLOW, "session = \"shared\"", "");
    let Some(mount) = Mount::new(&home.state(), "16m") else { return };
    let mut gateway = home.start();
    let texts: Vec<String> = (0..3).map(|n| format!("m{n}-{}", "x".repeat(50_000))).collect();
    for (n, text) in texts.iter().enumerate() {
        assert_eq!(tell(&gateway, &format!("before-{n}"), text).status, 202);
    }
    // The first one's agent works, the others wait for it.
    mount.fill();
    let refused = tell(&gateway, "while", &"y".repeat(50_000));
    assert_refused(&refused);
    gateway.await_fact("the first end cannot be stored", |gateway| gateway.log().contains("cannot be stored yet"));
    // Longer than a turn waits whose client does: only who is owed something waits for ever.
    let began = std::time::Instant::now();
    gateway.await_fact("all tries of a client's turn are over", |_| began.elapsed().as_secs() >= 5);
    assert_eq!(readiness(&gateway), 503);
    assert!(keys(&receiver).is_empty(), "nothing that is not on disk is told");
    assert_refused(&tell(&gateway, "while", &"y".repeat(50_000)));
    let log = gateway.log();
    assert_eq!(log.matches("nothing can be stored").count(), 1, "told once: {log}");
    assert!(log.contains(&home.state().join("gateway.db").display().to_string()), "it says which: {log}");
    mount.empty();
    gateway.await_fact("it takes events again", |gateway| tell(gateway, "while", &"y".repeat(50_000)).status == 202);
    gateway.await_fact("all are answered", |_| keys(&receiver).len() == 4);
    assert_eq!(readiness(&gateway), 200);
    assert!(gateway.log().contains("takes data again"), "{}", gateway.log());
    assert!(
        keys(&receiver).iter().all(|(text, keys)| *keys == 1 && text.len() > 50_000 - 1),
        "{:.60?}",
        keys(&receiver)
    );
    let came: Vec<String> = receiver.delivered().iter().map(|call| call.text().to_owned()).take(3).collect();
    assert!(came == texts, "in their order, by the agent's words");
    assert!(gateway.terminate().success());
    let store = stopped_store(&home.state());
    let count = |sql: &str| store.query_row(sql, [], |row| row.get::<_, u32>(0)).expect("counted");
    assert_eq!(count("SELECT count(*) FROM inbox"), 4, "nothing half-written");
    assert_eq!(count("SELECT count(*) FROM turns WHERE state = 'completed'"), 4);
    assert_eq!(count("SELECT count(*) FROM outbox WHERE state = 'sent'"), 4);
}

#[test]
fn a_delivery_that_was_sent_while_the_disk_was_full_is_settled_later() {
    let receiver = Receiver::start();
    let home = home(&receiver, "", "session = \"shared\"", "");
    let Some(mount) = Mount::new(&home.state(), "16m") else { return };
    let mut gateway = home.start();
    let held = receiver.hold();
    assert_eq!(tell(&gateway, "1", "sent").status, 202);
    assert_eq!(tell(&gateway, "2", "behind it").status, 202);
    gateway.await_fact("it is on its way", |_| receiver.calls().len() == 1);
    gateway.await_fact("nothing else is", |gateway| gateway.log().matches("turn completed").count() == 2);
    mount.fill();
    drop(held);
    gateway.await_fact("its settlement fails", |gateway| gateway.log().contains("what came of a delivery cannot be"));
    assert_eq!(receiver.calls().len(), 1, "nothing overtakes it");
    mount.empty();
    gateway.await_fact("its chat goes on", |_| receiver.calls().len() == 2);
    assert!(gateway.terminate().success());
    assert_eq!(receiver.calls().iter().map(|call| call.text().to_owned()).collect::<Vec<_>>(), ["sent", "behind it"]);
    let store = stopped_store(&home.state());
    let sent = "SELECT count(*) FROM outbox WHERE state = 'sent' AND attempts = 0";
    assert_eq!(store.query_row(sent, [], |row| row.get::<_, u32>(0)).expect("counted"), 2);
}

#[test]
fn a_disk_that_is_read_only_at_a_start_is_told_and_heals_without_anything_lost() {
    let receiver = Receiver::start();
    let home = home(&receiver, SLOW, "session = \"shared\"", "");
    let Some(mount) = Mount::new(&home.state(), "16m") else { return };
    let mut gateway = home.start();
    assert_eq!(tell(&gateway, "1", "taken").status, 202);
    gateway.kill();
    mount.remount("ro");
    // One that served by a read-only store would not notice that its disk is well again.
    let output = super::end_of(home.command("run"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("gateway.db") && told.contains("read"), "{told}");
    mount.remount("rw");
    let mut gateway = home.start();
    gateway.await_fact("it is answered", |_| keys(&receiver) == BTreeMap::from([("taken".into(), 1)]));
    assert!(gateway.terminate().success());
}
