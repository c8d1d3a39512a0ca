//! The agent kind `command` with shell scripts.

use std::sync::Mutex;

use super::*;
use crate::agent::Report;
use crate::model::disposition::Disposition;
use crate::model::id::TurnId;
use crate::model::message::Message;
use crate::model::turn::Usage;

/// Longest time for anything to become true.
const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    dir: tempfile::TempDir,
    around: Surroundings,
    /// What the gateway would have stored.
    memory: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Said {
    text: String,
    thoughts: String,
    #[expect(dead_code, reason = "shown when a test fails")]
    resumed: bool,
    end: Result<TurnEnd, AgentError>,
}

fn config(script: &str) -> Config {
    let command = ["sh", "-c", script, "sh", PLACEHOLDER].map(str::to_owned).into();
    let program = program::Config { command, memory: 1 << 30, tasks: 64, ..Default::default() };
    Config { program, input: InputBy::Argument, output: OutputAs::Text, timeout: Duration::from_secs(10) }
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let around = Surroundings::in_directory(dir.path());
        Self { dir, around, memory: Mutex::default() }
    }

    fn prompt(&self, text: &str) -> Prompt {
        let memory = self.memory.lock().expect("not poisoned").clone();
        let (session, messages) = ("s".parse().expect("a session"), vec![Message::user(text)]);
        Prompt { session, turn: TurnId::new(), memory, instructions: None, messages }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("workspaces/script").join(name)
    }

    async fn await_file(&self, name: &str) {
        let there = async {
            while !self.file(name).exists() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, there).await.unwrap_or_else(|_| panic!("no {name}"));
    }

    async fn hear(&self, config: Config, prompt: Prompt) -> Said {
        let command = Command::new("script", config, self.around.clone());
        let (events, mut heard) = Events::channel();
        let listen = async {
            let (mut text, mut thoughts, mut resumed) = (String::new(), String::new(), false);
            while let Some(report) = heard.recv().await {
                match report {
                    Report::Said(TurnEvent::Text(piece)) => text.push_str(&piece),
                    Report::Said(TurnEvent::Thought(piece)) => thoughts.push_str(&piece),
                    Report::Resumed => resumed = true,
                    Report::Remember(memory, stored) => {
                        *self.memory.lock().expect("not poisoned") = Some(memory);
                        stored.send(()).expect("somebody waits");
                    }
                }
            }
            (text, thoughts, resumed)
        };
        let turn = async { tokio::join!(command.turn(prompt, events), listen) };
        let (end, (text, thoughts, resumed)) = tokio::time::timeout(PATIENCE, turn).await.expect("in time");
        Said { text, thoughts, resumed, end }
    }

    async fn run(&self, config: Config) -> Said {
        self.hear(config, self.prompt("hello world")).await
    }
}

fn error(said: &Said) -> (&str, Disposition) {
    let error = said.end.as_ref().expect_err("a failure");
    (&error.message, error.disposition)
}

#[tokio::test]
async fn a_message_goes_in_by_either_way_and_the_reply_is_what_is_printed() {
    let world = World::new();
    assert_eq!(world.run(config("printf '%s\\n\\n' \"$1, you\"")).await.text, "hello world, you");
    let stdin = Config { input: InputBy::Stdin, ..config("cat; echo; echo \"$1\"") };
    assert_eq!(world.run(stdin).await.text, "hello world\n{message}");
    let prompt = Prompt { instructions: Some("be brief".into()), ..world.prompt("x") };
    let turn = prompt.turn;
    let said = world.hear(config("env | sort | grep -v -e ^PWD -e ^_= -e ^SHLVL -e ^OLDPWD"), prompt).await;
    let home = world.dir.path().join("workspaces/script");
    let expected = format!(
        "HERMES_INSTANCE=test\nHERMES_INSTRUCTIONS=be brief\nHERMES_SESSION=s\nHERMES_TURN={turn}\nHOME={}\n\
         LANG=C.UTF-8\nPATH=/usr/local/bin:/usr/bin:/bin",
        home.display()
    );
    assert_eq!(said.text, expected);
}

#[tokio::test]
async fn lines_of_json_are_events() {
    let world = World::new();
    let script = r#"echo '{"thought":"hm"}'; echo '{"text":"a"}'; echo '{"text":"b","x":1}'
        echo '{"usage":{"input_tokens":3,"output_tokens":4}}'"#;
    let json = |script: &str| Config { output: OutputAs::Json, ..config(script) };
    let said = world.run(json(script)).await;
    assert_eq!((said.text.as_str(), said.thoughts.as_str()), ("ab", "hm"));
    let usage = Some(Usage { input_tokens: 3, output_tokens: 4 });
    assert_eq!(said.end, Ok(TurnEnd { finish: Finish::Stop, usage }));
    let said = world.run(json("echo '{\"error\":\"no credit\"}'")).await;
    assert_eq!(error(&said), ("the agent's program failed: no credit", Disposition::Reject));
    let said = world.run(json("echo hello; sleep 60")).await;
    assert!(error(&said).0.contains("no JSON object of its kind"), "{said:?}");
}

#[tokio::test]
async fn a_failure_is_told_with_the_status_and_the_last_words() {
    let world = World::new();
    let said = world.run(config("echo half; echo out of paper >&2; exit 3")).await;
    assert_eq!(error(&said), ("the agent has failed with exit status 3: out of paper", Disposition::Reject));
    assert_eq!(said.text, "half");
    let said = world.run(config("exit 75")).await;
    assert_eq!(error(&said).1, Disposition::Retry { after: None });
    assert_eq!(world.memory.lock().expect("not poisoned").as_deref(), Some("{}"), "the next attempt is a new one");
    let said = world.run(config("kill -9 $$")).await;
    assert_eq!(error(&said).0, "the agent was ended by SIGKILL");
    let said = world.run(Config { timeout: Duration::from_millis(50), ..config("sleep 60") }).await;
    assert!(error(&said).0.starts_with("the agent ran for too long"), "{said:?}");
    let mut missing = config("");
    missing.program.command[0] = "/nonexistent/program".into();
    let said = world.run(missing).await;
    assert!(error(&said).0.contains("cannot be started") && said.end.is_err_and(|e| e.may_be_repeated()));
    let mut nowhere = config("");
    nowhere.program.directory = Some("/nonexistent".into());
    assert_eq!(error(&world.run(nowhere).await).1, Disposition::Halt);
}

#[tokio::test]
async fn what_does_not_fit_into_an_argument_is_refused_before_anything_starts() {
    let world = World::new();
    let said = world.hear(config("echo started"), world.prompt(&"x".repeat(200_000))).await;
    assert!(error(&said).0.contains("longer than"), "{said:?}");
    let said =
        world.hear(Config { input: InputBy::Stdin, ..config("wc -c") }, world.prompt(&"x".repeat(200_000))).await;
    assert_eq!(said.text, "200000");
}

#[tokio::test]
async fn a_dropped_turn_takes_its_program_with_it() {
    let world = World::new();
    {
        let turn = world.run(config("echo $$ >pid.new; mv pid.new pid; sleep 60"));
        tokio::select! {
            said = turn => panic!("{said:?}"),
            () = world.await_file("pid") => {}
        }
    }
    assert!(world.around.tasks.join(PATIENCE).await.is_empty());
    let pid = std::fs::read_to_string(world.file("pid")).expect("a pid");
    assert!(!std::path::Path::new("/proc").join(pid.trim()).exists());
}
