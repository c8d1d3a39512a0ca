//! How long a new life waits before it tries what its predecessors died of.
//!
//! systemd restarts us at once, always and for ever: right after a SIGKILL, ruinous when every start crashes. systemd
//! 252 cannot stretch its restart delay by itself (`RestartSteps=` came with 254, and a start limit gives up for good
//! and fails the socket with it). So each life notes its milestones in a few bytes that the service manager keeps for
//! us, and its successors read there whether the last starts went anywhere.

use std::time::Duration;

/// What is known of one life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// When it began what could kill it, on the clock since boot.
    pub began: Duration,
    /// When it became ready, if it did.
    pub ready: Option<Duration>,
}

/// Deaths before READY that cost no delay: a SIGKILL in the few milliseconds of a start is bad luck, not a pattern.
const FREE_STILLBIRTHS: u32 = 3;
/// The longest wait after deaths before READY. A cause that goes away is noticed within this time.
const STILLBIRTH_CAP: Duration = Duration::from_secs(30);
/// A life that ends this soon after READY counts as short.
const SHORT_LIFE: Duration = Duration::from_millis(500);
/// Short lives in a row that cost no delay.
const FREE_SHORT_LIVES: u32 = 10;
/// The longest wait after short lives: what was ready serves people in between, so it stays small.
const SHORT_LIFE_CAP: Duration = Duration::from_secs(2);
/// The first wait of either kind; it doubles from here.
const FIRST: Duration = Duration::from_millis(250);

/// The wait before the next life begins, given its predecessors, oldest first, and the time on the clock since boot.
pub fn wait(predecessors: &[Life], now: Duration) -> Duration {
    let stillbirths = count(predecessors.iter().rev().take_while(|life| life.ready.is_none()));
    if stillbirths > 0 {
        return doubled(stillbirths, FREE_STILLBIRTHS, STILLBIRTH_CAP);
    }
    // A life's end is not recorded (SIGKILL leaves no time for that): it ended before its successor began, or just now.
    let ends = predecessors.iter().skip(1).map(|life| life.began).chain([now]);
    let lives: Vec<_> = predecessors.iter().zip(ends).collect();
    let short = |life: &Life, end: Duration| life.ready.is_some_and(|ready| end.saturating_sub(ready) < SHORT_LIFE);
    let short_lives = count(lives.iter().rev().take_while(|(life, end)| short(life, *end)));
    doubled(short_lives, FREE_SHORT_LIVES, SHORT_LIFE_CAP)
}

fn count(items: impl Iterator) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

fn doubled(deaths: u32, free: u32, cap: Duration) -> Duration {
    match deaths.checked_sub(free + 1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST.saturating_mul(1 << doublings.min(16)).min(cap),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn stillborn(count: u64) -> Vec<Life> {
        (0..count).map(|n| Life { began: at(n * 100), ready: None }).collect()
    }

    #[test]
    fn the_first_life_and_a_few_unlucky_ones_wait_for_nothing() {
        assert_eq!(wait(&[], at(0)), Duration::ZERO);
        assert_eq!(wait(&stillborn(3), at(1000)), Duration::ZERO);
    }

    #[test]
    fn starts_that_crash_are_tried_ever_more_rarely_but_at_least_twice_a_minute() {
        let waits: Vec<_> = (4..=13).map(|n| wait(&stillborn(n), at(9_999)).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
    }

    #[test]
    fn one_start_that_gets_ready_forgives_all_before_it() {
        let mut lives = stillborn(20);
        lives.push(Life { began: at(5_000), ready: Some(at(5_010)) });
        assert_eq!(wait(&lives, at(60_000)), Duration::ZERO);
    }

    #[test]
    fn a_hundred_kills_a_minute_cost_no_delay() {
        let lives: Vec<_> = (0..100).map(|n| Life { began: at(n * 600), ready: Some(at(n * 600 + 10)) }).collect();
        assert_eq!(wait(&lives, at(60_000)), Duration::ZERO);
    }

    #[test]
    fn crashing_right_after_ready_for_ever_is_slowed_but_stays_quick() {
        let lives: Vec<_> = (0..60).map(|n| Life { began: at(n * 100), ready: Some(at(n * 100 + 10)) }).collect();
        assert_eq!(wait(&lives[..10], at(1_000)), Duration::ZERO);
        assert_eq!(wait(&lives, at(6_000)), SHORT_LIFE_CAP);
    }
}
