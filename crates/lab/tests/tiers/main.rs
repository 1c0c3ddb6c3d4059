//! The fast tiers: real etcd and real kube-apiserver as plain processes.

mod api;
mod etcd;
mod gone;
