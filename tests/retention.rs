//! What is kept and what goes, in the real process: by a reload, through kills, and never what is young.

use rusqlite::Connection;

use crate::gateway::Home;
use crate::inside::stdout;

/// Old turns and young ones, in a store that nobody uses at the moment.
fn plant(home: &Home, old: usize, young: usize) {
    assert!(home.start().terminate().success());
    let store = Connection::open(home.state().join("gateway.db")).expect("opened");
    let now = "(unixepoch() * 1000)";
    let sql = format!(
        "BEGIN; INSERT INTO sessions (id, name, created) VALUES (1, 's', 1);
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {old} + {young})
         INSERT INTO turns (id, session, agent, model, origin, state, keep, attempts, accepted, ended, seq)
             SELECT CAST(printf('%016d', i) AS BLOB), 1, 'a', 'm', 'chat', 'completed', 0, 1, {now}, {now}, i FROM n;
         UPDATE turns SET ended = {now} - 864000000 + seq WHERE seq <= {old};
         INSERT INTO messages SELECT id, 0, 'user', 'question ' || seq FROM turns;
         INSERT INTO messages SELECT id, 1, 'assistant', 'answer ' || seq FROM turns; COMMIT;"
    );
    store.execute_batch(&sql).expect("planted");
}

/// How many turns there are, of them old ones, in a store that is found whole.
fn left(home: &Home, old: usize) -> (usize, usize) {
    let store = Connection::open(home.state().join("gateway.db")).expect("opened");
    let verdict: String = store.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("checked");
    assert_eq!(verdict, "ok");
    let count = |sql: &str| store.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("counted") as usize;
    assert_eq!(count("SELECT count(*) FROM messages"), 2 * count("SELECT count(*) FROM turns"), "nothing is torn");
    let olds = count(&format!("SELECT count(*) FROM turns WHERE seq <= {old}"));
    (count("SELECT count(*) FROM turns"), olds)
}

#[test]
fn a_kill_at_any_step_loses_nothing_young_and_the_next_run_goes_on() {
    let home = Home::new();
    plant(&home, 1000, 50);
    let mut before = 1000;
    for step in 1..=4 {
        home.configure("");
        let mut command = home.command("run");
        command.env("HERMES_FAULT", format!("retention.step={step}"));
        let mut gateway = home.start_by(command);
        // Little is kept, so a run takes a large share; and a reload begins one at once.
        home.configure("retention.keep = \"4h\"\n");
        home.output("reload", &[]);
        assert!(!gateway.wait().success(), "it was to die\n{}", gateway.log());
        let (all, old) = left(&home, 1000);
        assert!(all - old == 50 && old <= before, "{all} {old}");
        before = old;
    }
    assert!(before < 900, "each step was done before the kill: {before}");
    let mut gateway = home.start();
    home.configure("retention.keep = \"1h\"\n");
    home.output("reload", &[]);
    let session = || stdout(&home.output("turns", &["list", "--limit", "1000"])).lines().count();
    gateway.await_fact("the old ones are gone", |_| session() == 51);
    gateway.await_fact("it says what it did", |gateway| {
        gateway.log().contains(&format!("what was kept long enough is gone: {before} turns"))
    });
    assert!(gateway.terminate().success());
    assert_eq!(left(&home, 1000), (50, 0));
}
