//! What a sentinel shows of itself while it runs: metrics for Prometheus, and whether it could do what it is there for.

use super::plan::Plan;
use super::reason::Reason;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use quorum_safety::UnixSeconds;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// How long one who asks may take to do so.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the requests of one look may take, each of which has its deadline.
const LONGEST: Duration = Duration::from_secs(600);

/// Shared between the loop that writes it and whoever asks.
#[derive(Clone)]
pub struct Shown {
    registry: Arc<Registry>,
    open: Gauge,
    pending_since: Gauge,
    last_check: Gauge,
    observed: Gauge,
    looks: Counter,
    reasons: Family<OfCode, Gauge>,
    health: Arc<Mutex<Health>>,
}

/// What readiness goes by.
struct Health {
    /// What of the sentinel itself is not as it must be.
    broken: Vec<String>,
    /// When it last looked, and how long it may take until the next time.
    looked: Option<(Instant, Duration)>,
}

/// The label of a reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCode {
    code: String,
}

impl Default for Shown {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("quorate_sentinel");
        let (open, pending_since, last_check, observed) =
            (Gauge::default(), Gauge::default(), Gauge::default(), Gauge::default());
        let (looks, reasons) = (Counter::default(), Family::default());
        registry.register("open", "Whether the gate is open, or may be", open.clone());
        registry.register(
            "pending_since_seconds",
            "Since when a reboot of this node is wanted; 0 while none is",
            pending_since.clone(),
        );
        registry.register("last_check_seconds", "When the sentinel last looked", last_check.clone());
        registry.register("observed_seconds", "When it last saw the cluster; 0 before", observed.clone());
        registry.register("looks", "How often it has looked", looks.clone());
        registry.register("reason", "Why the gate is closed, one for each code", reasons.clone());
        let health = Arc::new(Mutex::new(Health { broken: Vec::new(), looked: None }));
        Self { registry: Arc::new(registry), open, pending_since, last_check, observed, looks, reasons, health }
    }
}

impl Shown {
    /// One look, and what came of it; `saw` is whether the cluster was seen, `within` how long it may pause
    /// and wait for a Lease.
    pub fn look(&self, plan: &Plan, pending_since: Option<UnixSeconds>, saw: bool, now: UnixSeconds, within: Duration) {
        self.looks.inc();
        self.open.set(i64::from(plan.open));
        self.last_check.set(now.0);
        if saw {
            self.observed.set(now.0);
        }
        self.pending_since.set(pending_since.map_or(0, |since| since.0));
        self.reasons.clear();
        for reason in &plan.reasons {
            self.reasons.get_or_create(&OfCode { code: reason.code.clone() }).set(1);
        }
        let broken: Vec<String> =
            plan.reasons.iter().filter(|reason| is_own_trouble(reason)).map(ToString::to_string).collect();
        let within = within.saturating_add(LONGEST);
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) =
            Health { broken, looked: Some((Instant::now(), within)) };
    }

    /// The gate has just been opened, or closed: that is not told a look later.
    pub fn gate(&self, open: bool) {
        self.open.set(i64::from(open));
    }

    /// Answers `/metrics` and `/readyz` from now on.
    ///
    /// # Errors
    /// When the address cannot be listened at.
    pub async fn serve(self, address: SocketAddr) -> std::io::Result<()> {
        let listener = TcpListener::bind(address).await?;
        tokio::spawn(async move {
            loop {
                let stream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "A connection was not taken");
                        tokio::time::sleep(PATIENCE).await;
                        continue;
                    }
                };
                let shown = self.clone();
                tokio::spawn(async move {
                    let answer = service_fn(|request| {
                        std::future::ready(Ok::<_, std::convert::Infallible>(shown.answer(&request)))
                    });
                    let mut server = http1::Builder::new();
                    server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
                    if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
                        tracing::debug!(%error, "A connection broke");
                    }
                });
            }
        });
        Ok(())
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, kind, text) = match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => match self.metrics() {
                Ok(text) => (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
            },
            (&Method::GET, "/readyz") => match self.ready() {
                Ok(()) => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
                Err(why) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{why}\n")),
            },
            _ => (StatusCode::NOT_FOUND, "text/plain", "/metrics, /readyz\n".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
        response
    }

    fn metrics(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn ready(&self) -> Result<(), String> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).ready(Instant::now())
    }
}

impl Health {
    /// Whether it does what it is there for; else what it does not do. One that hangs looks no more, and its last answer says nothing of now.
    fn ready(&self, now: Instant) -> Result<(), String> {
        let Some((looked, within)) = self.looked else { return Err("it has not looked yet".to_owned()) };
        let age = now.saturating_duration_since(looked);
        if age > within {
            return Err(format!("it last looked {} s ago: expected within {} s", age.as_secs(), within.as_secs()));
        }
        if self.broken.is_empty() { Ok(()) } else { Err(self.broken.join("; ")) }
    }
}

/// Whether a reason is that the sentinel itself cannot do what it is there for, and not how its cluster is.
fn is_own_trouble(reason: &Reason) -> bool {
    reason.code.starts_with("S00")
}

#[cfg(test)]
mod tests {
    use super::super::reason::Code;
    use super::*;
    use quorum_safety::sentinel::Act;

    #[test]
    fn what_is_shown_is_what_was_last_seen() {
        let shown = Shown::default();
        assert!(shown.ready().is_err(), "before the first look");
        let plan = |reasons| Plan { act: Act::Wait, open: false, pending: true, reasons };
        let look = |reasons, saw, now| {
            let since = Some(UnixSeconds(100));
            shown.look(&plan(reasons), since, saw, UnixSeconds(now), Duration::from_secs(300));
        };
        look(vec![Reason::new(Code::Soak, "k1")], true, 110);
        look(vec![Reason::new(Code::NodeCordoned, "k1"), Reason::new(Code::NodeCordoned, "k2")], true, 160);
        assert_eq!(shown.ready(), Ok(()));
        let text = shown.metrics().unwrap();
        for line in [
            "quorate_sentinel_open 0",
            "quorate_sentinel_pending_since_seconds 100",
            "quorate_sentinel_last_check_seconds 160",
            "quorate_sentinel_observed_seconds 160",
            "quorate_sentinel_looks_total 2",
            "quorate_sentinel_reason{code=\"S012-node-cordoned\"} 1",
        ] {
            assert!(text.lines().any(|other| other == line), "no {line} in:\n{text}");
        }
        assert!(!text.contains("S013"), "{text}");
        look(vec![Reason::new(Code::FileNotWritable, "/run: denied")], false, 220);
        assert_eq!(shown.ready(), Err("S004-file-not-writable: /run: denied".to_owned()));
        assert!(is_own_trouble(&Reason::new(Code::EtcdFiles, "ca.crt")));
        assert!(shown.metrics().unwrap().contains("quorate_sentinel_observed_seconds 160\n"));
    }

    #[test]
    fn a_sentinel_that_hangs_is_not_ready() {
        let shown = Shown::default();
        let plan = Plan { act: Act::Wait, open: false, pending: false, reasons: Vec::new() };
        let before = Instant::now();
        shown.look(&plan, None, true, UnixSeconds(100), Duration::from_secs(300));
        let ready = |after| shown.health.lock().unwrap().ready(before + Duration::from_secs(after));
        assert_eq!(ready(900), Ok(()));
        assert!(ready(960).unwrap_err().ends_with(" s ago: expected within 900 s"));
    }
}
