//! The fast tiers: real etcd and real kube-apiserver as plain processes.

// The lints that allow unwrap in tests know a test by this attribute.
#[cfg(test)]
mod api;
#[cfg(test)]
mod etcd;
#[cfg(test)]
mod gone;
#[cfg(test)]
mod killed;
