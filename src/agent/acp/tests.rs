//! The agent kind `acp` against an agent that does whatever agents do.

use std::path::PathBuf;

use super::*;
use crate::agent::Report;
use crate::model::id::{SessionId, TurnId};
use crate::model::message::Message;
use crate::model::turn::TurnEvent;

const AGENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/acp/agent.py");
/// Longest time for anything to become true.
const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    dir: tempfile::TempDir,
    around: Surroundings,
    acp: Acp,
    config: Config,
    /// What the gateway would have stored.
    memory: std::sync::Mutex<Option<String>>,
}

/// What came of a turn.
#[derive(Debug)]
struct Said {
    text: String,
    thoughts: String,
    resumed: bool,
    end: Result<TurnEnd, AgentError>,
}

impl Said {
    fn error(&self) -> &str {
        &self.end.as_ref().expect_err("a failure").message
    }
}

fn config(flags: &[&str]) -> Config {
    let command = ["python3", AGENT].iter().chain(flags).map(|word| (*word).to_owned()).collect();
    let program = program::Config { command, memory: 1 << 30, tasks: 256, ..Default::default() };
    let idle = Duration::from_secs(600);
    Config { program, permission: Permission::Deny, idle, max_live: 2, timeout: Duration::from_secs(10) }
}

impl World {
    fn new(config: Config) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let around = Surroundings::in_directory(dir.path());
        let acp = Acp::new("fake", config.clone(), around.clone());
        Self { dir, around, acp, config, memory: Default::default() }
    }

    fn plain() -> Self {
        Self::new(config(&[]))
    }

    fn workspace(&self) -> PathBuf {
        self.dir.path().join("workspaces/fake")
    }

    /// What happened to the agent, a line each, without the pids.
    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.workspace().join("log")).unwrap_or_default();
        text.lines().map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
    }

    async fn await_log(&self, line: &str) {
        let logged = async {
            while !self.log().iter().any(|logged| logged == line) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, logged).await.unwrap_or_else(|_| panic!("no '{line}' in {:?}", self.log()));
    }

    fn prompt(&self, session: &str, text: &str) -> Prompt {
        Prompt {
            session: session.parse().expect("a session"),
            turn: TurnId::new(),
            memory: self.memory.lock().expect("not poisoned").clone(),
            instructions: None,
            messages: vec![Message::user(text)],
        }
    }

    /// Hears what is reported until `enough`, or to the end.
    async fn hear(&self, acp: &Acp, prompt: Prompt, enough: impl Fn(&str) -> bool) -> Said {
        let (events, mut heard) = Events::channel();
        let (mut text, mut thoughts, mut resumed) = (String::new(), String::new(), false);
        let mut work = Box::pin(acp.turn(prompt, events));
        let mut end = None;
        loop {
            tokio::select! {
                result = &mut work, if end.is_none() => end = Some(result),
                report = heard.recv() => match report {
                    None => break,
                    Some(Report::Said(TurnEvent::Text(piece))) => text.push_str(&piece),
                    Some(Report::Said(TurnEvent::Thought(piece))) => thoughts.push_str(&piece),
                    Some(Report::Resumed) => resumed = true,
                    Some(Report::Remember(memory, stored)) => {
                        *self.memory.lock().expect("not poisoned") = Some(memory);
                        stored.send(()).expect("somebody waits");
                    }
                },
            }
            if enough(&text)
                && self.memory.lock().expect("not poisoned").as_ref().is_some_and(|m| m.contains("running"))
            {
                // As in a crash: nothing of it is dropped in order.
                std::mem::forget(work);
                let end = Ok(TurnEnd { finish: Finish::Stop, usage: None });
                return Said { text, thoughts, resumed, end };
            }
        }
        let end = match end {
            Some(end) => end,
            None => work.await,
        };
        Said { text, thoughts, resumed, end }
    }

    async fn ask_in(&self, session: &str, text: &str) -> Said {
        let turn = self.hear(&self.acp, self.prompt(session, text), |_| false);
        tokio::time::timeout(PATIENCE, turn).await.expect("in time")
    }

    async fn ask(&self, text: &str) -> Said {
        self.ask_in("s", text).await
    }

    async fn text(&self, text: &str) -> String {
        let said = self.ask(text).await;
        assert!(said.end.is_ok(), "{said:?}");
        said.text
    }
}

