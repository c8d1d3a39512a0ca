//! One connection: its requests one after the other, and how it ends when the gateway stops.
//!
//! A stop lets nobody down who is about to speak. A kept connection stays open until it was silent for a while; a
//! request that it brings meanwhile is answered, and the answer says that it was the last one here. So a client that
//! asks again and again never writes into a connection that was closed under its hands.

use std::convert::Infallible;
use std::future::poll_fn;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, header};
use axum::{Error, Router};
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::say;
use crate::http::refusal;
use crate::stop::Stop;

/// Largest head of a request, in bytes.
const MAX_HEAD: usize = 64 * 1024;
/// How long a stop waits for the next request of a connection that is silent. Who asks less often than this may find
/// the connection closed, before it has written anything.
const NEXT_REQUEST: Duration = Duration::from_secs(1);

/// The requests of a connection so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Requests {
    begun: u64,
    answered: u64,
}

/// Answers the requests of a connection until one side ends it.
pub(super) async fn serve<S>(mut stream: S, router: Router, header_timeout: Duration, stop: Stop)
where
    S: AsFd + AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let requests = watch::Sender::new(Requests::default());
    let router = TowerToHyperService::new(router);
    loop {
        let service = service_fn(|request| {
            let answering = Answering::begin(requests.clone());
            let (answer, stop) = (router.call(request), stop.clone());
            Box::pin(async move {
                let mut response = answer.await?;
                if stop.is_soft() {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response.map(|body| Counted { body, _answering: answering }))
            })
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        let ended = tokio::select! {
            // What has arrived is looked at before a silence counts.
            biased;
            () = stop.hardened() => return,
            ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => Some(ended),
            () = silence(&stop, requests.subscribe()) => None,
        };
        let before = *requests.borrow();
        let ended = match ended {
            Some(ended) => ended,
            None => {
                Pin::new(&mut connection).graceful_shutdown();
                tokio::select! {
                    () = stop.hardened() => return,
                    ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => ended,
                }
            }
        };
        let silent = ended.is_ok() && *requests.borrow() == before;
        let parts = connection.into_parts();
        stream = parts.io.into_inner();
        match ended {
            // It spoke in the very moment in which it was given up: it is heard after all.
            Ok(()) if silent && stop.is_soft() && parts.read_buf.is_empty() && has_spoken(&stream) => continue,
            Ok(()) => drop(stream.shutdown().await),
            // An idle connection just ends; an unasked 408 would be taken for the answer to its next request.
            Err(error) if error.is_timeout() && before.begun == 0 => {
                // hyper closes without a word; who began a request should know why.
                if !parts.read_buf.is_empty() {
                    say(&mut stream, &refusal::too_slow()).await;
                }
            }
            Err(error) => tracing::debug!(error = %error, "a connection ended early"),
        }
        return;
    }
}

/// Waits for the soft stop, and then until the connection brings nothing for a while.
async fn silence(stop: &Stop, mut requests: watch::Receiver<Requests>) {
    stop.softened().await;
    loop {
        let Requests { begun, answered } = *requests.borrow_and_update();
        let changed = requests.changed();
        if begun == answered {
            if tokio::time::timeout(NEXT_REQUEST, changed).await.is_err() {
                return;
            }
        } else if changed.await.is_err() {
            return;
        }
    }
}

/// Whether something waits to be read, by the kernel's word: the runtime may not know it yet.
fn has_spoken(stream: &impl AsFd) -> bool {
    let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    matches!(recv(stream, &mut [0_u8; 1], look), Ok((_, 1..)))
}

/// A request under way, until its answer is written or nobody wants it any more.
#[derive(Debug)]
struct Answering(watch::Sender<Requests>);

impl Answering {
    fn begin(requests: watch::Sender<Requests>) -> Self {
        requests.send_modify(|requests| requests.begun += 1);
        Self(requests)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.send_modify(|requests| requests.answered += 1);
    }
}

/// The body of an answer, with which its request is through.
#[derive(Debug)]
struct Counted {
    body: Body,
    _answering: Answering,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
