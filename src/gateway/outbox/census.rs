//! How much is on its way: counted now and then, for whoever watches.

use std::time::Duration;

use super::Outbox;
use crate::store::StoreError;
use crate::store::browse::Census;

/// How often it is counted. A count looks at each row that waits or was given up, in an index.
const COUNT_EVERY: Duration = Duration::from_secs(5);

impl Outbox {
    /// Counts, and shows it in the meters.
    pub async fn census(&self) -> Result<Census, StoreError> {
        let census = self.inner.store.count_deliveries().await?;
        let shown = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.inner.meters.deliveries_waiting.set(shown(census.pending + census.leased));
        self.inner.meters.deliveries_dead.set(shown(census.dead));
        Ok(census)
    }

    /// How many wait or are being sent, and how many were given up, as they were counted last.
    pub fn load(&self) -> (i64, i64) {
        (self.inner.meters.deliveries_waiting.get(), self.inner.meters.deliveries_dead.get())
    }

    /// Goes on counting, until the soft stop.
    pub async fn keep_count(self) {
        loop {
            tokio::select! {
                biased;
                () = self.inner.stop.softened() => return,
                () = tokio::time::sleep(COUNT_EVERY) => {}
            }
            if let Err(error) = self.census().await {
                tracing::debug!(error = %error, "deliveries cannot be counted now");
            }
        }
    }
}
