//! Replies that are another one the second time, and turns that are somebody else's.

use std::sync::mpsc;

use super::{Client, Way};
use crate::gateway::Home;
use crate::openai_agent::endpoint::{Endpoint, Reply, begin, end, says, text, waits, write};

/// Says it in these pieces.
fn pieces(said: &[&str]) -> Reply {
    let events: String = said.iter().map(|piece| text(piece)).collect();
    Box::new(move |stream| {
        begin(stream);
        write(stream, &(events + &end()));
    })
}

/// Says this much and never goes on.
fn stuck(said: &str) -> Reply {
    let (never, gate) = mpsc::channel();
    let reply = waits(said, "", gate, mpsc::channel().0);
    Box::new(move |stream| {
        reply(stream);
        drop(never);
    })
}

/// A client that has read `has` when the gateway is killed, and what it has when the second attempt is through.
fn after_a_kill(way: Way, has: &str, second: Reply) -> Client {
    let endpoint = Endpoint::new(vec![stuck(has), second]);
    let home = Home::new();
    endpoint.configure(&home, "");
    let mut gateway = home.start();
    let mut client = Client::new(way, "s", "hi");
    let mut events = client.open(&gateway);
    while client.text != has {
        assert!(client.take(&mut events, 1), "{client:?}");
    }
    gateway.kill();
    let mut gateway = home.start();
    client.finish(&mut client.open(&gateway));
    assert!(client.is_complete, "{client:?}\n{}", gateway.log());
    assert!(gateway.terminate().success());
    client
}

#[test]
fn another_reply_is_told_from_its_beginning() {
    for way in [Way::Chat, Way::ChatByKey, Way::ResponseByKey, Way::ResponseById, Way::ResponseByNumber] {
        for second in ["Goodbye, all of you", "Hello", "Hello wörld", ""] {
            let client = after_a_kill(way, "Hello wor", says(second));
            // The client voids what it had when a reply begins: so it has never a mixture.
            assert_eq!((client.text.as_str(), client.beginnings), (second, 2), "{way:?}");
        }
    }
}

#[test]
fn the_same_reply_in_other_pieces_goes_on() {
    for way in [Way::Chat, Way::ChatByKey, Way::ResponseByKey, Way::ResponseById] {
        let client = after_a_kill(way, "Grüße an wor", pieces(&["Gr", "üße an world", " und", " alle"]));
        assert_eq!((client.text.as_str(), client.beginnings), ("Grüße an world und alle", 1), "{way:?}");
    }
    // A number alone cannot say that it is the same.
    let client = after_a_kill(Way::ResponseByNumber, "Hello wor", pieces(&["Hello", " world"]));
    assert_eq!((client.text.as_str(), client.beginnings), ("Hello world", 2));
}

#[test]
fn nobody_gets_the_reply_of_another_session_or_to_another_question() {
    let endpoint = Endpoint::new(vec![says("for a, and long"), says("for b"), says("for another"), says("for chat")]);
    let home = Home::new();
    endpoint.configure(&home, "");
    let gateway = home.start();
    let mut first = Client::new(Way::Chat, "a", "hi");
    first.finish(&mut first.open(&gateway));
    assert_eq!(first.text, "for a, and long");
    // The id is known and the turn has ended; each of these asks something else.
    let mut turns = first.turns.clone();
    for (way, session, asked, reply) in [
        (Way::Chat, "b", "hi", "for b"),
        (Way::Chat, "a", "ho", "for another"),
        (Way::ResponseById, "a", "hi", "for chat"),
    ] {
        let mut other = Client::new(way, session, asked);
        other.last_id.clone_from(&first.last_id);
        other.finish(&mut other.open(&gateway));
        assert_eq!((other.text.as_str(), other.beginnings), (reply, 1), "{session} {asked}");
        turns.extend(other.turns);
    }
    turns.sort_unstable();
    turns.dedup();
    assert_eq!(turns.len(), 4, "each has a turn of its own");
    // Who asked it gets its end again, and nobody is asked.
    first.is_complete = false;
    first.finish(&mut first.open(&gateway));
    assert_eq!((first.text.as_str(), first.beginnings, first.turns.len()), ("for a, and long", 1, 1));
    (0..4).for_each(|_| drop(endpoint.asked()));
    assert!(endpoint.was_asked_no_more());
}

#[test]
fn a_foreign_id_begins_a_reply() {
    let home = super::slow_home();
    let gateway = home.start();
    let unknown = "00000000000070008000000000000000.4.12345678";
    for id in ["17", "x.y.z", unknown, &unknown.replace(".4.", ".9999999.")] {
        for way in [Way::Chat, Way::ChatByKey, Way::ResponseById] {
            let mut client = Client::new(way, &format!("{way:?}"), "hello there");
            client.last_id = Some(id.to_owned());
            client.finish(&mut client.open(&gateway));
            assert_eq!((client.text.as_str(), client.beginnings), ("hello there", 1), "{id} {way:?}");
        }
    }
}
