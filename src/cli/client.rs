//! The other end of the control socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

/// How long an answer's head may take; a socket that systemd holds answers when the gateway has started.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why the gateway did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no gateway runs here (nobody listens on {path}): start it with 'hermes-gateway run' or its unit")]
    NotRunning {
        /// The control socket.
        path: PathBuf,
    },
    /// The socket is somebody else's.
    #[error("{path} is not open to this user")]
    Denied {
        /// The control socket.
        path: PathBuf,
    },
    /// Somebody listens and does not answer.
    #[error("the gateway does not answer on its control socket: {0}")]
    Silent(String),
    /// It answered that it cannot now.
    #[error("{0}")]
    Later(String),
    /// It answered that it cannot.
    #[error("{0}")]
    Refused(String),
}

/// Calls one gateway.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    /// For the gateway with this control socket.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, patience: PATIENCE }
    }

    /// For questions that take longer to answer.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Calls and reads the whole answer.
    pub async fn call<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, ClientError> {
        self.read(self.open(method, path, Body::empty()).await?).await
    }

    /// The same with a JSON body.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| ClientError::Silent(e.to_string()))?;
        self.read(self.open(method, path, body.into()).await?).await
    }

    async fn read<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T, ClientError> {
        let body = response.into_body().collect().await.map_err(|e| ClientError::Silent(e.to_string()))?;
        serde_json::from_slice(&body.to_bytes()).map_err(|e| ClientError::Silent(e.to_string()))
    }

    /// Calls and gives back the answer as it begins.
    pub async fn open(&self, method: Method, path: &str, body: Body) -> Result<Response<Incoming>, ClientError> {
        self.open_with(method, path, HeaderMap::new(), body).await
    }

    /// The same with further headers.
    pub async fn open_with(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        let answered = tokio::time::timeout(self.patience, self.request(method, path, headers, body)).await;
        let response = answered.map_err(|_| ClientError::Silent(format!("no answer within {:?}", self.patience)))??;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let told = serde_json::from_slice::<Value>(&body).ok();
        let told = told.and_then(|body| Some(body.get("error")?.get("message")?.as_str()?.to_owned()));
        let told = told.unwrap_or_else(|| format!("the gateway answered {status}"));
        Err(if status == StatusCode::SERVICE_UNAVAILABLE {
            ClientError::Later(told)
        } else {
            ClientError::Refused(told)
        })
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        let silent = |e: &dyn std::error::Error| ClientError::Silent(crate::daemon::chain(e));
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.unreachable(&e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| silent(&e))?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "control")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|e| silent(&e))?;
        request.headers_mut().extend(headers);
        // The connection is driven as long as its answer is read; it ends with this short-lived process.
        #[expect(clippy::disallowed_methods, reason = "a command has one connection and ends with it")]
        let _driven = tokio::task::spawn(connection);
        sender.send_request(request).await.map_err(|e| silent(&e))
    }

    fn unreachable(&self, error: &std::io::Error) -> ClientError {
        let path = self.socket.clone();
        match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => ClientError::NotRunning { path },
            std::io::ErrorKind::PermissionDenied => ClientError::Denied { path },
            _ => ClientError::Silent(error.to_string()),
        }
    }
}

/// Reads server-sent events from an answer.
#[derive(Debug)]
pub struct EventReader {
    body: Incoming,
    buffer: Vec<u8>,
    last_id: Option<String>,
}

impl EventReader {
    /// The events of this answer.
    pub fn new(response: Response<Incoming>) -> Self {
        Self { body: response.into_body(), buffer: Vec::new(), last_id: None }
    }

    /// The id of the last event that had one.
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// The next event's name and data; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<(String, Value)>, ClientError> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let block = String::from_utf8_lossy(&block);
                let Some(event) = parse(&block) else { continue };
                self.last_id = field(&block, "id:").map(str::to_owned).or(self.last_id.take());
                return Ok(Some(event));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|e| ClientError::Silent(crate::daemon::chain(&e)))?;
            self.buffer.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
        }
    }
}

/// An event's name and data; `None` for comments.
fn parse(block: &str) -> Option<(String, Value)> {
    let name = field(block, "event:").unwrap_or_default();
    Some((name.to_owned(), serde_json::from_str(field(block, "data:")?).ok()?))
}

fn field<'a>(block: &'a str, name: &str) -> Option<&'a str> {
    block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}
