//! How long things are kept, and how fast what is too old goes.
//!
//! Age is told by the wall clock, and that can be wrong: a machine without a battery, a typing error in a date. So no run
//! takes all that looks too old, only a share of what there is, oldest first: a clock that is a year ahead for an hour
//! costs a 24th. What has piled up goes within days, and what grows old day by day goes as it does.

use std::time::Duration;

use crate::model::time::Timestamp;

/// How often things are looked through.
pub const EVERY: Duration = Duration::from_secs(3600);
/// Nothing goes for lack of room that ended less long ago.
pub const MIN_AGE: Duration = Duration::from_secs(3600);
/// Platforms bring a message again for days: Telegram for one, webhook senders for up to three, some for seven.
const MIN_INBOX: Duration = Duration::from_secs(7 * 86_400);
/// The share of what there is that one run may take.
const SHARE: f64 = 1.0 / 24.0;
/// So many go in any case; else the last few would take for ever.
const MIN_SHARE: usize = 10;

/// What ended before this moment is too old.
pub fn too_old(keep: Duration, now: Timestamp) -> Timestamp {
    now.before(keep)
}

/// What a platform brought before this moment it does not bring again.
pub fn forgotten(keep: Duration, now: Timestamp) -> Timestamp {
    now.before(keep.max(MIN_INBOX))
}

/// How many of `count` may go in one run. Where `keep` is short, the share is larger: at least what two runs grow old.
pub fn share(count: usize, keep: Duration) -> usize {
    let share = (2.0 * EVERY.as_secs_f64() / keep.as_secs_f64()).clamp(SHARE, 1.0);
    ((count as f64 * share).ceil() as usize).max(MIN_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(86_400);

    proptest! {
        /// Steady growth never outruns the runs, whatever is kept how long.
        #[test]
        fn what_grows_old_goes_in_time(keep_hours in 1u32..5000, an_hour in 0usize..1000) {
            let keep = EVERY * keep_hours;
            let kept = an_hour * keep_hours as usize;
            let mut count = kept;
            for _ in 0..100 {
                count += an_hour;
                count -= share(count, keep).min(count - kept);
            }
            prop_assert_eq!(count, kept);
        }
    }

    #[test]
    fn a_wrong_clock_costs_a_part_and_a_heap_goes_within_days() {
        assert_eq!(share(24_000, 90 * DAY), 1000);
        let (mut left, mut runs) = (1_000_000, 0);
        while left > 0 {
            left -= share(left, 90 * DAY).min(left);
            runs += 1;
        }
        assert!((200..300).contains(&runs), "{runs} hours");
        assert_eq!((share(0, DAY), share(5, DAY), share(1000, EVERY)), (10, 10, 1000));
    }

    #[test]
    fn platforms_are_remembered_at_least_as_long_as_they_repeat() {
        let now = Timestamp::from_millis(1_790_000_000_000);
        assert_eq!(now.since(forgotten(DAY, now)), 7 * DAY);
        assert_eq!(now.since(forgotten(90 * DAY, now)), 90 * DAY);
        assert_eq!(now.since(too_old(DAY, now)), DAY);
    }
}
