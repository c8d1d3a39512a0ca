//! Not more than so many a second, evenly, over all who ask.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A pace that all senders of a platform keep together.
#[derive(Debug)]
pub struct Pace {
    /// The time between two; zero: no limit.
    step: Duration,
    /// When the next one may go.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// `per_second` a second, or as fast as they come.
    pub fn new(per_second: Option<u32>) -> Self {
        let step = per_second.map_or(Duration::ZERO, |n| Duration::from_secs(1) / n.max(1));
        Self { step, next: Mutex::default() }
    }

    /// Waits until it is our turn.
    pub async fn keep(&self) {
        if self.step.is_zero() {
            return;
        }
        let now = Instant::now();
        let ours = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let ours = next.map_or(now, |next| next.max(now));
            *next = Some(ours + self.step);
            ours
        };
        tokio::time::sleep_until(ours).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ten_a_second_are_ten_a_second() {
        let (pace, began) = (Pace::new(Some(10)), Instant::now());
        for n in 0..30 {
            pace.keep().await;
            assert_eq!(began.elapsed().as_millis(), n * 100);
        }
        Pace::new(None).keep().await;
    }
}
