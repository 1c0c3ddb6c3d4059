//! The prober: a program of its own, since the demo's pods run it, too.
//! It counts what clients of an apiserver see, and prints the account.

use std::process::ExitCode;

use clap::Parser;
use lab::{output, prober};

/// Count what clients of an apiserver see: raw connections, a fixed rate, no retry
#[derive(Debug, Parser)]
#[command(name = "prober")]
struct Cli {
    /// What to ask.
    #[command(flatten)]
    options: prober::Options,
}

fn main() -> ExitCode {
    match prober::run(&Cli::parse().options).and_then(|report| Ok(serde_json::to_string_pretty(&report)?)) {
        Ok(report) => {
            output::answer(report);
            ExitCode::SUCCESS
        }
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
