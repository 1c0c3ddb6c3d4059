//! What a command of ours said.

use serde_json::Value;
use std::process::Output;

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Said {
    pub(crate) fn document(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The numbers of the codes, such as `Q030`.
    pub(crate) fn codes(&self) -> Vec<String> {
        let document = self.document();
        let reasons = document["reasons"].as_array().map(Vec::as_slice).unwrap_or_default();
        reasons.iter().map(|reason| reason["code"].as_str().unwrap()[..4].to_owned()).collect()
    }

    /// It ended with this code and says so.
    pub(crate) fn ended(self, code: i32, what: &str) -> Self {
        assert!(self.code == Some(code) && (self.out.contains(what) || self.err.contains(what)), "{what}: {self:?}");
        self
    }

    /// It ended with this code, for exactly these reasons.
    pub(crate) fn ended_for(self, code: i32, codes: &[&str]) -> Self {
        assert_eq!(
            (self.code, self.codes()),
            (Some(code), codes.iter().map(ToString::to_string).collect()),
            "{self:?}"
        );
        self
    }
}