#[tokio::test]
async fn turns_of_a_session_are_one_conversation_with_one_program() {
    let world = World::plain();
    assert_eq!(world.text("say eins").await, "eins");
    assert_eq!(world.text("history").await, "[\"say eins\"]");
    assert_eq!(world.text("pid").await, world.text("pid").await);
    assert_ne!(world.text("pid").await, world.ask_in("other", "pid").await.text);
    assert_eq!(world.text("dribble").await, "grüße €😀");
    assert_eq!(world.text("interleave").await, "yours");
    let prompt = Prompt { instructions: Some("be brief".into()), ..world.prompt("s", "texts") };
    assert_eq!(world.hear(&world.acp, prompt, |_| false).await.text, "[\"be brief\", \"texts\"]");
    let said = world.ask("tools").await;
    assert_eq!(said.text, "Looking.\n\nSeen.");
    assert_eq!(said.thoughts, "hm\ntool: Look (pending)\ntool: Look (completed)\n");
    let usage = Some(Usage { input_tokens: 11, output_tokens: 7 });
    assert_eq!(said.end, Ok(TurnEnd { finish: Finish::Stop, usage }));
}

#[tokio::test]
async fn the_environment_is_built_and_not_ours() {
    let mut config = config(&[]);
    config.program.environment.0.insert("LANG".into(), "de_DE.UTF-8".into());
    let world = World::new(config);
    let environment: BTreeMap<String, String> = serde_json::from_str(&world.text("env").await).expect("JSON");
    let mut names: Vec<_> = environment.keys().map(String::as_str).filter(|name| *name != "LC_CTYPE").collect();
    names.sort_unstable();
    // PWD is the shell's, through which it is started.
    assert_eq!(names, ["HERMES_INSTANCE", "HERMES_SESSION", "HOME", "LANG", "PATH", "PWD"]);
    assert_eq!((environment["HERMES_SESSION"].as_str(), environment["LANG"].as_str()), ("s", "de_DE.UTF-8"));
    assert_eq!(environment["HOME"], world.workspace().display().to_string());
}

#[tokio::test]
async fn what_needs_permission_is_denied_unless_configured_and_files_are_not_ours() {
    let world = World::plain();
    let all = "permit allow_always allow_once reject_always reject_once";
    let said = world.ask(all).await;
    assert_eq!(said.text, "{\"outcome\": {\"optionId\": \"id-reject_once\", \"outcome\": \"selected\"}}");
    assert_eq!(said.thoughts, "permission: rm -rf (denied)\n");
    assert_eq!(world.text("permit allow_once").await, "{\"outcome\": {\"outcome\": \"cancelled\"}}");
    assert_eq!(world.text("read").await, "-32601");
    let world = World::new(Config { permission: Permission::AllowOnce, ..config(&[]) });
    assert!(world.text(all).await.contains("id-allow_once"));
    assert!(world.text("permit allow_always reject_once").await.contains("id-reject_once"), "once is not always");
}

#[tokio::test]
async fn the_ends_of_a_turn_are_told_apart() {
    let world = World::plain();
    let before = world.text("pid").await;
    assert_eq!(world.ask("long").await.end, Ok(TurnEnd { finish: Finish::Length, usage: None }));
    assert_eq!(world.ask("refuse").await.error(), "the agent refuses to go on with this");
    assert_eq!(world.ask("fail").await.error(), "the agent failed: Internal error: no credit");
    assert_eq!(world.text("pid").await, before, "an agent that says no goes on");
}

