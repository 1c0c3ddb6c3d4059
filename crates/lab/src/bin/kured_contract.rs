//! The stand-in for kured, in pods of tests only: see `lab::kured`.

use std::process::ExitCode;

use clap::Parser;
use lab::{kured, output};

/// Behaves as kured does, step by step, and stops at each step for as long as a test likes
#[derive(Debug, Parser)]
#[command(name = "kured_contract")]
struct Cli {
    /// What kured is told, and what only a test tells.
    #[command(flatten)]
    options: kured::Options,
}

fn main() -> ExitCode {
    match kured::run(&Cli::parse().options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
