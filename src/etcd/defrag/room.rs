//! The disk of the member on this node: whether it has room for the copy that etcd makes.

use super::plan::{Database, short_of_room};
use crate::etcd::backup::store::free;
use std::path::Path;

/// Where etcd keeps its database in its data directory, and makes the copy.
const FOLDER: &str = "member/snap";

/// Looks whether the copy has room beside the database in this data directory, and whether that is the member's at all.
///
/// # Errors
/// In words, when it has not, or that cannot be told: an etcd whose disk is full ends itself, and it would be our doing.
pub(super) fn check(data: &Path, database: Database) -> Result<(), String> {
    let folder = data.join(FOLDER);
    let file = folder.join("db");
    let length = std::fs::metadata(&file).map_err(|error| format!("{}: {error}", file.display()))?.len();
    // bbolt makes its file larger than what is used of it, never smaller.
    if length < database.size {
        return Err(format!(
            "{} has {length} bytes, and the member says {}: it is not the member's",
            file.display(),
            database.size
        ));
    }
    let free = free(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    short_of_room(free, database).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_members_database_and_a_disk_without_room_are_told() {
        let data = tempfile::tempdir().unwrap();
        let database = Database { size: 1000, in_use: 100 };
        assert!(check(data.path(), database).unwrap_err().contains("member/snap/db"));
        std::fs::create_dir_all(data.path().join(FOLDER)).unwrap();
        let file = data.path().join(FOLDER).join("db");
        std::fs::write(&file, [0; 999]).unwrap();
        assert!(check(data.path(), database).unwrap_err().contains("not the member's"));
        std::fs::write(&file, [0; 1000]).unwrap();
        let full = check(data.path(), Database { in_use: u64::MAX / 2, ..database }).unwrap_err();
        assert!(full.contains("are free"), "{full}");
    }
}
