//! One connection, raw: TCP, TLS, HTTP, no pool, no retry, no resumed session.

use std::error::Error as StdError;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::access::{Access, Identity};

/// Where requests go, and how they prove who they are.
pub(crate) struct Target {
    address: SocketAddr,
    host: String,
    name: ServerName<'static>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    token: Option<PathBuf>,
}

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) content_type: &'static str,
    pub(crate) body: String,
}

impl Question {
    pub(crate) fn get(path: &str) -> Self {
        Self { method: "GET", path: path.to_owned(), content_type: "", body: String::new() }
    }
}

/// A whole answer, of any status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    body: Bytes,
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The status and the beginning of what was said with it.
    pub(crate) fn failure(&self) -> String {
        let said: String = String::from_utf8_lossy(&self.body).chars().take(200).collect();
        format!("status {}: {}", self.status, said.trim())
    }

    /// The body as JSON, if the status is a success.
    pub(crate) fn json(&self) -> Result<serde_json::Value> {
        if !self.is_success() {
            bail!(self.failure());
        }
        Ok(serde_json::from_slice(&self.body)?)
    }

    pub(crate) fn into_success(self) -> Result<()> {
        if !self.is_success() {
            bail!(self.failure());
        }
        Ok(())
    }
}

/// What became of a request.
pub(crate) enum Asked {
    Answered(Answer),
    /// The connection was closed before a byte of it went out.
    NotWritten,
}

/// How a connection ended while nothing was asked.
#[derive(Debug)]
pub(crate) enum Ending {
    /// An end of the stream, an answer that announced it, GOAWAY without an error.
    Closed,
    /// Anything else.
    Cut(String),
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(h2::client::SendRequest<Bytes>),
}

/// An open connection; closed when dropped.
pub(crate) struct Connection {
    sender: Sender,
    driver: JoinHandle<Ending>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A server that ends the stream without TLS's own farewell has closed it, too: that is what a client sees of a process
/// that is gone, and it has nothing under way.
fn ending(error: &(dyn StdError + 'static)) -> Ending {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::UnexpectedEof) {
            return Ending::Closed;
        }
        cause = error.source();
    }
    Ending::Cut(error.to_string())
}

impl Connection {
    /// How it ended; none while it is open.
    pub(crate) async fn ending(&mut self) -> Option<Ending> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                if sender.ready().await.is_ok() && !self.driver.is_finished() {
                    return None;
                }
            }
            Sender::Http2(sender) => match sender.clone().ready().await {
                Ok(_) if !self.driver.is_finished() => return None,
                // The server takes no further requests, and waits for us to go.
                Err(error) if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) => {
                    return Some(Ending::Closed);
                }
                Ok(_) | Err(_) => {}
            },
        }
        Some((&mut self.driver).await.unwrap_or_else(|error| Ending::Cut(error.to_string())))
    }
}

impl Target {
    pub(crate) fn new(access: &Access) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in &access.authorities {
            roots.add(certificate.clone())?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let (mut config, token) = match &access.identity {
            Identity::Token(path) => (builder.with_no_client_auth(), Some(path.clone())),
            Identity::Certificate(chain, key) => (builder.with_client_auth_cert(chain.clone(), key.clone_key())?, None),
        };
        // A resumed session would skip half of what a new connection needs.
        config.resumption = rustls::client::Resumption::disabled();
        let with = |protocol: &[u8]| {
            let mut config = config.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        };
        Ok(Self {
            address: access.address,
            host: access.address.to_string(),
            name: ServerName::IpAddress(access.address.ip().into()),
            http1: with(b"http/1.1"),
            http2: with(b"h2"),
            token,
        })
    }

