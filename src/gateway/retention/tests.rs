//! Real stores with things of all ages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proptest::prelude::*;
use rusqlite::{Connection, params};

use super::*;
use crate::store::{FILE_NAME, StoreOwner};

const HOUR: i64 = 3_600_000;
const DAY: Duration = Duration::from_secs(86_400);
const NOW: i64 = 1_790_000_000_000;

struct World {
    dir: tempfile::TempDir,
    retention: Retention,
    store: Store,
    _owner: StoreOwner,
    raw: Connection,
}

fn world(keep: Duration, max_size: Option<u64>) -> World {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (store, owner) = Store::open(dir.path(), Arc::default()).expect("opens");
    let raw = Connection::open(dir.path().join(FILE_NAME)).expect("opens");
    raw.execute_batch("PRAGMA synchronous = OFF").expect("set");
    let retention = Retention::new(store.clone(), Config { keep, max_size }, Stop::new());
    World { dir, retention, store, _owner: owner, raw }
}

/// A turn to be planted.
#[derive(Debug, Clone)]
struct Turn {
    /// Hours since it ended; `None`: it has not.
    ended: Option<i64>,
    /// One of a few sessions.
    session: i64,
    /// It continues the turn that many before it.
    parent: Option<usize>,
    /// Its deliveries: hours since each was settled, or `None`, and whether it was given up.
    deliveries: Vec<(Option<i64>, bool)>,
    /// Hours since its message was brought, if a platform brought it.
    inbox: Option<i64>,
}

fn id(n: usize) -> [u8; 16] {
    (n as u128 + 1).to_be_bytes()
}

impl World {
    fn plant(&self, turns: &[Turn], bytes: usize) {
        self.raw.execute_batch("BEGIN").expect("begun");
        for (n, turn) in turns.iter().enumerate() {
            let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
                self.raw
                    .prepare_cached(sql)
                    .and_then(|mut s| s.execute(values))
                    .unwrap_or_else(|e| panic!("{e}: {sql}"))
            };
            let (session, name) = (turn.session, format!("s{}", turn.session));
            run("INSERT OR IGNORE INTO sessions (id, name, created) VALUES (?1, ?2, 1)", params![session, name]);
            run("INSERT OR IGNORE INTO memories VALUES (?1, 'a', 'kept')", params![session]);
            let state = if turn.ended.is_some() { "completed" } else { "queued" };
            let ended = turn.ended.map(|hours| NOW - hours * HOUR);
            let parent = turn.parent.filter(|back| *back > 0 && *back <= n).map(|back| id(n - back));
            let sql = "INSERT INTO turns (id, session, agent, model, origin, state, keep, attempts, accepted, ended, \
                       seq, parent) VALUES (?1, ?2, 'a', 'm', 'chat', ?3, 1, 1, 1, ?4, ?5, ?6)";
            run(sql, params![id(n), session, state, ended, n as i64 + 1, parent]);
            let text = "x".repeat(bytes);
            run("INSERT INTO messages VALUES (?1, 0, 'user', ?2)", params![id(n), text]);
            for (settled, dead) in &turn.deliveries {
                let state = match settled {
                    None if *dead => "leased",
                    None => "pending",
                    Some(_) if *dead => "dead",
                    Some(_) => "sent",
                };
                let sql = "INSERT INTO outbox (key, turn, target, kind, part, parts, content, state, due, created, \
                           settled) VALUES (hex(randomblob(16)), ?1, 'p:c', 'reply', 1, 1, 'x', ?2, 1, 1, ?3)";
                run(sql, params![id(n), state, settled.map(|hours| NOW - hours * HOUR)]);
            }
            if let Some(hours) = turn.inbox {
                let sql = "INSERT INTO inbox VALUES ('p', 'a', ?1, ?2, ?3)";
                run(sql, params![n.to_string(), id(n), NOW - hours * HOUR]);
            }
        }
        self.raw.execute_batch("COMMIT").expect("planted");
    }

    fn count(&self, table: &str) -> usize {
        count(&self.raw, table)
    }

    /// The turns that are there, by their place in the plan.
    fn turns(&self) -> BTreeSet<usize> {
        let mut statement = self.raw.prepare("SELECT id FROM turns").expect("a query");
        let ids = statement.query_map([], |row| row.get::<_, [u8; 16]>(0)).expect("ids");
        ids.map(|id| u128::from_be_bytes(id.expect("an id")) as usize - 1).collect()
    }

    async fn run(&self) {
        self.retention.run_once(Timestamp::from_millis(NOW)).await;
    }

    /// Runs until nothing more goes.
    async fn run_to_the_end(&self) {
        loop {
            let before = self.store.amount().await.expect("counted");
            self.run().await;
            if self.store.amount().await.expect("counted") == before {
                return;
            }
        }
    }
}

