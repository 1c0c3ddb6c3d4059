//! A small blocking HTTPS client for the lab's own questions: is it healthy, who is a member, create this object.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use ureq::Body;
use ureq::http::{Request, Response};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use crate::pki::Pair;

/// A client that trusts one CA and shows one certificate. Each request is a new connection: the servers here are killed
/// and frozen, and a kept connection would answer for the process before.
#[derive(Debug)]
pub(crate) struct Https {
    agent: ureq::Agent,
}

/// What came back, of any status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    /// The body as JSON, if the status is a success.
    pub(crate) fn json(&self) -> Result<Value> {
        if !(200..300).contains(&self.status) {
            bail!("status {}: {}", self.status, self.body.trim());
        }
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {}", self.body))
    }
}

impl Https {
    /// `limit` is for a whole request, connecting included.
    pub(crate) fn new(ca: &Path, identity: &Pair, limit: Duration) -> Result<Self> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
        let cert = Certificate::from_pem(&read(&identity.cert)?)?;
        let tls = TlsConfig::builder()
            // Other parts of a test may install a provider of their own; here it is always the same.
            .unversioned_rustls_crypto_provider(rustls::crypto::ring::default_provider().into())
            .root_certs(RootCerts::new_with_certs(&[Certificate::from_pem(&read(ca)?)?]))
            .client_cert(Some(ClientCert::new_with_certs(&[cert], PrivateKey::from_pem(&read(&identity.key)?)?)))
            .build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(limit))
            .http_status_as_error(false)
            .max_idle_connections(0)
            // A DELETE with a body is how the API server takes its options.
            .allow_non_standard_methods(true)
            .proxy(None)
            .build()
            .new_agent();
        Ok(Self { agent })
    }

    pub(crate) fn get(&self, url: &str) -> Result<Answer> {
        answer(self.agent.get(url).call()).with_context(|| format!("GET {url}"))
    }

    /// Any method with a JSON body, or a patch of the given content type.
    pub(crate) fn send(&self, method: &str, url: &str, content_type: &str, body: &Value) -> Result<Answer> {
        let request = Request::builder().method(method).uri(url).header("content-type", content_type);
        answer(self.agent.run(request.body(body.to_string())?)).with_context(|| format!("{method} {url}"))
    }
}

fn answer(response: Result<Response<Body>, ureq::Error>) -> Result<Answer> {
    let mut response = response?;
    Ok(Answer { status: response.status().as_u16(), body: response.body_mut().read_to_string()? })
}

/// A string in a JSON answer, by its pointer.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no text at {pointer} of {value}"))
}
