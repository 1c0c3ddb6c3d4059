//! Backups of etcd: where they go, what is done to them, how long they stay.

use super::Period;
use crate::etcd::backup::manifest::Compression;
use crate::etcd::backup::seal::Recipient;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Backups of etcd.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Backup {
    /// The folder that they go to, as the Job's pod sees it: a volume that an overlay mounts.
    pub directory: Option<PathBuf>,
    /// The bucket that they go to instead.
    pub s3: Option<S3>,
    /// How they are compressed: `zstd`, or `none` for a plain `.db`.
    pub compression: Compression,
    /// Whose identities open them, as in `age1…`; nobody: they are not encrypted, and no archive of the node is made.
    pub recipients: Vec<String>,
    /// How many are kept at least.
    #[cfg_attr(test, schemars(range(min = 1)))]
    pub keep: usize,
    /// How old one must be to be removed.
    pub minimum_age: Period,
    /// How long nothing may come from the member, and how long one request to a bucket may take.
    pub stall: Period,
}

/// A bucket of an object store that speaks S3. The keys come from the environment, as of the AWS tools.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct S3 {
    /// Its URL without the bucket, as in `https://s3.eu-west-1.amazonaws.com`.
    pub endpoint: String,
    /// Its region, as in `eu-west-1`.
    #[serde(default = "region")]
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// What the names of objects begin with, such as `production/`.
    #[serde(default)]
    pub prefix: String,
    /// Whether the bucket is a part of the path, and not of the host's name.
    #[serde(default = "path_style")]
    pub path_style: bool,
}

fn region() -> String {
    "us-east-1".to_owned()
}

const fn path_style() -> bool {
    true
}

impl Default for Backup {
    fn default() -> Self {
        Self {
            directory: None,
            s3: None,
            compression: Compression::Zstd,
            recipients: Vec::new(),
            keep: 8,
            minimum_age: Period::seconds(30 * 24 * 3600),
            stall: Period::seconds(30),
        }
    }
}

impl Backup {
    /// What is wrong with it, in words that go on after "configuration: ".
    pub(super) fn check(&self) -> Result<(), String> {
        if self.directory.is_some() && self.s3.is_some() {
            return Err("`backup` has a `directory` and an `s3`: expected one of them".to_owned());
        }
        if let Some(directory) = self.directory.as_ref().filter(|directory| !directory.is_absolute()) {
            let directory = directory.display();
            return Err(format!("`backup.directory` is `{directory}`: expected an absolute path, such as /backup"));
        }
        if let Some(s3) = &self.s3 {
            if !s3.endpoint.starts_with("https://") && !s3.endpoint.starts_with("http://") {
                let endpoint = &s3.endpoint;
                return Err(format!(
                    "`backup.s3.endpoint` is `{endpoint}`: expected a URL, such as https://s3.example"
                ));
            }
            if s3.bucket.is_empty() || s3.bucket.contains('/') {
                return Err(format!("`backup.s3.bucket` is `{}`: expected the name of a bucket", s3.bucket));
            }
        }
        for recipient in &self.recipients {
            recipient.parse::<Recipient>().map_err(|why| format!("`backup.recipients` has `{recipient}`: {why}"))?;
        }
        if self.keep == 0 {
            return Err("`backup.keep` is 0: expected at least 1".to_owned());
        }
        if self.minimum_age.0.is_negative() {
            return Err(format!("`backup.minimumAge` is {}: expected 0s or more", self.minimum_age.0));
        }
        if !self.stall.0.is_positive() {
            return Err(format!("`backup.stall` is {}: expected more than nothing, such as 30s", self.stall.0));
        }
        Ok(())
    }
}
