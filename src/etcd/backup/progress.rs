//! How far a snapshot is: a bar with the rate on a terminal, a line now and then elsewhere, as in the log of a Job.

use crate::clock::Clock;
use crate::output;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal, Read};
use std::time::Duration;

/// Between two lines.
const EVERY: Duration = Duration::from_secs(10);

/// How far it is.
pub struct Progress {
    what: String,
    total: u64,
    clock: Clock,
    bar: Option<ProgressBar>,
    lines: Lines,
}

/// What has come, and what of it was told.
struct Lines {
    came: u64,
    told: u64,
    at: Duration,
}

impl Lines {
    /// A line, when it is time for one.
    fn next(&mut self, now: Duration, what: &str, total: u64) -> Option<String> {
        let passed = now.saturating_sub(self.at);
        if passed < EVERY {
            return None;
        }
        let rate = u128::from(self.came.saturating_sub(self.told)) * 1000 / passed.as_millis().max(1);
        let rate = HumanBytes(u64::try_from(rate).unwrap_or(u64::MAX));
        (self.told, self.at) = (self.came, now);
        Some(format!("{what}: {} of about {}, {rate}/s", HumanBytes(self.came), HumanBytes(total)))
    }
}

impl Progress {
    /// From the beginning; `total` bytes are expected.
    pub fn new(total: u64, what: String, clock: Clock) -> Self {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}");
        let bar = match style {
            Ok(style) if io::stderr().is_terminal() => {
                let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
                Some(bar.with_message(what.clone()).with_style(style))
            }
            Ok(_) | Err(_) => None,
        };
        Self { what, total, clock, bar, lines: Lines { came: 0, told: 0, at: clock.boottime() } }
    }

    /// So many more bytes have come.
    pub fn more(&mut self, bytes: usize) {
        self.lines.came = self.lines.came.saturating_add(bytes as u64);
        match &self.bar {
            Some(bar) => bar.set_position(self.lines.came),
            None => {
                let line = self.lines.next(self.clock.boottime(), &self.what, self.total);
                line.iter().for_each(|line| output::progress(line));
            }
        }
    }

    /// Counts what is read of `from`.
    pub fn of<R: Read>(self, from: R) -> impl Read {
        Counted { progress: self, from }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}

struct Counted<R> {
    progress: Progress,
    from: R,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.progress.more(read);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_now_and_then_tells_the_rate_since_the_last_one() {
        let mut lines = Lines { came: 5 << 20, told: 0, at: Duration::from_secs(100) };
        let mut next = |seconds, came| {
            lines.came = came;
            lines.next(Duration::from_secs(seconds), "snapshot", 1 << 30)
        };
        assert_eq!(next(109, 100 << 20), None);
        assert_eq!(next(110, 100 << 20).as_deref(), Some("snapshot: 100.00 MiB of about 1.00 GiB, 10.00 MiB/s"));
        assert_eq!(next(119, 400 << 20), None);
        assert_eq!(next(130, 500 << 20).as_deref(), Some("snapshot: 500.00 MiB of about 1.00 GiB, 20.00 MiB/s"));
    }
}
