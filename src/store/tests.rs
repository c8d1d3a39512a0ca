//! The store against real files.

mod outbox;

use super::*;
use crate::model::address::Source;
use crate::model::id::TurnId;
use crate::model::message::Message;
use crate::model::time::Timestamp;
use crate::model::turn::{Failure, Finish, History, Idempotency, NewTurn, Origin, Outcome, Usage};

struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    fn open(&self) -> (Store, StoreOwner) {
        Store::open(self.dir.path(), Arc::default()).expect("opens")
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join(FILE_NAME)
    }
}

fn turn(session: &str, text: &str) -> NewTurn {
    NewTurn {
        id: TurnId::new(),
        session: session.parse().expect("a session id"),
        agent: "echo".into(),
        model: "m".into(),
        accepted: Timestamp::now(),
        origin: Origin::Chat,
        instructions: None,
        history: History::Session,
        input: vec![Message::user(text)],
        idempotency: None,
        keep: false,
        deliver: None,
    }
}

fn completed(text: &str) -> Outcome {
    Outcome::Completed { text: text.into(), finish: Finish::Stop, usage: Usage { input_tokens: 1, output_tokens: 2 } }
}

#[tokio::test]
async fn a_conversation_that_begins_anew_is_not_remembered() {
    let home = Home::new();
    let (store, _owner) = home.open();
    let (old, new) = (turn("s", "old"), turn("s", "new"));
    let (session, agent) = (old.session.clone(), old.agent.clone());
    store.record_turn(old, true).await.expect("recorded");
    store.remember(session.clone(), agent.clone(), "m".into()).await.expect("remembered");
    assert_eq!(store.memory(session.clone(), agent.clone()).await.expect("read"), Some("m".into()));
    let source = Source { platform: "p".into(), account: "a".into(), message: "1".into() };
    let begins = Arrival::Begins { source, turn: Box::new(new), started: true, fresh: true };
    store.receive(vec![begins], None, Timestamp::now()).await.expect("received");
    assert_eq!(store.memory(session, agent).await.expect("read"), None);
}

#[tokio::test]
async fn history_is_what_completed_turns_said_and_survives_a_reopen() {
    let home = Home::new();
    let (store, owner) = home.open();
    for (asked, outcome) in [
        ("one", completed("eins")),
        ("two", Outcome::Failed { failure: Failure::Agent, message: "no".into() }),
        ("three", completed("drei")),
    ] {
        let turn = turn("s", asked);
        let id = turn.id;
        assert!(matches!(store.record_turn(turn, true).await, Ok(Recorded::New)));
        store.end_turn(id, outcome.clone(), Ending::default()).await.expect("ends");
        assert_eq!(store.turn(id).await.expect("found").expect("there").outcome, Some(outcome));
        assert!(store.end_turn(id, Outcome::Cancelled, Ending::default()).await.is_err(), "a turn ends once");
    }
    drop(store);
    owner.close();
    assert!(!home.dir.path().join("gateway.db-wal").exists(), "a clean end leaves no WAL");
    let (store, _owner) = home.open();
    let history = store.session_history("s".parse().expect("an id")).await.expect("history");
    let said: Vec<_> = history.iter().map(|message| message.content.as_str()).collect();
    assert_eq!(said, ["one", "eins", "three", "drei"]);
}

#[tokio::test]
async fn a_chain_is_its_own_history_whatever_else_was_said() {
    let home = Home::new();
    let (store, _owner) = home.open();
    let mut last = None;
    for text in ["a", "b", "c"] {
        let mut turn = turn("s", text);
        turn.history = last.map_or(History::Given(Vec::new()), History::Chain);
        last = Some(turn.id);
        store.record_turn(turn, true).await.expect("recorded");
        store.end_turn(last.expect("set"), completed(&text.to_uppercase()), Ending::default()).await.expect("ends");
    }
    let history = store.chain_history(last.expect("set")).await.expect("history");
    let said: Vec<_> = history.iter().map(|message| message.content.as_str()).collect();
    assert_eq!(said, ["a", "A", "b", "B", "c", "C"]);
}

#[tokio::test]
async fn a_known_idempotency_key_leads_to_the_first_turn() {
    let home = Home::new();
    let (store, _owner) = home.open();
    let keyed =
        || NewTurn { idempotency: Some(Idempotency { key: "k".into(), fingerprint: [7; 32] }), ..turn("s", "once") };
    let first = keyed();
    let id = first.id;
    assert!(matches!(store.record_turn(first, true).await, Ok(Recorded::New)));
    match store.record_turn(keyed(), true).await.expect("answered") {
        Recorded::Known(known) => assert_eq!((known.id, known.fingerprint), (id, Some([7; 32]))),
        Recorded::New => panic!("recorded twice"),
    }
}

