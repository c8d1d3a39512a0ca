//! Looking inside a store of real files.

use std::sync::Arc;

use proptest::prelude::*;
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::*;
use crate::model::delivery::State;
use crate::model::time::Timestamp;
use crate::store::{FILE_NAME, Store, StoreOwner, prune};

struct Home {
    _dir: tempfile::TempDir,
    store: Store,
    _owner: StoreOwner,
    /// A second connection, for what no caller does.
    raw: Connection,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (store, owner) = Store::open(dir.path(), Arc::default()).expect("opens");
        let raw = Connection::open(dir.path().join(FILE_NAME)).expect("opens");
        // As the store's own: plans depend on no values.
        raw.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).expect("set");
        Self { _dir: dir, store, _owner: owner, raw }
    }

    fn run(&self, sql: &str) {
        self.raw.execute_batch(sql).unwrap_or_else(|e| panic!("{e}: {sql}"));
    }

    /// As many sessions, each with as many turns of two messages; every 50th turn failed.
    fn fill(&self, sessions: usize, turns: usize) {
        self.run(&format!(
            "BEGIN;
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {sessions})
             INSERT INTO sessions (id, name, created, active) SELECT i, 'session-' || i, i, i * 10 FROM n;
             WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {turns} * {sessions} - 1)
             INSERT INTO turns (id, session, agent, model, origin, state, keep, attempts, accepted, ended, seq)
                SELECT CAST(printf('%016d', i) AS BLOB), 1 + i % {sessions}, 'a', 'm', 'chat',
                       iif(i % 50 = 0, 'failed', 'completed'), 0, 1, i, i, 1 + i / {sessions} FROM n;
             INSERT INTO messages SELECT id, 0, 'user', 'question ' || seq FROM turns;
             INSERT INTO messages SELECT id, 1, 'assistant', 'answer ' || seq FROM turns;
             COMMIT;"
        ));
    }

    fn deliver(&self, target: &str, state: &str) {
        self.run(&format!(
            "INSERT INTO outbox (key, target, kind, part, parts, content, state, due, created, attempts, settled)
             VALUES (hex(randomblob(16)), '{target}', 'reply', 1, 1, 'text', '{state}', 5, 5, 2,
                     iif('{state}' IN ('sent', 'dead'), 5, NULL))"
        ));
    }

    fn plan(&self, sql: &str) -> String {
        let mut statement = self.raw.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("a query");
        let count = statement.parameter_count();
        let rows = statement.query_map(rusqlite::params_from_iter(vec![1; count]), |row| row.get::<_, String>(3));
        rows.expect("a plan").map(|row| row.expect("a step")).collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn every_list_is_answered_from_an_index_in_its_order() {
    let home = Home::new();
    home.fill(50, 4);
    home.run("ANALYZE");
    for (what, sql) in [
        ("deliveries", outbox::ALL),
        ("deliveries by state", outbox::UNSENT),
        ("deliveries of a turn", outbox::OF_TURN),
        ("counts", outbox::COUNT),
        ("the oldest", outbox::OLDEST),
        ("turns", turns::ALL),
        ("unfinished turns", turns::UNFINISHED),
        ("failed turns", turns::FAILED),
        ("turns of a session", turns::OF_SESSION),
        ("sessions", sessions::ALL),
        ("an export", sessions::EXPORT),
        ("leases of the last life", crate::store::outbox::LEASED),
        ("a chat that waits", crate::store::outbox::PUT_OFF),
        ("old turns", prune::TURNS),
        ("what keeps a turn", prune::KEPT_DELIVERY),
        ("old deliveries", prune::DELIVERIES),
        ("old messages of platforms", prune::INBOX),
    ] {
        let plan = home.plan(sql);
        // The count steps over the rows that its index gave.
        let steps: Vec<_> = plan.lines().filter(|step| !step.contains("(subquery")).collect();
        assert!(steps.iter().any(|step| step.starts_with("SEARCH")), "{what}:\n{plan}");
        for bad in ["SCAN", "TEMP B-TREE"] {
            assert!(!steps.iter().any(|step| step.contains(bad)), "{what}:\n{plan}");
        }
    }
}

#[tokio::test]
async fn a_list_looks_at_a_bounded_number_of_rows_and_says_where_to_go_on() {
    let home = Home::new();
    home.fill(10, 2500);
    let completed = TurnFilter { session: None, state: Some("completed".into()) };
    let page = home.store.list_turns(completed, None, 20).await.expect("a page");
    assert_eq!((page.items.len(), page.items[0].asked.as_str()), (20, "question 2500"));
    // Far from the newest ones: what is looked at is bounded, the search goes on from there, and ends.
    home.run("UPDATE turns SET state = iif(accepted < 2000, 'completed', 'odd')");
    let (mut before, mut found, mut calls) = (None, 0, 0);
    loop {
        let completed = TurnFilter { session: None, state: Some("completed".into()) };
        let page = home.store.list_turns(completed, before, 1000).await.expect("a page");
        calls += 1;
        found += page.items.len();
        let Some(next) = page.next else { break };
        before = Some(next.parse().expect("an id"));
        assert!(calls < 10, "it does not end");
    }
    assert!(found == 2000 && calls >= 3, "{found} in {calls} calls");
}

#[tokio::test]
async fn sessions_come_latest_first_and_a_reset_silences_what_was() {
    let home = Home::new();
    home.fill(45, 3);
    let first = home.store.list_sessions(None, 20).await.expect("a page");
    let ids: Vec<_> = first.items.iter().map(|session| session.id.as_str()).collect();
    assert_eq!((ids[0], ids[19], first.next.as_deref()), ("session-45", "session-26", Some("session-26")));
    let id = |text: &str| text.parse().expect("an id");
    let last = home.store.list_sessions(Some(id("session-6")), 20).await.expect("a page");
    assert_eq!((last.items.len(), last.items[4].id.as_str(), last.next), (5, "session-1", None));
    let shown = home.store.show_session(id("session-1"), 2).await.expect("read").expect("there");
    assert_eq!((shown.session.turns, shown.session.asked.as_str(), shown.latest.items.len()), (3, "question 3", 2));
    assert_eq!(home.store.session_history(id("session-1")).await.expect("history").len(), 4);
    home.run("INSERT INTO memories VALUES (1, 'a', 'all of it'), (2, 'a', 'of another one')");
    assert!(home.store.reset_session(id("session-1")).await.expect("reset"));
    let memory = async |session| home.store.memory(id(session), "a".into()).await.expect("read");
    assert_eq!((memory("session-1").await, memory("session-2").await), (None, Some("of another one".into())));
    assert_eq!(home.store.session_history(id("session-1")).await.expect("history"), []);
    let exported = home.store.export_session(id("session-1"), 0).await.expect("turns");
    assert_eq!(
        exported.iter().map(|turn| (turn.turn.seq, turn.heard)).collect::<Vec<_>>(),
        [(1, false), (2, false), (3, false)]
    );
    assert_eq!(home.store.export_session(id("session-1"), 2).await.expect("turns").len(), 1);
    assert!(!home.store.reset_session(id("nobody")).await.expect("asked"));
    assert!(home.store.show_session(id("nobody"), 2).await.expect("read").is_none());
}

#[tokio::test]
async fn large_texts_are_named_in_lists_and_whole_where_one_is_shown() {
    let home = Home::new();
    home.deliver("p:1", "pending");
    home.run("UPDATE outbox SET content = printf('%.*c', 300000, 'x')");
    let page = home.store.list_deliveries(DeliveryFilter::default(), None, 5).await.expect("a page");
    assert_eq!(page.items[0].text, "(a text of 292 KiB)");
    let one = home.store.show_delivery(page.items[0].number).await.expect("read").expect("there");
    assert_eq!(one.text.len(), 300_000);
}

#[tokio::test]
async fn what_was_given_up_is_taken_up_again_and_what_is_on_its_way_is_left_alone() {
    let home = Home::new();
    for (target, state) in
        [("p:1", "dead"), ("p:1", "leased"), ("p:1", "pending"), ("q:1", "dead"), ("p:2", "sent"), ("p:2", "pending")]
    {
        home.deliver(target, state);
    }
    home.run("UPDATE outbox SET due = 9999, reason = 'no' WHERE state IN ('pending', 'dead')");
    let now = Timestamp::from_millis(1000);
    let report = home.store.retry_deliveries(vec![1, 2, 4, 5, 6, 7], vec!["q".into()], now).await.expect("done");
    assert_eq!((report.again, report.maybe_repeated, report.due_now), (2, 1, 1));
    let refused: Vec<_> = report.refused.iter().map(|refused| refused.number).collect();
    assert_eq!(refused, [2, 5, 7], "{report:?}");
    let show = async |number| home.store.show_delivery(number).await.expect("read").expect("there");
    let first = show(1).await;
    assert_eq!((first.state.as_str(), first.attempts, first.waited_ms, first.settled), ("pending", 0, 0, None));
    assert_eq!((first.due, first.repeated), (now, true));
    assert_eq!(first.reason.as_deref(), Some("taken up again by hand; before that: no"));
    assert_eq!((show(3).await.due, show(4).await.repeated), (now, false), "its chat goes on, too");
    assert_eq!((show(2).await.state, show(5).await.state), ("leased".into(), "sent".into()));
    let census = home.store.count_deliveries().await.expect("counted");
    assert_eq!((census.pending, census.leased, census.dead), (4, 1, 0));
    home.run("UPDATE outbox SET due = 9999 WHERE state = 'pending'");
    let report = home.store.drop_deliveries(vec![1, 2, 5, 99], now).await.expect("done");
    assert_eq!((report.dropped, report.refused.len()), (1, 3), "{report:?}");
    assert!(home.store.show_delivery(1).await.expect("read").is_none());
    assert_eq!(show(3).await.due, now, "what waited behind it goes on");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn pages_together_are_the_list(states in prop::collection::vec(0usize..8, 0..60), limit in 1usize..9, wish in 0usize..6) {
        let home = Home::new();
        for code in &states {
            home.deliver(if code / 4 == 0 { "p:1" } else { "q:2" }, State::ALL[code % 4].label());
        }
        let filter = match wish {
            4 => DeliveryFilter::default(),
            5 => DeliveryFilter { state: None, target: Some("q:2".into()) },
            state => DeliveryFilter { state: Some(State::ALL[state]), target: Some("p:1".into()) },
        };
        let fits = |code: usize| match wish {
            4 => true,
            5 => code >= 4,
            state => code == state,
        };
        let mut expected: Vec<i64> = (1..).zip(&states).filter(|(_, code)| fits(**code)).map(|(n, _)| n).collect();
        expected.reverse();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut found = Vec::<i64>::new();
        let mut before = None;
        loop {
            let page = runtime.block_on(home.store.list_deliveries(filter.clone(), before, limit)).expect("a page");
            prop_assert!(page.items.len() <= limit);
            found.extend(page.items.iter().map(|item| item.number));
            let Some(next) = page.next else { break };
            before = Some(next.parse().expect("a number"));
        }
        prop_assert_eq!(found, expected);
    }
}
