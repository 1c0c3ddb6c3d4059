//! The fast tiers: real etcd and real kube-apiserver as plain processes.

mod etcd;
mod gone;
