//! How long to wait before trying again: doubling, capped, with full jitter, and never before the other side allows it.

use std::time::Duration;

/// A way of spacing attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The longest possible first wait.
    pub first: Duration,
    /// The longest possible wait at all.
    pub cap: Duration,
    /// How many attempts there are in all, the first included.
    pub attempts: u32,
}

impl Backoff {
    /// The wait after failed attempt number `attempt` (from 1), or `None` when it was the last.
    ///
    /// `asked` is the delay that the other side named; it is a floor, also above the cap, for it knows better.
    /// `dice` in `0.0..=1.0` spreads the crowd; the caller rolls it, so that this stays a pure function.
    pub fn after(&self, attempt: u32, asked: Option<Duration>, dice: f64) -> Option<Duration> {
        if attempt >= self.attempts {
            return None;
        }
        let doublings = attempt.saturating_sub(1).min(31);
        let ceiling = self.first.saturating_mul(1 << doublings).min(self.cap);
        let jittered = ceiling.mul_f64(dice.clamp(0.0, 1.0));
        Some(jittered.max(asked.unwrap_or(Duration::ZERO)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), cap: Duration::from_secs(20), attempts: 4 };

    #[test]
    fn it_doubles_up_to_the_cap_and_ends() {
        let patient = Backoff { attempts: 100, ..BACKOFF };
        let waits: Vec<_> = (1..=8).map(|n| patient.after(n, None, 1.0).map(|d| d.as_millis())).collect();
        let expected = [500, 1000, 2000, 4000, 8000, 16000, 20000, 20000].map(Some);
        assert_eq!(waits, expected);
        assert_eq!(BACKOFF.after(4, None, 1.0), None);
    }

    proptest! {
        #[test]
        fn never_sooner_than_asked_and_never_later_than_the_cap_unless_asked(
            attempt in 1u32..200, asked in proptest::option::of(0u64..100_000), dice in 0.0f64..=1.0,
        ) {
            let patient = Backoff { attempts: u32::MAX, ..BACKOFF };
            let asked = asked.map(Duration::from_millis);
            let wait = patient.after(attempt, asked, dice).expect("attempts are left");
            prop_assert!(wait >= asked.unwrap_or_default());
            prop_assert!(wait <= patient.cap.max(asked.unwrap_or_default()));
        }
    }
}
