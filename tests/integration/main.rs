//! The integration tests, one binary: each test binary links kube, tonic and the lab again.

// The lints that allow unwrap in tests know a test by this attribute.
#[cfg(test)]
mod drain;
mod image;
#[cfg(test)]
mod lock;
mod manifests;
