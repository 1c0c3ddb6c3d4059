//! What is wrong with a file is found, and said: kept snapshots of real etcd, damaged one way each.

#[cfg(test)]
mod flips;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod image;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod wrong;
