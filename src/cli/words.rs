//! What people read on a terminal: times, ages, texts that came from anywhere, and where all of it goes.

use std::io::{ErrorKind, IsTerminal, Write};

use jiff::tz::TimeZone;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::Failure;
use crate::model::time::{Timestamp, in_words};

/// Prints all of it. Who reads only the beginning (`head`) has seen enough.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// How many columns there are; `None` where nothing needs clipping, for it is no terminal.
pub fn terminal_width() -> Option<usize> {
    let out = std::io::stdout();
    let size = out.is_terminal().then(|| rustix::termios::tcgetwinsize(&out).ok()).flatten()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// How long ago, or how long until then.
pub fn age(moment: Timestamp, now: Timestamp) -> String {
    if moment > now { format!("in {}", in_words(moment.since(now))) } else { in_words(now.since(moment)) }
}

/// A moment in the machine's time zone, with the zone's offset, and how long ago that was.
pub fn when(moment: Timestamp, now: Timestamp) -> String {
    let there = jiff::Timestamp::from_millisecond(moment.as_millis()).map(|m| m.to_zoned(TimeZone::system()));
    let there = there.map_or_else(|_| moment.to_string(), |m| m.strftime("%Y-%m-%d %H:%M:%S %:z").to_string());
    let age = age(moment, now);
    if moment > now { format!("{there}, {age}") } else { format!("{there}, {age} ago") }
}

/// A text of several lines that does nothing to a terminal: it may come from anybody.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// The same on one line, in at most so many columns.
pub fn one_line(text: &str, columns: Option<usize>) -> String {
    let line: Vec<_> = text.split_whitespace().map(plain).collect();
    let line = line.join(" ");
    match columns {
        Some(columns) if line.width() > columns => {
            let mut left = columns.saturating_sub(1);
            let fits = |c: &char| {
                let width = c.width().unwrap_or(0);
                let fits = width <= left;
                left = left.saturating_sub(width);
                fits
            };
            let mut clipped: String = line.chars().take_while(fits).collect();
            clipped.push('…');
            clipped
        }
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_anybody_said_does_nothing_to_a_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\r\nc\u{9b}d"), "a\u{fffd}[2Jb\u{fffd}\nc\u{fffd}d");
        assert_eq!(one_line("  two\n\n lines\tand\u{7} ", None), "two lines and\u{fffd}");
    }

    #[test]
    fn lines_are_clipped_by_columns_not_by_letters() {
        assert_eq!(one_line("abcdef", Some(6)), "abcdef");
        assert_eq!(one_line("abcdefg", Some(6)), "abcde…");
        assert_eq!(one_line("日本語です", Some(6)), "日本…");
        assert_eq!(one_line("x", Some(0)), "…");
    }

    #[test]
    fn ages_go_both_ways() {
        let at = Timestamp::from_millis;
        assert_eq!((age(at(0), at(90_000)), age(at(90_000), at(0))), ("1m 30s".into(), "in 1m 30s".into()));
        assert!(when(at(0), at(90_000)).ends_with(", 1m 30s ago"));
    }
}