#[tokio::test]
async fn an_agent_that_breaks_is_followed_by_one_that_remembers() {
    let world = World::new(Config { timeout: Duration::from_secs(1), ..config(&[]) });
    assert_eq!(world.text("say hello").await, "hello");
    let breaks = [
        ("crash", "the agent has failed with exit status 3: first line; out of paper"),
        ("die", "the agent has failed with exit status 4"),
        ("garbage", "the agent said what is not its protocol (no JSON object): Loading model..."),
        ("flood", "the agent said a line of more than 4194304 bytes"),
        ("hang", "the agent said nothing for 1s"),
        ("mute", "the agent said nothing for 1s"),
    ];
    for (word, error) in breaks {
        let said = world.ask(word).await;
        assert_eq!((said.error(), said.end.clone().map_err(|e| e.disposition)), (error, Err(Disposition::Reject)));
        let history = world.text("history").await;
        assert!(history.starts_with("[\"say hello\"") && history.contains(word), "{history}");
    }
    assert_eq!(world.log().iter().filter(|line| *line == "session/load").count(), breaks.len());
    assert_eq!(world.log().iter().filter(|line| *line == "new").count(), 1);
}

#[tokio::test]
async fn a_conversation_is_restored_in_the_way_that_the_agent_has() {
    for (flags, expected, history) in [
        (&["--resume"][..], "session/resume", "[\"say hello\"]"),
        (&["--no-load"][..], "new", "[]"),
        (&[][..], "session/load", "[\"say hello\"]"),
    ] {
        let world = World::new(config(flags));
        world.text("say hello").await;
        let acp = Acp::new("fake", world.config.clone(), world.around.clone());
        let said = world.hear(&acp, world.prompt("s", "history"), |_| false).await;
        assert_eq!(said.text, history, "{flags:?}");
        assert!(world.log().ends_with(&[expected, "asked"].map(str::to_owned)), "{flags:?}: {:?}", world.log());
    }
}

#[tokio::test]
async fn a_conversation_that_kills_the_agent_is_given_up_in_the_end() {
    let world = World::plain();
    world.text("say hello").await;
    let acp = Acp::new("fake", config(&["--fail-load"]), world.around.clone());
    let ask = || world.hear(&acp, world.prompt("s", "say on"), |_| false);
    for _ in 0..MAX_DEADLY_RESTORES {
        let said = ask().await;
        assert!(said.end.as_ref().is_err_and(AgentError::may_be_repeated), "{said:?}");
        assert_eq!(said.error(), "the agent has failed with exit status 5");
    }
    let said = ask().await;
    assert_eq!(said.text, "on", "{said:?}");
}

#[tokio::test]
async fn a_session_that_begins_anew_is_a_new_conversation() {
    let world = World::plain();
    world.text("say hello").await;
    *world.memory.lock().expect("not poisoned") = None;
    assert_eq!(world.text("history").await, "[]");
}

#[tokio::test]
async fn a_dropped_turn_is_cancelled_and_the_next_one_waits_for_that() {
    let world = World::plain();
    let before = world.text("pid").await;
    {
        let slow = world.hear(&world.acp, world.prompt("s", "slow"), |_| false);
        tokio::select! {
            said = slow => panic!("{said:?}"),
            () = world.await_log("slow") => {}
        }
    }
    assert_eq!(world.text("pid").await, before, "the same program goes on");
    assert!(world.log().ends_with(&["slow", "cancel", "cancelled", "asked"].map(str::to_owned)), "{:?}", world.log());
}

#[tokio::test]
async fn what_a_dead_gateway_left_behind_is_read_to_its_end_and_not_asked_again() {
    let world = World::plain();
    world.text("say hello").await;
    let prompt = world.prompt("s", "slow");
    let turn = prompt.turn;
    let first = world.hear(&world.acp, prompt, |text| !text.is_empty()).await;
    assert_eq!(first.text, "one ");
    std::fs::write(world.workspace().join("go"), "").expect("written");
    // The next life: nothing is left but the worker and what was remembered.
    let acp = Acp::new("fake", world.config.clone(), world.around.clone());
    let again = Prompt { turn, ..world.prompt("s", "slow") };
    let said = world.hear(&acp, again, |_| false).await;
    assert_eq!((said.text.as_str(), said.resumed), ("one two", true), "{said:?}");
    let said = world.hear(&acp, world.prompt("s", "history"), |_| false).await;
    assert_eq!(said.text, "[\"say hello\", \"slow\"]", "asked once, and the conversation goes on");
    assert_eq!(world.log().iter().filter(|line| *line == "started").count(), 1);
}

