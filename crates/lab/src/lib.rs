//! Real etcd, real kube-apiserver and real kubeadm machines on one host, for tests, benchmarks and the demo.

pub mod api;
pub mod binaries;
pub mod etcd;
mod https;
pub mod loopback;
pub mod pki;
pub mod process;
