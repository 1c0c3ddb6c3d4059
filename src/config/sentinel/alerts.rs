//! The alerts that keep the gates of the reboot sentinel closed.

use serde::{Deserialize, Serialize};

/// The alerts that keep the gates of the reboot sentinel closed.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Alerts {
    /// Prometheus, or what answers its queries, as in `http://prometheus.monitoring:9090`; none: alerts are not asked for.
    pub prometheus: Option<String>,
    /// The names of alerts that keep no gate closed. Those that quorate ships never do.
    pub ignore: Vec<String>,
    /// Whether only alerts that fire count, and not those that are pending, too.
    pub firing_only: bool,
    /// An alert that always fires, such as `Watchdog`: while it does not, what the others do is not known.
    pub heartbeat: Option<String>,
}

impl Default for Alerts {
    fn default() -> Self {
        Self {
            prometheus: None,
            ignore: ["Watchdog", "InfoInhibitor", "RebootRequired"].map(str::to_owned).to_vec(),
            firing_only: false,
            heartbeat: None,
        }
    }
}

impl Alerts {
    /// What is wrong with it, in words that go on after "configuration: ".
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(text) = &self.prometheus {
            let wrong = |why: &str| {
                Err(format!(
                    "`sentinel.alerts.prometheus` is `{text}`: {why}; expected a URL such as http://prometheus.monitoring:9090"
                ))
            };
            let url: http::Uri = match text.parse() {
                Ok(url) => url,
                Err(_) => return wrong("it is no URL"),
            };
            if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) {
                return wrong("it names no host by http or https");
            }
            // It is told in reasons, and everybody may read those.
            if url.authority().is_some_and(|authority| authority.as_str().contains('@')) || url.query().is_some() {
                return wrong("it has a user or a query");
            }
        }
        let names = self
            .ignore
            .iter()
            .map(|name| ("ignore", name))
            .chain(self.heartbeat.iter().map(|name| ("heartbeat", name)));
        for (key, name) in names {
            let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if name.is_empty() || !plain {
                return Err(format!(
                    "`sentinel.alerts.{key}` has `{name}`: expected the name of an alert, such as Watchdog"
                ));
            }
        }
        Ok(())
    }
}
