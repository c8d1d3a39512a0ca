//! Holds the table of layers in `src/lib.rs` against the sources: imports only point down.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module's row, counted from the bottom.
fn rows() -> BTreeMap<String, usize> {
    let lib = include_str!("../src/lib.rs");
    let table: Vec<_> = lib.lines().filter_map(|line| line.strip_prefix("//! | ")).skip(1).collect();
    let mut rows = BTreeMap::new();
    for (height, row) in table.iter().rev().enumerate() {
        let modules = row.split('|').nth(1).expect("a column of modules");
        for module in modules.split(',').map(|name| name.trim().trim_matches('`')) {
            assert!(rows.insert(module.to_owned(), height).is_none(), "{module} stands in two rows");
        }
    }
    rows
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("the sources are there").map(|entry| entry.expect("an entry").path());
    entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The modules that a source names by `crate::` or `hermes_gateway::`.
fn imports(text: &str) -> Vec<String> {
    let after = |root: &'static str| text.match_indices(root).map(move |(at, _)| &text[at + root.len()..]);
    let name = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let code = after("crate::").chain(after("hermes_gateway::"));
    let mut names: Vec<_> = code.map(name).filter(|name| !name.is_empty()).collect();
    // `use crate::{a, b::C};`
    for list in after("crate::{").filter_map(|rest| rest.split_once("};")) {
        names.extend(list.0.split(',').map(|item| name(item.trim())));
    }
    names
}

#[test]
fn imports_only_point_down() {
    let rows = rows();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut upward = Vec::new();
    for path in sources(&root) {
        let inside = path.strip_prefix(&root).expect("below src");
        let first = inside.components().next().expect("a name").as_os_str().to_string_lossy();
        let module = first.trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        let here = *rows.get(module).unwrap_or_else(|| panic!("{module} has no row in the table of layers"));
        let text = fs::read_to_string(&path).expect("readable");
        for import in imports(&text) {
            let Some(there) = rows.get(&import) else { continue };
            if import != module && *there >= here {
                upward.push(format!("{}: {module} uses {import}", inside.display()));
            }
        }
    }
    assert!(upward.is_empty(), "imports that do not point down:\n{}", upward.join("\n"));
}

#[test]
fn the_scan_sees_both_ways_of_writing_an_import() {
    assert_eq!(imports("use crate::cli::main;\nuse crate::{agent, http::Api};"), ["cli", "agent", "http"]);
}

#[test]
fn files_stay_small_enough_to_be_read_at_once() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in sources(&root) {
        let text = fs::read_to_string(&path).expect("readable");
        let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
        assert!(lines <= 500, "{} has {lines} lines before its tests", path.display());
    }
}