#[tokio::test]
async fn the_next_life_runs_what_can_still_be_asked_for_and_parks_what_keeps_killing() {
    let home = Home::new();
    let (store, _owner) = home.open();
    let kept = NewTurn { keep: true, instructions: Some("be brief".into()), ..turn("s", "kept") };
    let deadly = NewTurn { keep: true, ..turn("d", "deadly") };
    let gone = turn("s", "gone");
    let (kept_id, deadly_id, gone_id) = (kept.id, deadly.id, gone.id);
    for turn in [kept, deadly, gone] {
        store.record_turn(turn, true).await.expect("recorded");
    }
    store.claim_turn(deadly_id).await.expect("claimed");
    store.claim_turn(deadly_id).await.expect("claimed");
    let released = store.release_unfinished(3, "parked").await.expect("released");
    assert_eq!((released.interrupted, released.parked, released.again.len()), (1, 1, 1));
    let again = &released.again[0];
    assert_eq!((again.turn.id, again.attempts), (kept_id, 1));
    assert_eq!(again.turn.instructions.as_deref(), Some("be brief"));
    assert_eq!(again.turn.input, [Message::user("kept")]);
    for (id, outcome) in [(deadly_id, Outcome::Parked), (gone_id, Outcome::Interrupted)] {
        assert_eq!(store.turn(id).await.expect("read").expect("there").outcome, Some(outcome));
    }
}

#[tokio::test]
async fn many_callers_share_a_commit_and_one_failure_takes_nobody_with_it() {
    let home = Home::new();
    let meters = Arc::new(Meters::default());
    let (store, _owner) = Store::open(home.dir.path(), meters).expect("opens");
    let poison = turn("s", "poison");
    store.record_turn(poison.clone(), true).await.expect("the first time");
    let mut calls: Vec<_> = (0..100).map(|n| store.record_turn(turn("s", &n.to_string()), true)).collect();
    // The same id again violates the primary key, in the middle of the batch.
    calls.push(store.record_turn(poison, true));
    let results = futures_util::future::join_all(calls).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 100);
    assert!(results[100].is_err());
}

#[test]
fn what_is_not_ours_is_refused_and_left_byte_for_byte() {
    let foreign = |path: &Path| {
        let connection = Connection::open(path).expect("opens");
        connection.execute_batch("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)").expect("made");
    };
    let newer = |path: &Path| {
        drop(schema::open(path).expect("opens"));
        let connection = Connection::open(path).expect("opens");
        connection.execute_batch("PRAGMA user_version = 99").expect("set");
    };
    let garbage = |path: &Path| std::fs::write(path, vec![b'x'; 8192]).expect("written");
    type Plant<'a> = &'a dyn Fn(&Path);
    for (plant, expected) in
        [(&foreign as Plant, "not a gateway's store"), (&newer, "schema version 99"), (&garbage, "damaged")]
    {
        let home = Home::new();
        plant(&home.file());
        let before = std::fs::read(home.file()).expect("read");
        let error = Store::open(home.dir.path(), Arc::default()).expect_err("refused");
        assert!(error.is_permanent() && error.to_string().contains(expected), "{error}");
        assert_eq!(std::fs::read(home.file()).expect("read"), before);
    }
}

/// A store as a version left it.
fn loaded(fixture: &str) -> Home {
    let home = Home::new();
    Connection::open(home.file()).and_then(|c| c.execute_batch(fixture)).expect("the fixture loads");
    home
}

const V1: &str = include_str!("../../tests/fixtures/store-v1.sql");
const V2: &str = include_str!("../../tests/fixtures/store-v2.sql");

#[tokio::test]
async fn every_released_schema_opens() {
    /// Tables and indexes with their columns. How their SQL is spelled depends on the way they came to be.
    const SHAPE: &str = "SELECT s.type || ' ' || s.name || ' ' || group_concat(coalesce(c.name, i.name)) \
                         FROM sqlite_schema s LEFT JOIN pragma_table_xinfo(s.name) c ON s.type = 'table' \
                         LEFT JOIN pragma_index_xinfo(s.name) i ON s.type = 'index' GROUP BY s.name ORDER BY s.name";
    let shape = |home: &Home| {
        let connection = Connection::open(home.file()).expect("opens");
        let mut statement = connection.prepare(SHAPE).expect("a query");
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).expect("rows");
        rows.collect::<Result<Vec<_>, _>>().expect("texts")
    };
    let fresh = Home::new();
    let (_store, _owner) = fresh.open();
    for fixture in [V1, V2] {
        let home = loaded(fixture);
        let (store, _owner) = home.open();
        let history = store.session_history("fixture".parse().expect("an id")).await.expect("history");
        assert_eq!(history.iter().map(|m| m.content.as_str()).collect::<Vec<_>>(), ["question", "answer"]);
        let sessions = store.list_sessions(None, 10).await.expect("sessions").items;
        assert!(sessions.iter().any(|session| session.id == "fixture" && session.active.as_millis() > 0));
        // Until a version is released its fixture follows it.
        assert_eq!(shape(&home), shape(&fresh));
    }
}

