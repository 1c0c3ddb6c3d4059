//! `quorate explain FILE`: judges a stored verdict again, offline. A bug report becomes a regression test.

use crate::cli::Global;
use crate::cli::explain::Explain;
use crate::exit::{ExitStatus, UsageError};
use crate::gate::{render, summary};
use crate::output;
use crate::report::Outcome;
use quorum_safety::Record;
use std::io::Read;

/// Runs the command: exits like the gate would with today's answer.
///
/// # Errors
/// When the file is not a stored verdict.
pub fn run(global: &Global, explain: &Explain) -> anyhow::Result<ExitStatus> {
    let mut text = String::new();
    let name = explain.file.display();
    let read = if explain.file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map(|_| ())
    } else {
        std::fs::read_to_string(&explain.file).map(|read| text = read)
    };
    read.map_err(|error| UsageError(format!("{name}: {error}")))?;
    let mut record: Record = serde_json::from_str(&text).map_err(|error| {
        UsageError(format!("{name}: {error}; expected a verdict as `quorate gate -o json` prints it"))
    })?;
    let again = record.judge_again();
    let same = again == record.verdict;
    record.verdict = again;
    output::answer(global.output, &record, || {
        let note = if same { "" } else { "\n(the stored answer was another one: the rule has changed since)" };
        render(&record.verdict, &summary(&record)) + note
    })?;
    Ok(Outcome::of(&record.verdict).status())
}