#[tokio::test]
async fn there_are_never_more_programs_than_allowed_and_the_longest_idle_makes_room() {
    let world = World::plain();
    let pids = |world: &World| {
        let text = std::fs::read_to_string(world.workspace().join("log")).unwrap_or_default();
        let pids = text.lines().filter_map(|line| line.strip_prefix("started ")).map(str::to_owned);
        pids.filter(|pid| std::path::Path::new("/proc").join(pid).exists()).collect::<Vec<_>>()
    };
    let few = async |most: usize| {
        // One that was ended is there until its parent has heard of it.
        let gone = async {
            while pids(&world).len() > most {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("no more than allowed");
    };
    let mut seen = Vec::new();
    for session in ["a", "b", "c", "a"] {
        // Each session has a memory of its own.
        *world.memory.lock().expect("not poisoned") = None;
        seen.push(world.ask_in(session, "pid").await.text);
        few(2).await;
    }
    assert_ne!(seen[0], seen[3], "the first one made room");
    let mut alive = pids(&world);
    alive.sort();
    let mut expected = vec![seen[2].clone(), seen[3].clone()];
    expected.sort();
    assert_eq!(alive, expected);
}

#[tokio::test]
async fn who_finds_all_programs_at_work_waits_for_one() {
    let world = World::new(Config { max_live: 1, ..config(&[]) });
    let second = async {
        world.await_log("slow").await;
        let prompt = Prompt { memory: None, ..world.prompt("b", "say mine") };
        let (first_is_through, turn) = (world.workspace().join("go"), world.hear(&world.acp, prompt, |_| false));
        let mut turn = Box::pin(turn);
        // It comes as far as it can, which is not far.
        assert!(
            futures_util::FutureExt::now_or_never(&mut turn).is_none()
                && world.log().iter().filter(|l| *l == "new").count() == 1
        );
        std::fs::write(first_is_through, "").expect("written");
        turn.await
    };
    let both = async { tokio::join!(world.ask_in("a", "slow"), second) };
    let (first, second) = tokio::time::timeout(PATIENCE, both).await.expect("in time");
    assert_eq!((first.text.as_str(), second.text.as_str()), ("one two", "mine"));
}

#[tokio::test]
async fn at_a_hard_stop_a_program_that_cannot_outlive_the_gateway_is_stopped() {
    let world = World::plain();
    let mut slow = Box::pin(world.hear(&world.acp, world.prompt("s", "slow"), |_| false));
    tokio::select! {
        said = &mut slow => panic!("{said:?}"),
        () = world.await_log("slow") => {}
    }
    world.around.stop.harden();
    drop(slow);
    assert!(world.around.tasks.join(PATIENCE).await.is_empty());
    assert!(!world.log().contains(&"cancel".into()), "{:?}", world.log());
    assert_eq!(world.around.workers.sweep(&Default::default()).await.expect("swept"), Vec::<String>::new());
}

#[tokio::test]
async fn idle_programs_are_stopped_and_a_closed_agent_leaves_none() {
    let world = World::new(Config { idle: Duration::from_millis(50), ..config(&[]) });
    let gone = |pid: String| async move {
        let path = PathBuf::from("/proc").join(pid);
        let gone = async {
            while path.exists() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("gone in time");
    };
    gone(world.text("pid").await).await;
    let World { acp, around, dir: _dir, .. } = World::plain();
    let (events, heard) = Events::channel();
    let session: SessionId = "s".parse().expect("a session");
    let messages = vec![Message::user("say x")];
    let prompt = Prompt { session, turn: TurnId::new(), memory: None, instructions: None, messages };
    let listen = async move {
        let mut heard = heard;
        while let Some(report) = heard.recv().await {
            if let Report::Remember(_, stored) = report {
                stored.send(()).expect("somebody waits");
            }
        }
    };
    let (end, ()) = tokio::join!(acp.turn(prompt, events), listen);
    end.expect("answered");
    drop(acp);
    let late = around.tasks.join(PATIENCE).await;
    assert!(late.is_empty(), "{late:?}");
    assert_eq!(around.workers.sweep(&Default::default()).await.expect("swept"), Vec::<String>::new());
}
