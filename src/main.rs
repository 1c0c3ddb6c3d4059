//! `quorate`: install the TLS provider, parse, run, exit.

use quorate::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    // reqwest and kube both look for a process-wide provider; which of them asks first must not matter.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return quorate::output::fail(&anyhow::Error::new(error).context("cannot start the runtime")),
    };
    match Cli::read(std::env::args_os()) {
        Ok(cli) => {
            let code = runtime.block_on(quorate::run(cli));
            // A thread that is stuck in the kernel, on a disk that hangs, is not waited for.
            runtime.shutdown_background();
            code
        }
        Err(error) => error.exit(),
    }
}
