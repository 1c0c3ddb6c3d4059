//! The only place that prints: answers to standard output, errors to standard error, reports to the termination log.
#![expect(clippy::print_stderr, reason = "this is the place that prints")]

use crate::etcd::verify::NotVerified;
use crate::exit::{ExitStatus, UsageError};
use serde::Serialize;
use std::process::ExitCode;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// Prints an answer: `text` for people, or the value itself.
///
/// # Errors
/// When the value cannot be written as JSON or YAML.
pub fn answer<T: Serialize>(format: Format, value: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let rendered = match format {
        Format::Text => text(),
        Format::Json => serde_json::to_string_pretty(value)?,
        Format::Yaml => serde_saphyr::to_string(value)?,
    };
    line(rendered.trim_end());
    Ok(())
}

/// Prints one line of an answer; a reader that has gone away (`| head`) is no error.
pub fn line(text: &str) {
    use std::io::Write;
    let written = writeln!(std::io::stdout().lock(), "{text}");
    if let Err(error) = written {
        tracing::debug!(%error, "Standard output is gone");
    }
}

/// Prints one line of progress to standard error.
pub fn progress(text: &str) {
    eprintln!("{text}");
}

/// Prints an error on one line and gives the exit code that belongs to it.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    if error.chain().any(|cause| cause.is::<UsageError>()) {
        ExitStatus::Usage.into()
    } else if error.chain().any(|cause| cause.is::<NotVerified>()) {
        ExitStatus::NotVerified.into()
    } else {
        ExitStatus::Failed.into()
    }
}

/// Most bytes of a report that are left in the termination message; the kubelet cuts at 4096.
pub const TERMINATION_LIMIT: usize = 3 * 1024;

/// Where the kubelet reads a container's report.
pub const TERMINATION_LOG: &str = "/dev/termination-log";

/// Leaves a one-line JSON report where the kubelet reads it, when this is a container.
///
/// # Errors
/// When the file is there and cannot be written.
pub fn terminate_with<T: Serialize>(path: &std::path::Path, report: &T) -> anyhow::Result<()> {
    let text = serde_json::to_string(report)?;
    anyhow::ensure!(
        text.len() <= TERMINATION_LIMIT,
        "a report of {} bytes does not fit the termination message",
        text.len()
    );
    if path.exists() {
        std::fs::write(path, text)?;
    }
    Ok(())
}
