//! The integration tests, one binary: each test binary links kube, tonic and the lab again.

mod image;
mod lock;
mod manifests;

mod drain;
