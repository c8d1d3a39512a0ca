//! A copy of the store, made by the process that may read it and passed on through the control socket.

use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::http::Api;
use crate::http::error::ApiError;
use crate::model::time::in_words;
use crate::store::backup::Copied;

/// Bytes that are read and sent at once.
const PIECE: usize = 256 * 1024;
/// Pieces that may wait for the reader.
const PIECES: usize = 2;
/// A reader that takes nothing for so long has left, whatever its socket says; the copy takes room on the disk.
const STALLED: Duration = Duration::from_secs(300);

/// Makes a copy, then sends it. Its length comes first, so that whoever reads knows whether it was all.
pub async fn backup(State(api): State<Api>) -> Result<Response, ApiError> {
    let began = std::time::Instant::now();
    // Dropped with this answer, when whoever asked leaves.
    let asked = CancellationToken::new();
    let _dropped = asked.clone().drop_guard();
    let (store, gateway) = (api.store.clone(), api.gateway.clone());
    let copying = spawn_blocking(move || store.copy(|| !asked.is_cancelled() && !gateway.is_stopping()));
    let copied = copying.await.map_err(|_| ApiError::internal())??;
    let length = copied.length;
    tracing::info!(bytes = length, "a backup was made in {}", in_words(began.elapsed()));
    let (send, receive) = mpsc::channel(PIECES);
    api.tasks.spawn("backup", async move {
        if let Err(error) = pass_on(copied, &send).await {
            tracing::warn!(error = %error, "a backup broke off");
            let _reader_left = send.try_send(Err(error));
        }
    });
    let body = stream::unfold(receive, |mut receive| async move { Some((receive.recv().await?, receive)) });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.sqlite3")),
        (header::CONTENT_LENGTH, HeaderValue::from(length)),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

async fn pass_on(copied: Copied, out: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let mut copied = copied;
    loop {
        let (piece, rest) =
            spawn_blocking(move || (piece(&mut copied.file), copied)).await.map_err(io::Error::other)?;
        let piece = piece?;
        copied = rest;
        if piece.is_empty() {
            return Ok(());
        }
        match out.send_timeout(Ok(piece), STALLED).await {
            Ok(()) => {}
            Err(mpsc::error::SendTimeoutError::Closed(_)) => return Ok(()),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

fn piece(file: &mut File) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(PIECE);
    file.take(PIECE as u64).read_to_end(&mut piece)?;
    Ok(piece.into())
}
