//! `quorate etcd backup`: a snapshot of a healthy voter, proven before it is stored, with a manifest that says what it is.

pub mod manifest;
