//! Server-sent events out: a task writes, the connection reads, each notices when the other is gone.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::gateway::Mark;
use crate::stop::Tasks;

/// Events that may wait for a slow client; then its turn's text gathers in one place instead.
const QUEUE: usize = 16;
/// A silent stream says this often that it is alive, for proxies that would cut it.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The writing end of a stream.
#[derive(Debug)]
pub struct Events(mpsc::Sender<Bytes>);

/// The client is gone; there is nobody to write for.
#[derive(Debug)]
pub struct Gone;

impl Events {
    /// Writes `data:` with a JSON value, `event:` if it has a name, and `id:` if it has one.
    pub async fn send(&self, id: Option<&Mark>, name: Option<&str>, data: &impl Serialize) -> Result<(), Gone> {
        // Our own types with string keys: serialising them cannot fail.
        let json = serde_json::to_string(data).unwrap_or_default();
        let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
        let name = name.map(|name| format!("event: {name}\n")).unwrap_or_default();
        self.write(format!("{id}{name}data: {json}\n\n")).await
    }

    /// Ends a stream as chat completions do.
    pub async fn done(&self) -> Result<(), Gone> {
        self.write("data: [DONE]\n\n".into()).await
    }

    /// Waits until the client is gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }

    async fn write(&self, event: String) -> Result<(), Gone> {
        self.0.send(event.into()).await.map_err(|_| Gone)
    }
}

/// Answers with the events that `write` writes.
pub fn response<F>(tasks: &Tasks, write: impl FnOnce(Events) -> F) -> Response
where
    F: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let (send, receive) = mpsc::channel(QUEUE);
    let writing = write(Events(send));
    tasks.spawn("stream", async move {
        if let Err(Gone) = writing.await {
            tracing::debug!("a client left in the middle of its stream");
        }
    });
    let body = stream::unfold(receive, |mut receive| async move {
        let event = match tokio::time::timeout(KEEPALIVE, receive.recv()).await {
            Ok(event) => event?,
            Err(_) => Bytes::from_static(b": keepalive\n\n"),
        };
        Some((Ok::<_, Infallible>(event), receive))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // nginx would gather the events otherwise.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(body)).into_response()
}
