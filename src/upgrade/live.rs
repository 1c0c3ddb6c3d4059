//! The view of a running upgrade: one live line a node on a terminal, plain lines otherwise. Nothing needs colour.

use crate::output;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::IsTerminal;

/// What is shown while an upgrade is followed.
pub struct Live {
    bars: Option<MultiProgress>,
    nodes: BTreeMap<String, ProgressBar>,
}

impl Default for Live {
    fn default() -> Self {
        Self::new()
    }
}

impl Live {
    /// A live view where standard error is a terminal.
    pub fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { bars, nodes: BTreeMap::new() }
    }

    /// A line that stays.
    pub fn line(&self, seconds: u64, text: &str) {
        let text = format!("{} {text}", clock(seconds));
        match &self.bars {
            Some(bars) => {
                if let Err(error) = bars.println(&text) {
                    tracing::debug!(%error, "The terminal is gone");
                }
            }
            None => output::progress(&text),
        }
    }

    /// What a step said: it stays as a line, and is the node's state until the next.
    pub fn step(&mut self, seconds: u64, node: Option<&str>, text: &str) {
        self.line(seconds, text);
        let (Some(bars), Some(node)) = (&self.bars, node) else { return };
        let bar = self.nodes.entry(node.to_owned()).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new_spinner().with_prefix(node.to_owned()));
            if let Ok(style) = ProgressStyle::with_template("{prefix:12} {elapsed:>6}  {msg}") {
                bar.set_style(style);
            }
            bar
        });
        bar.set_message(text.trim_start_matches(&format!("{node}: ")).to_owned());
    }

    /// Redraws the elapsed times.
    pub fn tick(&self) {
        for bar in self.nodes.values() {
            bar.tick();
        }
    }

    /// Leaves the lines and takes the live part away.
    pub fn finish(&self) {
        for bar in self.nodes.values() {
            bar.finish_and_clear();
        }
    }
}

fn clock(seconds: u64) -> String {
    format!("{:>2}:{:02}", seconds / 60, seconds % 60)
}
