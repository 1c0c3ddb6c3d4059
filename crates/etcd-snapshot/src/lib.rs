#![doc = include_str!("../README.md")]

mod bytes;
mod contents;
mod error;
mod extent;
mod freelist;
mod keys;
mod live;
mod meta;
mod pages;
mod record;
mod snapshot;
mod source;
mod stream;
mod trailer;
mod tree;
mod verify;

pub use error::{Error, Fault, FreelistFault, MetaFault, Order};
pub use keys::{Part, keys};
pub use snapshot::{Bucket, ConfState, Member, PageUse, Snapshot, Trailer};
pub use source::ReadAt;
pub use stream::{Stream, Streamed};
pub use verify::{Limits, verify, verify_streamed, verify_within};
