//! `quorate explain`.

use clap::Args;
use std::path::PathBuf;

/// Judge a stored verdict again, offline
#[derive(Debug, Args)]
pub struct Explain {
    /// A verdict as `quorate gate -o json` printed it; `-` is standard input
    pub file: PathBuf,
}