    /// A new connection, TLS handshake included.
    pub(crate) async fn connect(&self, protocol: Protocol) -> Result<Connection> {
        let tcp = TcpStream::connect(self.address).await.context("connect")?;
        tcp.set_nodelay(true)?;
        let config = match protocol {
            Protocol::Http1 => &self.http1,
            Protocol::Http2 => &self.http2,
        };
        let tls = TlsConnector::from(config.clone()).connect(self.name.clone(), tcp).await.context("TLS handshake")?;
        Ok(match protocol {
            Protocol::Http1 => {
                let (sender, driver) = http1::handshake(TokioIo::new(tls)).await.context("HTTP/1.1 handshake")?;
                let driver =
                    tokio::spawn(async { driver.await.map_or_else(|error| ending(&error), |()| Ending::Closed) });
                Connection { sender: Sender::Http1(sender), driver }
            }
            Protocol::Http2 => {
                let (sender, driver) = h2::client::handshake(tls).await.context("HTTP/2 handshake")?;
                let driver = tokio::spawn(async {
                    match driver.await {
                        Ok(()) => Ending::Closed,
                        Err(error) => error.get_io().map_or_else(|| ending(&error), |io| ending(io)),
                    }
                });
                Connection { sender: Sender::Http2(sender), driver }
            }
        })
    }

    /// Read again for each request: the kubelet renews a pod's token.
    fn authorization(&self) -> Result<Option<String>> {
        let Some(path) = &self.token else { return Ok(None) };
        let token = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(format!("Bearer {}", token.trim())))
    }

    /// One request with its whole answer on a new HTTP/1.1 connection.
    pub(crate) async fn ask_once(&self, question: &Question) -> Result<Answer> {
        let mut connection = self.connect(Protocol::Http1).await?;
        match self.ask(&mut connection, question).await? {
            Asked::Answered(answer) => Ok(answer),
            Asked::NotWritten => bail!("the new connection was closed before the request was written"),
        }
    }

    /// One request and its whole answer.
    ///
    /// # Errors
    /// It was written, and no whole answer came.
    pub(crate) async fn ask(&self, connection: &mut Connection, question: &Question) -> Result<Asked> {
        let path = &question.path;
        let uri = match connection.sender {
            Sender::Http1(_) => path.clone(),
            Sender::Http2(_) => format!("https://{}{path}", self.host),
        };
        let mut request = Request::builder().method(question.method).uri(uri).header("accept", "application/json");
        if matches!(connection.sender, Sender::Http1(_)) {
            request = request.header("host", &self.host);
        }
        if !question.body.is_empty() {
            request = request.header("content-type", question.content_type);
        }
        if let Some(authorization) = self.authorization()? {
            request = request.header("authorization", authorization);
        }
        let body = Bytes::from(question.body.clone());
        match &mut connection.sender {
            Sender::Http1(sender) => match sender.try_send_request(request.body(Full::new(body))?).await {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    let body = body.collect().await.context("answer cut off")?.to_bytes();
                    Ok(Asked::Answered(Answer { status: head.status.as_u16(), body }))
                }
                Err(mut error) => match error.take_message() {
                    // What is given back was never written.
                    Some(_) => Ok(Asked::NotWritten),
                    None => Err(error.into_error()).context("no answer"),
                },
            },
            Sender::Http2(sender) => ask_http2(sender.clone(), request.body(())?, body).await,
        }
    }
}

async fn ask_http2(sender: h2::client::SendRequest<Bytes>, request: Request<()>, body: Bytes) -> Result<Asked> {
    let Ok(mut sender) = sender.ready().await else { return Ok(Asked::NotWritten) };
    let Ok((response, mut stream)) = sender.send_request(request, body.is_empty()) else {
        return Ok(Asked::NotWritten);
    };
    if !body.is_empty() {
        stream.send_data(body, true).context("send")?;
    }
    let response: Response<_> = response.await.context("no answer")?;
    let status = response.status().as_u16();
    let (mut incoming, mut body) = (response.into_body(), Vec::new());
    while let Some(part) = incoming.data().await {
        let part = part.context("answer cut off")?;
        incoming.flow_control().release_capacity(part.len())?;
        body.extend_from_slice(&part);
    }
    Ok(Asked::Answered(Answer { status, body: body.into() }))
}
