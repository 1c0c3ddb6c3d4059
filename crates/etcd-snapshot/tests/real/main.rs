//! Snapshots of real etcd 3.5, 3.6 and 3.7 beside what `etcdutl` of the same series says of them.

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod flips;
#[cfg(test)]
mod member;
#[cfg(test)]
mod status;
