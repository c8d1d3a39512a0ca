//! Wall-clock time as it is stored: milliseconds since 1970-01-01 UTC.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment on the wall clock, in milliseconds since the epoch. For records and people; never for measuring durations.
///
/// As text, and so in JSON, it is RFC 3339 in UTC: `2026-03-01T11:03:11.250Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The present moment. A clock before 1970 counts as 1970.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// From milliseconds since the epoch, as stored.
    pub fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// The time since `earlier`; none if the clock went back meanwhile.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }

    /// The moment `wait` later.
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The moment `span` earlier.
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Whole seconds since the epoch, as the OpenAI API's `created` fields want them.
    pub fn as_secs(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Damaged rows are shown, too: what no calendar knows is shown as its end.
        let moment = jiff::Timestamp::from_millisecond(self.0);
        let moment = moment.unwrap_or(if self.0 < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX });
        // Always as long: the order of texts is the order of time.
        write!(f, "{moment:.3}")
    }
}

/// A text that is no moment in RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a time like 2026-03-01T11:03:11Z")]
pub struct InvalidTimestamp;

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        text.parse().map(|moment: jiff::Timestamp| Self(moment.as_millisecond())).map_err(|_| InvalidTimestamp)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A duration for people: its two largest units, `1h 30m`, `2.5s`, `350ms`.
pub fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, 0) => format!("{}ms", duration.as_millis()),
        (0, 0, 0, s) if duration.subsec_millis() >= 100 => format!("{s}.{}s", duration.subsec_millis() / 100),
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, 0) => format!("{m}m"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, 0, _) => format!("{h}h"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, 0, _, _) => format!("{d}d"),
        (d, h, _, _) => format!("{d}d {h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_survive_text() {
        let moment = Timestamp::from_millis(1_772_362_991_250);
        assert_eq!(moment.to_string(), "2026-03-01T11:03:11.250Z");
        assert_eq!(moment.to_string().parse(), Ok(moment));
        assert_eq!("2026-03-01T12:03:11.25+01:00".parse(), Ok(moment));
        assert_eq!("yesterday".parse::<Timestamp>(), Err(InvalidTimestamp));
        assert!(Timestamp::from_millis(i64::MAX).to_string().starts_with("9999-12-3"));
    }

    #[test]
    fn durations_read_well() {
        let cases = [(350, "350ms"), (2_500, "2.5s"), (30_000, "30s"), (60_000, "1m"), (90_000, "1m 30s")];
        for (millis, words) in cases {
            assert_eq!(in_words(Duration::from_millis(millis)), words);
        }
        assert_eq!(in_words(Duration::from_secs(5_400)), "1h 30m");
        assert_eq!(in_words(Duration::from_secs(100_000)), "1d 3h");
    }
}
