//! `[agents.NAME]` of the kinds that are programs: `command` and `acp`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::Problem;
use super::super::section::Section;
use super::super::tree::{Node, Origin, Value};
use super::{DAY, MINUTE, SECOND};
use crate::agent::command::{self, InputBy, OutputAs, PLACEHOLDER};
use crate::agent::program::{self, Environment, OWN_VARIABLES};
use crate::agent::{acp, acp::Permission};

/// A program for each turn.
pub fn command(agent: &mut Section<'_>, name: &str, place: &Origin, problems: &mut Vec<Problem>) -> command::Config {
    let program = program(agent, name, place, problems);
    let input = word(agent, "input", &[("stdin", InputBy::Stdin), ("argument", InputBy::Argument)], problems);
    let input = input.unwrap_or_default();
    let has_place = program.command.iter().skip(1).any(|argument| argument.contains(PLACEHOLDER));
    let wanted = match (input, has_place) {
        (InputBy::Argument, false) => Some(format!("has no {PLACEHOLDER} among its arguments, where the message goes")),
        (InputBy::Stdin, true) => Some(format!("has {PLACEHOLDER}, which is replaced with input = \"argument\" only")),
        _ => None,
    };
    if let (Some(wanted), Some(node)) = (wanted, agent.node("command")) {
        agent.note("command", &node.origin, wanted, problems);
    }
    let output = word(agent, "output", &[("text", OutputAs::Text), ("json", OutputAs::Json)], problems);
    let timeout = agent.duration("timeout", SECOND..=7 * DAY, 10 * MINUTE, problems);
    command::Config { program, input, output: output.unwrap_or_default(), timeout }
}

/// A program that speaks the Agent Client Protocol.
pub fn acp(agent: &mut Section<'_>, name: &str, place: &Origin, problems: &mut Vec<Problem>) -> acp::Config {
    let permissions = [("deny", Permission::Deny), ("allow_once", Permission::AllowOnce)];
    acp::Config {
        program: program(agent, name, place, problems),
        permission: word(agent, "permission", &permissions, problems).unwrap_or_default(),
        idle: agent.duration("idle", SECOND..=30 * DAY, 10 * MINUTE, problems),
        max_live: agent.number("max_live", 1..=1000, 8, problems),
        timeout: agent.duration("timeout", SECOND..=DAY, 10 * MINUTE, problems),
    }
}

fn program(agent: &mut Section<'_>, name: &str, place: &Origin, problems: &mut Vec<Problem>) -> program::Config {
    let command =
        agent.parsed("command", "a list of a program and its arguments, like [\"prog\", \"-x\"]", problems, words);
    if agent.node("command").is_none() {
        agent.note("command", place, "is needed here and missing".into(), problems);
    }
    let directory = agent.parsed("directory", "an absolute path", problems, path);
    let writable = agent.parsed("writable", "a list of absolute paths", problems, |value| match value {
        Value::List(nodes) => nodes.iter().map(|node| path(&node.value)).collect(),
        _ => None,
    });
    let is_file_name = !name.starts_with('.') && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !is_file_name && agent.node("directory").is_none() {
        agent.note("directory", place, "is needed here: the agent's name is no name of a directory".into(), problems);
    }
    let cpu = agent.parsed("cpu", "percent of one processor, like \"150%\"", problems, |value| match value {
        Value::Text(text) => text.strip_suffix('%')?.parse().ok().filter(|percent| (1..=100_000).contains(percent)),
        _ => None,
    });
    program::Config {
        command: command.unwrap_or_default(),
        directory,
        writable: writable.unwrap_or_default(),
        environment: environment(agent, problems),
        memory: agent.size("memory", 1 << 20..=1 << 40, 1 << 30, problems) as u64,
        tasks: agent.number("tasks", 1..=1_000_000, 256, problems) as u64,
        cpu,
    }
}

fn path(value: &Value) -> Option<PathBuf> {
    match value {
        Value::Text(path) if path.starts_with('/') => Some(PathBuf::from(path)),
        _ => None,
    }
}

/// A program and its arguments. A zero byte could not be passed.
fn words(value: &Value) -> Option<Vec<String>> {
    let Value::List(nodes) = value else { return None };
    let word = |node: &Node| match &node.value {
        Value::Text(text) if !text.contains('\0') => Some(text.clone()),
        _ => None,
    };
    let words: Vec<_> = nodes.iter().map(word).collect::<Option<_>>()?;
    words.first().is_some_and(|program| !program.is_empty()).then_some(words)
}

fn environment(agent: &mut Section<'_>, problems: &mut Vec<Problem>) -> Environment {
    let node = agent.node("environment");
    let section = agent.below("environment", node, problems);
    let mut variables = BTreeMap::new();
    for (name, node) in section.entries() {
        let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if !starts_well || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            section.note(name, &node.origin, "is not a name that a variable can have".into(), problems);
        } else if OWN_VARIABLES.contains(&name.as_str()) {
            section.note(name, &node.origin, "is set by the gateway itself".into(), problems);
        } else if let Value::Text(text) = &node.value
            && !text.contains('\0')
        {
            variables.insert(name.clone(), text.clone());
        } else {
            section.problem(name, node, "a string", problems);
        }
    }
    Environment(variables)
}

/// One of these words.
fn word<T: Copy>(
    agent: &mut Section<'_>,
    key: &'static str,
    words: &[(&str, T)],
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let expected = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ");
    agent.parsed(key, &expected, problems, |value| match value {
        Value::Text(text) => words.iter().find(|(word, _)| word == text).map(|(_, meaning)| *meaning),
        _ => None,
    })
}
