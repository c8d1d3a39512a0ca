//! The writing thread: everything that is queued becomes one transaction.

use std::time::Instant;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::error::StoreError;
use crate::meter::Meters;

/// Most pieces of work in one transaction: bounds how long the first one waits for the last.
const MAX_BATCH: usize = 256;

/// What the writing thread is asked.
pub enum Request {
    /// Do this and tell its caller when it is on disk.
    Write(Box<dyn Job>),
    /// Say that you live.
    Ping(oneshot::Sender<()>),
}

/// A piece of work and its caller.
pub trait Job: Send {
    /// Works on the open transaction; what comes back tells the caller once it is known whether the batch was committed.
    /// With it comes what went wrong, if something did.
    fn run(self: Box<Self>, connection: &Connection) -> (Settle, Option<StoreError>);
    /// Tells the caller that nothing was tried.
    fn refuse(self: Box<Self>, error: StoreError);
}

/// Tells a caller how the batch ended: `None` when it is on disk.
type Settle = Box<dyn FnOnce(Option<StoreError>) + Send>;

struct Write<T, F> {
    work: F,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

/// Packs work and its caller's reply channel.
pub fn job<T, F>(work: F, reply: oneshot::Sender<Result<T, StoreError>>) -> Box<dyn Job>
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
{
    Box::new(Write { work, reply })
}

impl<T, F> Job for Write<T, F>
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
{
    fn run(self: Box<Self>, connection: &Connection) -> (Settle, Option<StoreError>) {
        let Self { work, reply } = *self;
        let result = in_savepoint(connection, work);
        let error = result.as_ref().err().cloned();
        (Box::new(move |batch_failed| drop(reply.send(batch_failed.map_or(result, Err)))), error)
    }

    fn refuse(self: Box<Self>, error: StoreError) {
        drop(self.reply.send(Err(error)));
    }
}

fn in_savepoint<T>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    connection.prepare_cached("SAVEPOINT job")?.execute([])?;
    let result = work(connection);
    if result.is_err() {
        if connection.is_autocommit() {
            // A disk that fails in the middle makes SQLite roll back everything, and the savepoint with it.
            return result;
        }
        drop(connection.prepare_cached("ROLLBACK TO job").and_then(|mut s| s.execute([])));
    }
    connection.prepare_cached("RELEASE job")?.execute([])?;
    result
}

/// Works until every handle is gone, then leaves a database without a WAL to recover.
pub fn run(connection: &Connection, mut queue: mpsc::Receiver<Request>, meters: &Meters) {
    let mut batch = Vec::new();
    while let Some(first) = queue.blocking_recv() {
        admit(first, &mut batch);
        while batch.len() < MAX_BATCH
            && let Ok(next) = queue.try_recv()
        {
            admit(next, &mut batch);
        }
        if !batch.is_empty() {
            let began = Instant::now();
            meters.store_batch_size.observe(batch.len() as f64);
            commit(connection, &mut batch);
            meters.store_commit_seconds.observe(began.elapsed().as_secs_f64());
        }
    }
    if let Err(e) = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
        tracing::warn!(error = %e, "cannot checkpoint the store; the next start will");
    }
}

fn admit(request: Request, batch: &mut Vec<Box<dyn Job>>) {
    match request {
        Request::Write(job) => batch.push(job),
        Request::Ping(reply) => drop(reply.send(())),
    }
}

fn commit(connection: &Connection, batch: &mut Vec<Box<dyn Job>>) {
    let statement = |sql| connection.prepare_cached(sql).and_then(|mut s| s.execute([])).map_err(StoreError::from);
    if let Err(error) = statement("BEGIN IMMEDIATE") {
        tell(&error, "the store could not begin; nothing was acknowledged");
        return batch.drain(..).for_each(|job| job.refuse(error.clone()));
    }
    let mut settles = Vec::with_capacity(batch.len());
    let mut rolled_back = None;
    for job in batch.drain(..) {
        if let Some(error) = &rolled_back {
            // Outside of the transaction each savepoint would be one of its own, committed before its caller is told
            // that it failed.
            job.refuse(StoreError::clone(error));
            continue;
        }
        let (settle, error) = job.run(connection);
        settles.push(settle);
        rolled_back = error.filter(|_| connection.is_autocommit());
    }
    let failed = rolled_back.or_else(|| statement("COMMIT").err());
    if let Some(error) = &failed {
        tell(error, "the store could not commit; nothing of it was acknowledged");
        if !connection.is_autocommit() {
            drop(connection.execute_batch("ROLLBACK"));
        }
    }
    for settle in settles {
        settle(failed.clone());
    }
}

/// A trouble that lasts is told once, by the condition of the store.
fn tell(error: &StoreError, what: &str) {
    match error.lasts() {
        true => tracing::debug!(error = %error, "{what}"),
        false => tracing::error!(error = %error, "{what}"),
    }
}
