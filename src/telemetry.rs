//! Logs, to standard error.

use std::io::IsTerminal;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// How logs look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Plain,
    /// One JSON object a line.
    Json,
}

/// Starts logging; the filter has the syntax of `RUST_LOG`, targets and levels: `EnvFilter` would know spans and their fields as well, and
/// bring an engine of regular expressions for them.
pub fn init(filter: &str, format: LogFormat) {
    let filter: Targets = filter.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::WARN));
    let layer =
        tracing_subscriber::fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    // Only the first call counts; a second one (tests) changes nothing.
    let started = match format {
        LogFormat::Plain => registry.with(layer.with_filter(filter)).try_init(),
        LogFormat::Json => registry.with(layer.json().with_filter(filter)).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "Logging was started before");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn the_filter_of_every_command_is_one() {
        let filter: Targets = "warn,kube_client=off,quorate=debug".parse().unwrap();
        assert!(filter.would_enable("hyper", &Level::WARN) && !filter.would_enable("hyper", &Level::INFO));
        assert!(!filter.would_enable("kube_client::client", &Level::ERROR));
        assert!(filter.would_enable("quorate::lock", &Level::DEBUG));
    }
}
