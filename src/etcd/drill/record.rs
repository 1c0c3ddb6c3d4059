//! The last drill that was good, in a file: for hosts whose drills a timer runs. Of the CronJob the last success of a Job tells the same.

use crate::replace::replace;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::Path;

/// A drill that was good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Good {
    /// When it ended.
    pub(super) at: jiff::Timestamp,
    /// What was restored.
    pub(super) from: String,
    /// The revision of that snapshot.
    pub(super) revision: i64,
    /// Keys that were served.
    pub(super) keys: i64,
    /// Prefixes below which there were as many keys as in the snapshot.
    pub(super) prefixes: usize,
    /// Keys whose values were compared.
    pub(super) compared: usize,
    /// The version of the etcd of the drill.
    #[serde(default)]
    pub(super) etcd: String,
    /// From the store to an etcd that serves it.
    pub(super) seconds: f64,
}

impl Good {
    /// The last one; none when there was none.
    ///
    /// # Errors
    /// In words, when it cannot be read.
    pub(super) fn last(path: &Path) -> Result<Option<Self>, String> {
        let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| wrong(&error)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(wrong(&error)),
        }
    }

    /// Puts it in the place of the one before.
    ///
    /// # Errors
    /// In words, when it cannot be written.
    pub(super) fn keep(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| error.to_string())?;
        replace(path, &text, 0o644).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// For people.
    pub(super) fn text(last: &Result<Option<Self>, String>) -> String {
        match last {
            Ok(Some(Self { at, from, .. })) => {
                format!("the last good drill: {}, of {from}", at.strftime("%Y-%m-%d %H:%M:%SZ"))
            }
            Ok(None) => "no good drill is on record".to_owned(),
            Err(why) => format!("the last good drill is not known: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_is_found_again_and_what_is_none_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drill.json");
        assert_eq!(Good::text(&Good::last(&path)), "no good drill is on record");
        let good = Good {
            at: "2026-11-27T05:00:00Z".parse().unwrap(),
            from: "etcd-snapshot-20261127-040000.db".to_owned(),
            revision: 7,
            keys: 5,
            prefixes: 2,
            compared: 5,
            etcd: "3.6.15".to_owned(),
            seconds: 1.5,
        };
        good.keep(&path).unwrap();
        assert_eq!(Good::last(&path), Ok(Some(good.clone())));
        let told = "the last good drill: 2026-11-27 05:00:00Z, of etcd-snapshot-20261127-040000.db";
        assert_eq!(Good::text(&Good::last(&path)), told);
        std::fs::write(&path, "{").unwrap();
        assert!(Good::text(&Good::last(&path)).starts_with("the last good drill is not known: "));
        assert!(good.keep(&folder.path().join("none/drill.json")).is_err());
    }
}
