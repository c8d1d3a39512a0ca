//! Layer 2: what must survive. SQLite in WAL mode with `synchronous=FULL`, one thread that writes, one that reads.
//!
//! Writers queue their work; the writing thread takes all that is queued, runs it in one transaction and commits once,
//! so many callers share one fsync. A call returns when its work is on disk, or failed and left nothing behind. Each
//! piece of work has a savepoint of its own: one that fails takes nobody with it.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::meter::Meters;

pub mod backup;
pub mod browse;
mod condition;
mod error;
mod inbox;
mod outbox;
mod pieces;
mod prune;
mod schema;
mod sessions;
mod turns;
mod writer;

use condition::Condition;
pub use error::{OpenError, StoreError};
pub use inbox::{Arrival, Received};
pub use outbox::{Due, HandReport, MAX_AHEAD_MS, MAX_BY_HAND, Refused};
pub use prune::{Amount, Place, PruneTurns, Pruned};
pub use turns::{Ending, Recorded, Released, Unfinished};

/// The database's file name in the state directory.
pub const FILE_NAME: &str = "gateway.db";
/// Work that may queue before callers wait, in calls; each holds its data in memory.
const QUEUE: usize = 1024;

type Read = Box<dyn FnOnce(&Connection) + Send>;

/// A handle to the store; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    writes: mpsc::Sender<writer::Request>,
    reads: mpsc::Sender<Read>,
    condition: Arc<Condition>,
    directory: Arc<Path>,
    /// The right to have a copy.
    copies: Arc<Semaphore>,
}

/// The store's threads. Its end joins them, after everything queued is done.
#[derive(Debug)]
pub struct StoreOwner {
    /// It waits for the reading one.
    writer: JoinHandle<()>,
}

impl Store {
    /// Opens the store in `directory`, makes it if there is none, brings an old one up to date.
    ///
    /// # Errors
    /// A store that is newer, corrupt or not ours is refused and left as it is.
    pub fn open(directory: &Path, meters: Arc<Meters>) -> Result<(Self, StoreOwner), OpenError> {
        let path = directory.join(FILE_NAME);
        let writing = schema::open(&path)?;
        let reading = schema::open_reader(&path)?;
        let (writes, write_queue) = mpsc::channel(QUEUE);
        let (reads, read_queue) = mpsc::channel::<Read>(QUEUE);
        let reader = thread("store-reader", move || serve_reads(&reading, read_queue))?;
        let writer = thread("store-writer", move || {
            writer::run(&writing, write_queue, &meters);
            // The last connection to close takes the log's files away, and only one that writes can.
            join(reader);
        })?;
        let condition = Arc::new(Condition::new(&path));
        let (directory, copies) = (directory.into(), backup::places());
        Ok((Self { writes, reads, condition, directory, copies }, StoreOwner { writer }))
    }

    /// The schema version of the store in `directory`, and the one it is to be brought to, if those differ.
    pub fn outdated(directory: &Path) -> Option<(i64, i64)> {
        let found = schema::inspect(&directory.join(FILE_NAME)).ok()?;
        (0 < found && found < schema::KNOWN).then_some((found, schema::KNOWN))
    }

    /// Runs `work` in a transaction and returns when it is on disk.
    async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = writer::job(work, reply);
        self.writes.send(writer::Request::Write(job)).await.map_err(|_| StoreError::closed())?;
        let result = answer.await.map_err(|_| StoreError::closed())?;
        self.condition.wrote(&result);
        result
    }

    /// Runs `work` on the reading connection, which sees all that was committed before.
    async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Read = Box::new(move |connection| drop(reply.send(work(connection))));
        self.reads.send(job).await.map_err(|_| StoreError::closed())?;
        let result = answer.await.map_err(|_| StoreError::closed())?;
        self.condition.read(&result);
        result
    }

    /// What is wrong with the disk, if something is. A disk that took nothing is tried again, for nobody else may.
    pub async fn trouble(&self) -> Option<StoreError> {
        if let Some(StoreError::NoRoom(_)) = self.condition.trouble() {
            // Changes nothing and is written all the same. What came of it is in the condition.
            let _noted = self
                .write(|connection| {
                    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
                    Ok(connection.execute_batch(&format!("PRAGMA user_version = {version}"))?)
                })
                .await;
        }
        self.condition.trouble()
    }

    /// Returns when both threads have answered; proof that the store works.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writes.send(writer::Request::Ping(reply)).await.map_err(|_| StoreError::closed())?;
        answer.await.map_err(|_| StoreError::closed())?;
        self.read(|connection| Ok(connection.query_row("SELECT 1", [], |_| Ok(()))?)).await
    }
}

impl StoreOwner {
    /// Waits until all handles are gone and their work is done. Blocks.
    pub fn close(self) {
        join(self.writer);
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a thread of the store panicked");
    }
}

fn serve_reads(connection: &Connection, mut queue: mpsc::Receiver<Read>) {
    while let Some(read) = queue.blocking_recv() {
        read(connection);
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    std::thread::Builder::new().name(name.into()).spawn(work).map_err(OpenError::Thread)
}

#[cfg(test)]
mod tests;
