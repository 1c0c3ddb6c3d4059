//! What the lab says while it works: one line a stage on stderr with the time since the start, a spinner on a terminal.
//! The only place of this crate that prints.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

static STARTED: OnceLock<Instant> = OnceLock::new();

fn since_start() -> Duration {
    STARTED.get_or_init(Instant::now).elapsed()
}

/// One line on stderr. A closed stderr is no reason to stop.
pub fn say(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "lab: [{:4} s] {text}", since_start().as_secs());
}

/// The one line that ends a failed command, with all its causes.
pub fn error(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
}

/// One line of an answer on stdout.
pub fn answer(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Something that takes time; ends when dropped.
pub(crate) struct Stage {
    spinner: Option<(ProgressBar, String)>,
    started: Instant,
}

/// Says what starts now.
pub(crate) fn stage(text: impl Display) -> Stage {
    let text = text.to_string();
    let started = Instant::now();
    if !std::io::stderr().is_terminal() {
        say(&text);
        return Stage { spinner: None, started };
    }
    since_start();
    let bar = ProgressBar::new_spinner().with_message(text.clone());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    Stage { spinner: Some((bar, text)), started }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some((bar, text)) = self.spinner.take() {
            bar.finish_and_clear();
            say(format_args!("{text}: {:.1} s", self.started.elapsed().as_secs_f64()));
        }
    }
}
