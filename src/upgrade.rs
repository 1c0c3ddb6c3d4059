//! The upgrade: a chain of Jobs, each of which works on one node from another one and starts the next. Its state is the live
//! fleet.

pub mod chain;
pub mod disrupt;
pub mod fleet;
pub mod follow;
pub mod kubeadm_config;
pub mod lifted;
pub mod live;
pub(crate) mod passing;
pub mod plan;
pub mod postflight;
pub mod record;
pub mod recover;
pub mod show;
pub mod step;
pub mod sub_step;
pub mod timeline;
pub mod unrecorded;
