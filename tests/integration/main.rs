//! The integration tests, one binary: each test binary links kube, tonic and the lab again.

// The lints that allow unwrap in tests know a test by this attribute.
#[cfg(test)]
mod backup;
#[cfg(test)]
mod command;
#[cfg(test)]
mod defrag;
#[cfg(test)]
mod drain;
#[cfg(test)]
mod fence;
#[cfg(test)]
mod gate;
#[cfg(test)]
mod image;
#[cfg(test)]
mod incidents;
#[cfg(test)]
mod jobs;
#[cfg(test)]
mod lock;
#[cfg(test)]
mod machines;
#[cfg(test)]
mod manifests;
#[cfg(test)]
mod members;
#[cfg(test)]
mod observe;
#[cfg(test)]
mod pod_security;
#[cfg(test)]
mod recovery;
#[cfg(test)]
mod restore;
#[cfg(test)]
mod rights;
#[cfg(test)]
mod said;
#[cfg(test)]
mod sentinel;
#[cfg(test)]
mod snapshot;
#[cfg(test)]
mod workstation;
