//! Cut anywhere, by anything.

use rustix::process::Signal;

use super::{Client, TRICKY, Way, restart, slow_home};
use crate::gateway::{Gateway, Home};
use crate::pid_fallback::Random;

/// What cuts a stream.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Kill,
    Restart,
    /// The client lost its connection, and nothing else happened.
    Connection,
}

fn cut(home: &Home, gateway: &mut Gateway, by: Cut) {
    match by {
        Cut::Kill => {
            gateway.kill();
            *gateway = home.start();
        }
        Cut::Restart => restart(home),
        Cut::Connection => {}
    }
}

/// Cut at random places, at most twice by a kill: a third one would park the turn.
fn cut_anywhere(way: Way, rounds: usize) {
    let home = slow_home();
    let mut gateway = home.start();
    let mut random = Random::seeded(&format!("cuts of {way:?}"));
    let words = TRICKY.repeat(4);
    let (mut beginnings, mut cuts) = (0, 0);
    for round in 0..rounds {
        let by = [[Cut::Kill, Cut::Kill], [Cut::Kill, Cut::Connection], [Cut::Restart, Cut::Restart]][round % 3];
        let mut client = Client::new(way, &format!("{way:?}-{round}"), &words);
        for by in by {
            let mut events = client.open(&gateway);
            // Without a first event there is nothing to come back for by a response's id.
            let least = if matches!(way, Way::ResponseById | Way::ResponseByNumber) { 1 } else { 0 };
            if !client.take(&mut events, least + (random.next() % 40) as usize) {
                break;
            }
            cut(&home, &mut gateway, by);
            cuts += 1;
            // What was on its way is lost with the connection, or read before its end.
            if random.next().is_multiple_of(2) {
                client.finish(&mut events);
            }
        }
        let mut tries = 0;
        while !client.is_complete {
            let mut events = client.open(&gateway);
            client.finish(&mut events);
            tries += 1;
            assert!(tries < 3, "round {round}: {client:?}\n{}", gateway.log());
        }
        assert_eq!(client.text, words, "round {round} of {way:?}, cut by {by:?}");
        beginnings += client.beginnings;
    }
    eprintln!("{way:?}: {rounds} rounds, {cuts} cuts, {beginnings} beginnings");
    assert!(cuts >= rounds, "hardly anything was cut");
    gateway.signal(Signal::TERM);
    assert!(gateway.wait().success());
}

#[test]
fn a_chat_goes_on_where_it_was_cut() {
    cut_anywhere(Way::Chat, 12);
}

#[test]
fn a_chat_with_a_key_goes_on_where_it_was_cut() {
    cut_anywhere(Way::ChatByKey, 12);
}

#[test]
fn a_response_with_a_key_goes_on_where_it_was_cut() {
    cut_anywhere(Way::ResponseByKey, 12);
}

#[test]
fn a_response_is_read_on_by_the_id_of_an_event() {
    cut_anywhere(Way::ResponseById, 12);
}

#[test]
fn a_response_is_read_on_by_the_number_of_an_event() {
    cut_anywhere(Way::ResponseByNumber, 12);
}

#[test]
fn a_stream_that_may_end_is_not_cut_by_a_restart() {
    let home = Home::new();
    home.configure("[agents.echo]\nkind = \"echo\"\ndelay = \"5ms\"\n");
    let mut gateway = home.start();
    for way in [Way::Chat, Way::ResponseByKey] {
        let mut client = Client::new(way, &format!("{way:?}"), &TRICKY.repeat(5));
        let mut events = client.open(&gateway);
        assert!(client.take(&mut events, 10));
        restart(&home);
        client.finish(&mut events);
        assert!(client.is_complete && client.text == TRICKY.repeat(5), "{client:?}");
    }
    assert!(gateway.terminate().success());
}

#[test]
fn a_reply_goes_on_with_its_own_turn_where_it_has_one() {
    let home = slow_home();
    let mut gateway = home.start();
    for (way, turns) in [(Way::ChatByKey, 1), (Way::ResponseByKey, 1), (Way::ResponseById, 1), (Way::Chat, 2)] {
        let mut client = Client::new(way, &format!("{way:?}"), TRICKY);
        let mut events = client.open(&gateway);
        assert!(client.take(&mut events, 8));
        gateway.kill();
        gateway = home.start();
        let has = client.text.clone();
        assert!(has.len() > 10 && TRICKY.starts_with(&has), "{has}");
        client.finish(&mut client.open(&gateway));
        assert_eq!((client.text.as_str(), client.beginnings, client.turns.len()), (TRICKY, 1, turns), "{way:?}");
    }
    // What has ended is told from the store, as often as anybody asks.
    for way in [Way::ChatByKey, Way::ResponseByKey] {
        let mut client = Client::new(way, &format!("{way:?}"), TRICKY);
        client.finish(&mut client.open(&gateway));
        assert_eq!(client.text, TRICKY);
    }
}

#[test]
fn who_comes_back_before_the_loss_is_noticed_is_with_the_same_turn() {
    let home = slow_home();
    let gateway = home.start();
    let mut client = Client::new(Way::Chat, "s", TRICKY);
    let mut lost = client.open(&gateway);
    assert!(client.take(&mut lost, 6));
    let mut events = client.open(&gateway);
    assert!(client.take(&mut events, 1));
    // Now it is noticed, and the turn has somebody who wants it.
    drop(lost);
    client.finish(&mut events);
    assert_eq!((client.text.as_str(), client.beginnings, client.turns.len()), (TRICKY, 1, 1));
}
