//! Configuration as it is written: TOML files, merged, each value knowing where it stands.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Problem;
use crate::service::directories::Directories;

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub file: Arc<Path>,
    /// Line and column, from 1.
    pub place: (usize, usize),
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct Node {
    pub value: Value,
    pub origin: Origin,
}

/// What TOML knows, as far as this configuration uses it.
#[derive(Debug, Clone)]
pub enum Value {
    Text(String),
    Integer(i64),
    Flag(bool),
    List(Vec<Node>),
    Table(Table),
    /// Something else; the word for it.
    Other(&'static str),
}

impl Value {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Flag(_) => "a boolean",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(word) => word,
        }
    }
}

/// Keys and their values.
pub type Table = BTreeMap<String, Node>;

/// Reads the main file and its drop-ins in the order of their names, and merges them.
pub fn read(directories: &Directories, problems: &mut Vec<Problem>) -> Table {
    let mut root = Table::new();
    let main = read_file(&directories.config_file, directories.config_named, problems);
    merge(&mut root, main);
    for file in drop_ins(&directories.config_drop_ins, problems) {
        let drop_in = read_file(&file, true, problems);
        merge(&mut root, drop_in);
    }
    root
}

fn drop_ins(directory: &Path, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(e) => {
            problems.push(whole_file(directory, format!("cannot be read: {e}")));
            return Vec::new();
        }
    };
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    files
}

fn read_file(path: &Path, must_exist: bool, problems: &mut Vec<Problem>) -> Table {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound && !must_exist => return Table::new(),
        Err(e) => {
            problems.push(whole_file(path, format!("cannot be read: {e}")));
            return Table::new();
        }
    };
    let Ok(text) = String::from_utf8(bytes) else {
        problems.push(whole_file(path, "is not UTF-8 text".into()));
        return Table::new();
    };
    let source = Source { file: path.into(), text: &text };
    let (table, errors) = DeTable::parse_recoverable(&text);
    for error in errors {
        let place = error.span().map(|span| source.place(span.start));
        let message = error.message().replace('\n', "; ");
        problems.push(Problem { file: path.to_owned(), place, key: String::new(), message });
    }
    source.table(table.get_ref())
}

fn whole_file(path: &Path, message: String) -> Problem {
    Problem { file: path.to_owned(), place: None, key: String::new(), message }
}

struct Source<'a> {
    file: Arc<Path>,
    text: &'a str,
}

impl Source<'_> {
    fn table(&self, table: &DeTable<'_>) -> Table {
        let node = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
            let key: &std::borrow::Cow<'_, str> = key.get_ref();
            (key.to_string(), self.node(value))
        };
        table.iter().map(node).collect()
    }

    fn node(&self, value: &Spanned<DeValue<'_>>) -> Node {
        let origin = Origin { file: self.file.clone(), place: self.place(value.span().start) };
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Integer(number),
                Err(_) => Value::Other("an integer beyond all bounds"),
            },
            DeValue::Array(values) => Value::List(values.iter().map(|value| self.node(value)).collect()),
            DeValue::Table(table) => Value::Table(self.table(table)),
            DeValue::Float(_) => Value::Other("a float"),
            DeValue::Boolean(flag) => Value::Flag(*flag),
            DeValue::Datetime(_) => Value::Other("a date"),
        };
        Node { value, origin }
    }

    fn place(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        (before.matches('\n').count() + 1, line.chars().count() + 1)
    }
}

/// Tables are merged key by key; anything else is replaced.
fn merge(into: &mut Table, from: Table) {
    for (key, node) in from {
        match (into.get_mut(&key).map(|old| &mut old.value), node) {
            (Some(Value::Table(old)), Node { value: Value::Table(new), .. }) => merge(old, new),
            (_, node) => drop(into.insert(key, node)),
        }
    }
}
