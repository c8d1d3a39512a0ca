//! Columns for people: as wide as their widest cell; the last one takes what is left of the terminal.

use std::fmt::Write;

use unicode_width::UnicodeWidthStr;

use super::words::one_line;

/// Columns between two columns.
const GAP: usize = 2;
/// The last column is not clipped to less than this.
const LAST_MIN: usize = 20;

/// Rows under titles.
#[derive(Debug)]
pub struct Table {
    titles: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// No rows yet. Columns whose title begins with a space are aligned to the right, as numbers are.
    pub fn new(titles: &[&'static str]) -> Self {
        Self { titles: titles.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, with a cell for each title.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| one_line(cell, None)).collect());
    }

    /// All of it, in lines of at most `width` columns.
    pub fn render(&self, width: Option<usize>) -> String {
        let last = self.titles.len().saturating_sub(1);
        let widest = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width());
            cells.chain([self.titles[column].trim_start().width()]).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..last).map(widest).collect();
        let before: usize = widths.iter().map(|width| width + GAP).sum();
        let room = width.map(|width| width.saturating_sub(before).max(LAST_MIN));
        let titles: Vec<_> = self.titles.iter().map(|title| title.trim_start().to_owned()).collect();
        let mut text = String::new();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                // Writing to a String cannot fail.
                let _infallible = match widths.get(column) {
                    None => write!(line, "{}", one_line(cell, room)),
                    Some(width) => {
                        let pad = " ".repeat(width.saturating_sub(cell.width()));
                        match self.titles[column].starts_with(' ') {
                            true => write!(line, "{pad}{cell}{:GAP$}", ""),
                            false => write!(line, "{cell}{pad}{:GAP$}", ""),
                        }
                    }
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Names and values, one a line.
#[derive(Debug, Default)]
pub struct Facts(Vec<(&'static str, String)>);

impl Facts {
    /// Adds a fact.
    pub fn add(&mut self, name: &'static str, value: impl Into<String>) {
        self.0.push((name, one_line(&value.into(), None)));
    }

    /// Adds a fact if there is one.
    pub fn maybe(&mut self, name: &'static str, value: Option<impl Into<String>>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    /// All of them.
    pub fn render(&self) -> String {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        self.0.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_the_last_one_is_clipped() {
        let mut table = Table::new(&[" NUMBER", "TARGET", "TEXT"]);
        table.row(vec!["7".into(), "日本:1".into(), "a long text that does not fit at all".into()]);
        table.row(vec!["12345678".into(), "p:2".into(), "short\nand two lines".into()]);
        let expected =
            "  NUMBER  TARGET  TEXT\n       7  日本:1  a long text that do…\n12345678  p:2     short and two lines\n";
        assert_eq!(table.render(Some(38)), expected);
        assert!(table.render(None).contains("that does not fit at all\n"));
    }
}
