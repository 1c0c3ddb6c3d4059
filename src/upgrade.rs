//! The upgrade: a chain of Jobs, each of which works on one node from another one and starts the next. Its state is the live
//! fleet.

pub mod fleet;
pub mod plan;
pub mod record;
