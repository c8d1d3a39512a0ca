//! Responses by the numbers of their events.

use serde_json::Value;

use super::{Client, Event, Events, TRICKY, Way, restart, slow_home};
use crate::gateway::Gateway;

fn get(gateway: &Gateway, path: &str) -> Vec<Event> {
    let mut events = Events::open(gateway, "GET", path, "", "");
    std::iter::from_fn(|| events.next()).collect()
}

fn number(event: &Event) -> u64 {
    event.data["sequence_number"].as_u64().expect("a number")
}

fn text_of<'a>(events: impl IntoIterator<Item = &'a Event>) -> String {
    events.into_iter().filter_map(|event| event.data["delta"].as_str()).collect()
}

#[test]
fn a_number_names_the_same_event_in_each_stream_and_each_life() {
    let home = slow_home();
    let mut gateway = home.start();
    let user = serde_json::json!({ "input": TRICKY, "stream": true }).to_string();
    let mut events = Events::open(&gateway, "POST", "/v1/responses", "", &user);
    let first: Vec<_> = std::iter::from_fn(|| events.next()).collect();
    assert_eq!(first.iter().map(number).collect::<Vec<_>>(), (0..first.len() as u64).collect::<Vec<_>>());
    assert!(first.len() > 20 && text_of(&first) == TRICKY);
    let id = first[0].data["response"]["id"].as_str().expect("an id").to_owned();
    let path = format!("/v1/responses/{id}");
    for life in ["the same", "restarted", "killed"] {
        match life {
            "restarted" => restart(&home),
            "killed" => {
                gateway.kill();
                gateway = home.start();
            }
            _ => {}
        }
        assert_eq!(get(&gateway, &format!("{path}?stream=true")), first, "{life}");
        for n in 0..=first.len() {
            let rest = get(&gateway, &format!("{path}?starting_after={n}&stream=true&include_obfuscation=false"));
            assert_eq!(rest, first[(n + 1).min(first.len())..], "{life}, after {n}");
        }
        for (at, event) in first.iter().enumerate() {
            let header = format!("last-event-id: {}\r\n", event.id.as_ref().expect("each event has an id"));
            let mut events =
                Events::open(&gateway, "GET", &format!("{path}?stream=true&starting_after=0"), &header, "");
            let rest: Vec<_> = std::iter::from_fn(|| events.next()).collect();
            // The last events have all of the text, and are told again; before the first word all begins anew.
            let (had, told) = (text_of(&first[..=at]), text_of(&rest));
            assert_eq!(if had.is_empty() { told } else { had + &told }, TRICKY, "{life}, behind {at}");
            let from = first.iter().position(|event| number(event) == number(&rest[0])).expect("one of them");
            assert_eq!(rest, first[from..], "{life}, behind {at}");
        }
    }
    assert_eq!(gateway.request("GET", &format!("{path}?stream=false"), "").json()["status"], "completed");
    for wrong in ["stream=1", "stream=true&starting_after=-1", "stream=true&starting_after=x", "starting_after=1.5"] {
        let answer = gateway.request("GET", &format!("{path}?{wrong}"), "");
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &Value::from("invalid_value")), "{wrong}");
    }
    let unknown = gateway.request("GET", "/v1/responses/resp_00000000000000000000000000000000?stream=true", "");
    assert_eq!(unknown.status, 404);
}

#[test]
fn a_response_can_be_watched_while_it_is_made() {
    let home = slow_home();
    let gateway = home.start();
    let mut maker = Client::new(Way::ResponseById, "s", TRICKY);
    let mut making = maker.open(&gateway);
    assert!(maker.take(&mut making, 6));
    let id = maker.turns[0].clone();
    let mut watching = Events::open(&gateway, "GET", &format!("/v1/responses/{id}?stream=true"), "", "");
    let mut seen = vec![watching.next().expect("the first event, while it is made")];
    assert_eq!(gateway.request("GET", &format!("/v1/responses/{id}"), "").json()["status"], "in_progress");
    // It is finished without its maker.
    drop(making);
    seen.extend(std::iter::from_fn(|| watching.next()));
    assert_eq!(text_of(&seen), TRICKY);
    assert_eq!(seen.last().expect("an end").data["type"], "response.completed");
    maker.finish(&mut maker.open(&gateway));
    assert_eq!((maker.text.as_str(), maker.beginnings), (TRICKY, 1));
}
