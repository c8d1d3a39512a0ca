//! So many a minute, with room for a burst of as many.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A count that fills up again with time.
#[derive(Debug)]
pub struct Quota {
    per_minute: usize,
    /// What is left, and when that was so.
    left: Mutex<(f64, Instant)>,
}

impl Quota {
    /// A full count.
    pub fn per_minute(per_minute: usize) -> Self {
        Self { per_minute, left: Mutex::new((per_minute as f64, Instant::now())) }
    }

    /// Takes one.
    ///
    /// # Errors
    /// When nothing is left: how long until there is.
    pub fn take(&self) -> Result<(), Duration> {
        let (full, now) = (self.per_minute as f64, Instant::now());
        let per_second = full / 60.0;
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let grown = (left.0 + left.1.elapsed().as_secs_f64() * per_second).min(full);
        if grown < 1.0 {
            *left = (grown, now);
            return Err(Duration::from_secs_f64((1.0 - grown) / per_second));
        }
        *left = (grown - 1.0, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_taken_and_then_one_at_a_time() {
        let quota = Quota::per_minute(60);
        assert!((0..60).all(|_| quota.take().is_ok()));
        let wait = quota.take().expect_err("nothing is left");
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(1), "{wait:?}");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(quota.take().is_ok() && quota.take().is_err());
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!((0..1000).filter(|_| quota.take().is_ok()).count(), 60);
    }
}