#[tokio::test]
async fn what_version_2_left_is_understood_row_by_row() {
    let home = loaded(V2);
    let (store, _owner) = home.open();
    let id = |text: &str| text.parse().expect("an id");
    assert_eq!(store.session_history(id("begun-anew")).await.expect("history"), []);
    assert_eq!(store.memory(id("fixture"), "echo".into()).await.expect("read").as_deref(), Some("what it keeps"));
    assert_eq!(store.cursor("ops".into(), "bot".into()).await.expect("read").as_deref(), Some("1234"));
    let keyed = Idempotency { key: "once".into(), fingerprint: [7; 32] };
    let again = NewTurn { idempotency: Some(keyed), ..turn("fixture", "again") };
    let Ok(Recorded::Known(known)) = store.record_turn(again, true).await else { panic!("the key is known") };
    assert!(matches!(known.outcome, Some(Outcome::Completed { ref text, .. }) if text == "an answer"));
    let failed = store.turn(TurnId::from_bytes(*b"\x01\x9c\0\0\0\0\x70\0\x80\0\0\0\0\0\0\x03")).await.expect("read");
    let failed = failed.expect("there");
    assert!(matches!(failed.outcome, Some(Outcome::Failed { failure: Failure::Timeout, .. })));
    assert_eq!(failed.parent, Some(known.id));
    let source = Source { platform: "ops".into(), account: "bot".into(), message: "m-1".into() };
    let brought = Arrival::Begins { source, turn: Box::new(turn("fixture", "x")), started: false, fresh: false };
    let received = store.receive(vec![brought], None, Timestamp::now()).await.expect("asked");
    assert!(matches!(received[..], [Received::Known(_)]));
    let released = store.release_unfinished(3, "parked").await.expect("released");
    let [waiting] = &released.again[..] else { panic!("{released:?}") };
    assert_eq!(waiting.turn.history, History::Given(vec![Message::user("before")]));
    assert_eq!(waiting.turn.deliver.as_ref().map(ToString::to_string).as_deref(), Some("ops:42"));
    assert_eq!(store.release_leases(Vec::new()).await.expect("released"), (1, 1));
    let census = store.count_deliveries().await.expect("counted");
    assert_eq!((census.pending, census.leased, census.dead), (2, 0, 1));
    let due = store.due_deliveries(Timestamp::now(), 9).await.expect("looked");
    assert_eq!(due.targets.len(), 2);
}

#[tokio::test]
async fn a_transaction_that_was_cut_off_before_there_was_a_wal_is_undone() {
    let (home, killed) = (Home::new(), Home::new());
    let (store, owner) = home.open();
    drop(store);
    owner.close();
    // As a kill in the middle leaves them: the file with some of it, and the journal that undoes it.
    let connection = Connection::open(home.file()).expect("opens");
    connection.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).expect("set");
    let half = "PRAGMA cache_size = 1; BEGIN; CREATE TABLE half (done); \
                INSERT INTO half SELECT zeroblob(100000) FROM (VALUES (1), (2), (3), (4))";
    connection.execute_batch(half).expect("done");
    for end in ["", "-journal"] {
        let name = |home: &Home| home.file().with_file_name(format!("{FILE_NAME}{end}"));
        std::fs::copy(name(&home), name(&killed)).expect("copied");
    }
    schema::open_reader(&killed.file()).expect_err("the plant is right: it cannot be read only");
    let (store, owner) = killed.open();
    store.ping().await.expect("it works");
    let half = "SELECT count(*) FROM sqlite_schema WHERE name = 'half'";
    let left: u32 = store.read(|c| Ok(c.query_row(half, [], |row| row.get(0))?)).await.expect("counted");
    assert_eq!(left, 0);
    drop(store);
    owner.close();
}

#[tokio::test]
async fn a_batch_that_sqlite_rolled_back_leaves_nothing_and_tells_everybody_why() {
    let home = Home::new();
    let (store, owner) = home.open();
    let (open_gate, gate) = std::sync::mpsc::channel::<()>();
    let insert = |name: &'static str| {
        let sql = "INSERT INTO sessions (name, created) VALUES (?1, 0)";
        store.write(move |connection| Ok(connection.execute(sql, [name])?))
    };
    let (begin, begun) = oneshot::channel();
    let held = store.write(move |_| {
        begin.send(()).expect("somebody waits");
        gate.recv().expect("it is opened");
        Ok(())
    });
    let fails = store.write::<(), _>(|connection| {
        // What SQLite does by itself when its disk fails in the middle of a statement.
        connection.execute_batch("ROLLBACK")?;
        Err(StoreError::NoRoom("full".into()))
    });
    // Queued while the first one works, so they are one batch.
    let batch = async {
        begun.await.expect("it works");
        let open = async { open_gate.send(()).expect("somebody waits") };
        tokio::join!(insert("before"), fails, insert("after"), open)
    };
    let (held, (before, failed, after, ())) = tokio::join!(held, batch);
    assert_eq!(held, Ok(()));
    assert_eq!((before, failed, after), {
        let full = StoreError::NoRoom("full".into());
        (Err(full.clone()), Err(full.clone()), Err(full))
    });
    assert!(store.trouble().await.is_none(), "the next write shows that it is over");
    assert_eq!(insert("later").await, Ok(1));
    drop(store);
    owner.close();
    let names = "SELECT group_concat(name) FROM sessions";
    let names: String = Connection::open(home.file()).expect("opens").query_row(names, [], |r| r.get(0)).expect("read");
    assert_eq!(names, "later");
}