fn count(store: &Connection, table: &str) -> usize {
    let sql = format!("SELECT count(*) FROM {table}");
    store.query_row(&sql, [], |row| row.get::<_, i64>(0)).expect("counted") as usize
}

/// What is to be left: turns, deliveries, messages of platforms, sessions.
fn expected(turns: &[Turn], keep: i64) -> (BTreeSet<usize>, usize, usize, usize) {
    let kept_delivery = |(settled, _): &&(Option<i64>, bool)| settled.is_none_or(|hours| hours < keep);
    let mut chained = BTreeSet::new();
    for (n, _) in turns.iter().enumerate().filter(|(_, turn)| turn.ended.is_none()) {
        let mut at = n;
        while let Some(back) = turns[at].parent.filter(|back| *back > 0 && *back <= at) {
            at -= back;
            chained.insert(at);
        }
    }
    let mut kept: BTreeMap<usize, i64> = BTreeMap::new();
    for (n, turn) in turns.iter().enumerate() {
        let young = turn.ended.is_none_or(|hours| hours < keep);
        if young || chained.contains(&n) || turn.deliveries.iter().any(|delivery| kept_delivery(&delivery)) {
            kept.insert(n, turn.session);
        }
    }
    let deliveries = turns.iter().flat_map(|turn| &turn.deliveries).filter(kept_delivery).count();
    let inbox = turns.iter().filter(|turn| turn.inbox.is_some_and(|hours| hours < keep.max(7 * 24))).count();
    let sessions = kept.values().collect::<BTreeSet<_>>().len();
    (kept.into_keys().collect(), deliveries, inbox, sessions)
}

fn turn() -> impl Strategy<Value = Turn> {
    let hours = 0i64..24 * 20;
    let deliveries = prop::collection::vec((prop::option::weighted(0.8, hours.clone()), any::<bool>()), 0..3);
    let deliveries = prop_oneof![2 => Just(Vec::new()), 1 => deliveries];
    (
        prop::option::weighted(0.9, hours.clone()),
        0i64..6,
        prop::option::of(1usize..5),
        deliveries,
        prop::option::of(hours),
    )
        .prop_map(|(ended, session, parent, deliveries, inbox)| Turn { ended, session, parent, deliveries, inbox })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_old_goes_and_what_is_young_or_needed_stays(turns in prop::collection::vec(turn(), 0..80), days in 1i64..15) {
        let world = world(DAY * days as u32, None);
        world.plant(&turns, 10);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(world.run_to_the_end());
        let left = (world.turns(), world.count("outbox"), world.count("inbox"), world.count("sessions"));
        prop_assert_eq!(&left, &expected(&turns, days * 24));
        prop_assert_eq!((world.count("messages"), world.count("memories")), (left.0.len(), left.3));
        let torn: i64 = world.raw.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0)).expect("checked");
        prop_assert_eq!(torn, 0);
    }
}

