//! How a session takes messages: what happens to one that comes while a turn runs, and when the conversation begins
//! anew.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp as Instant, civil};

use crate::model::time::Timestamp;

/// What a message does that comes while its session has a turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Busy {
    /// It waits for its own turn.
    #[default]
    Queue,
    /// It ends the turns before it, and takes their place.
    Interrupt,
    /// It is added to the running turn, if its agent can take it; else it waits.
    Steer,
}

impl Busy {
    /// Every way, for look-ups by label.
    pub const ALL: [Self; 3] = [Self::Queue, Self::Interrupt, Self::Steer];

    /// The word in the configuration.
    pub fn label(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Interrupt => "interrupt",
            Self::Steer => "steer",
        }
    }
}

/// When a conversation begins anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reset {
    /// Only when somebody asks for it.
    #[default]
    Never,
    /// After a silence of this length.
    Idle(Duration),
    /// Every day at this hour (0 to 23) of the machine's time zone.
    Daily(i8),
}

/// The rules of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// What a message does that comes while a turn runs.
    pub busy: Busy,
    /// Messages that follow each other within this time are one turn.
    pub debounce: Duration,
    /// When the conversation begins anew.
    pub reset: Reset,
}

impl Reset {
    /// Whether a conversation that was last active at `last` is over at `now`.
    pub fn is_over(self, last: Timestamp, now: Timestamp, zone: &TimeZone) -> bool {
        match self {
            Self::Never => false,
            Self::Idle(silence) => now.since(last) >= silence,
            Self::Daily(hour) => last_hour(now, hour, zone).is_some_and(|boundary| last.as_millis() < boundary),
        }
    }
}

/// The last time, before `now`, that a clock on the wall showed this full hour; in milliseconds since the epoch. An
/// hour that a change of summer time skips counts from when it would have been.
fn last_hour(now: Timestamp, hour: i8, zone: &TimeZone) -> Option<i64> {
    let now_there = Instant::from_millisecond(now.as_millis()).ok()?.to_zoned(zone.clone());
    let at = |date: civil::Date| date.at(hour, 0, 0, 0).to_zoned(zone.clone()).ok();
    let today = at(now_there.date())?;
    let last = if today <= now_there { today } else { at(now_there.date().yesterday().ok()?)? };
    Some(last.timestamp().as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::from_millis(text.parse::<Instant>().expect("a time").as_millisecond())
    }

    #[test]
    fn a_daily_hour_divides_conversations_and_nothing_else_does() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let four = Reset::Daily(4);
        // 04:00 there is 02:00 UTC.
        for (last, now, over) in [
            ("2026-03-01T01:59:00Z", "2026-03-01T02:00:00Z", true),
            ("2026-03-01T02:00:00Z", "2026-03-02T01:59:59Z", false),
            ("2026-03-01T02:00:00Z", "2026-03-02T02:00:00Z", true),
            ("2026-02-20T12:00:00Z", "2026-03-01T01:00:00Z", true),
            // The clock went back: nothing is over.
            ("2026-03-02T12:00:00Z", "2026-03-01T12:00:00Z", false),
        ] {
            assert_eq!(four.is_over(at(last), at(now), &zone), over, "{last} {now}");
        }
        assert!(!Reset::Never.is_over(at("2000-01-01T00:00:00Z"), at("2026-03-01T02:00:00Z"), &zone));
    }

    proptest! {
        #[test]
        fn silence_counts_from_the_last_word_and_a_clock_that_goes_back_ends_nothing(
            last in 0i64..4_000_000_000_000, later in 0i64..1_000_000_000, idle in 1u64..1_000_000,
        ) {
            let (reset, zone) = (Reset::Idle(Duration::from_millis(idle)), TimeZone::UTC);
            let (last, now) = (Timestamp::from_millis(last), Timestamp::from_millis(last + later));
            prop_assert_eq!(reset.is_over(last, now, &zone), later as u64 >= idle);
            prop_assert_eq!(reset.is_over(now, last, &zone), false);
        }
    }
}