/// Turns that ended so many hours ago each, the oldest first.
fn aged(hours: impl Iterator<Item = i64>) -> Vec<Turn> {
    let turn = |(n, hours)| Turn {
        ended: Some(hours),
        session: n as i64 % 7,
        parent: None,
        deliveries: Vec::new(),
        inbox: None,
    };
    hours.enumerate().map(turn).collect()
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_a_year_ahead_does_not_take_everything_at_once() {
    // All of it within the last month: by the right clock nothing goes.
    let world = world(90 * DAY, None);
    world.plant(&aged((0..720).rev()), 10);
    world.run().await;
    assert_eq!(world.count("turns"), 720);
    let ahead = Timestamp::from_millis(NOW + 365 * 24 * HOUR);
    world.retention.run_once(ahead).await;
    assert_eq!(world.turns(), (30..720).collect(), "a 24th, the oldest");
    world.run().await;
    assert_eq!(world.count("turns"), 690, "and nothing more when the clock is right again");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_too_large_loses_its_oldest_turns_and_none_of_the_last_hour() {
    let max_size = 2 << 20;
    let world = world(90 * DAY, Some(max_size));
    let mut turns = aged((1..=300).rev());
    turns[0].deliveries = vec![(Some(200), true)];
    turns[1].deliveries = vec![(None, false)];
    turns[2].ended = None;
    world.plant(&turns, 20_000);
    assert!(world.store.size().await.expect("measured").0 > 6 << 20);
    world.run().await;
    let (used, free) = world.store.size().await.expect("measured");
    assert!(used <= max_size && used > max_size - (1 << 20) && free > 4 << 20, "{used} {free}");
    let left: Vec<_> = world.turns().into_iter().collect();
    assert_eq!(left[..2], [1, 2], "what waits and what runs stays, and what was settled goes with its turn");
    assert_eq!(left[2..], ((300 - left.len() + 2)..300).collect::<Vec<_>>(), "the oldest went");
    // Nothing of the last hour goes, however much too large it is.
    let young = self::world(90 * DAY, Some(1 << 20));
    young.plant(&aged((0..200).map(|_| 0)), 20_000);
    young.run().await;
    assert_eq!(young.count("turns"), 200);
}

#[tokio::test(start_paused = true)]
async fn a_session_goes_on_counting_behind_what_is_gone() {
    let world = world(DAY, None);
    world.plant(
        &aged([300, 200, 1].into_iter()).iter().map(|t| Turn { session: 1, ..t.clone() }).collect::<Vec<_>>(),
        10,
    );
    let session: crate::model::id::SessionId = "s1".parse().expect("an id");
    assert!(world.store.reset_session(session.clone()).await.expect("reset"));
    world.raw.execute("DELETE FROM messages", []).expect("deleted");
    world.raw.execute("DELETE FROM turns WHERE seq > 1", []).expect("deleted");
    let turn = crate::gateway::tests::turn("s1", "echo", "afresh");
    world.store.record_turn(turn, true).await.expect("recorded");
    let seq: i64 = world.raw.query_row("SELECT max(seq) FROM turns", [], |row| row.get(0)).expect("asked");
    assert_eq!(seq, 4, "the conversation begins where it was begun anew");
}

/// A copy of a store's files as they are at this instant, as a power cut would leave them.
fn snapshot(of: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().expect("a temporary directory");
    for entry in std::fs::read_dir(of).expect("read").map(|entry| entry.expect("an entry")) {
        std::fs::copy(entry.path(), to.path().join(entry.file_name())).expect("copied");
    }
    to
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_any_two_steps_loses_nothing_young_and_leaves_nothing_torn() {
    let world = world(10 * DAY, None);
    // Half of it is too old.
    world.plant(&aged((0..480).rev()), 100);
    let which =
        |at_most| PruneTurns { ended_by: too_old(10 * DAY, Timestamp::from_millis(NOW)), settled_by: None, at_most };
    let mut place = Some(Place::BEGIN);
    while let Some(after) = place {
        place = world.store.prune_turns(which(1000), after).await.expect("a step").1;
        let crashed = snapshot(world.dir.path());
        let (store, _owner) = Store::open(crashed.path(), Arc::default()).expect("opens");
        let raw = Connection::open(crashed.path().join(FILE_NAME)).expect("opens");
        let verdict: String = raw.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("checked");
        assert_eq!((verdict.as_str(), count(&raw, "turns WHERE ended > 1790000000000 - 864000000")), ("ok", 240));
        assert_eq!(count(&raw, "turns"), count(&raw, "messages"));
        drop(store);
    }
    assert_eq!(world.count("turns"), 240);
}

#[tokio::test(start_paused = true)]
async fn it_runs_a_minute_after_the_start_and_every_hour_and_ends_with_the_soft_stop() {
    let world = world(DAY, None);
    let plant = |n: i64| {
        let sql = "INSERT OR IGNORE INTO sessions (id, name, created) VALUES (1, 's', 1)";
        world.raw.execute(sql, []).expect("planted");
        let sql = "INSERT INTO turns (id, session, agent, model, origin, state, keep, attempts, accepted, ended, seq) \
                   VALUES (?1, 1, 'a', 'm', 'chat', 'completed', 1, 1, 1, 1, ?2)";
        world.raw.execute(sql, params![id(n as usize), n]).expect("planted");
    };
    let began = Instant::now();
    // The clock of the test goes on only as fast as the store's threads work.
    let gone_after = async |since: Instant| {
        while world.count("turns") > 0 {
            tokio::time::advance(Duration::from_millis(1)).await;
            std::thread::sleep(Duration::from_millis(1));
        }
        since.elapsed().as_secs()
    };
    let watching = async {
        plant(1);
        tokio::time::advance(FIRST - Duration::from_secs(1)).await;
        assert_eq!(world.count("turns"), 1, "a start has better things to do");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(gone_after(began).await < 70);
        tokio::time::advance(EVERY / 2).await;
        plant(2);
        let planted = Instant::now();
        tokio::time::advance(EVERY / 4).await;
        assert_eq!(world.count("turns"), 1, "not before an hour is over");
        tokio::time::advance(EVERY / 4).await;
        assert!(gone_after(planted).await < 1810);
        tokio::time::advance(EVERY / 2).await;
        plant(3);
        let planted = Instant::now();
        world.retention.reconfigure(Config { keep: 2 * DAY, max_size: None });
        assert!(gone_after(planted).await < 10, "a new configuration counts at once");
        world.retention.inner.stop.soften();
    };
    tokio::join!(world.retention.clone().run(), watching);
}
