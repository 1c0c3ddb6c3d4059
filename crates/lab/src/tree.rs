//! Whole folders: cloning one without copying its data, removing one with everything mounted inside.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::mount::{UnmountFlags, unmount};

/// Clones a folder: files become hard links, but for those that `copied` picks, which are copied. Where a link is not
/// possible (another file system) the data is copied. Owners are not kept: everything here belongs to root.
pub(crate) fn clone(from: &Path, to: &Path, copied: &dyn Fn(&Path) -> bool) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let (source, target, kind) = (entry.path(), to.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            clone(&source, &target, copied)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            if copied(&source) || fs::hard_link(&source, &target).is_err() {
                fs::copy(&source, &target).with_context(|| format!("cannot copy {}", source.display()))?;
            }
        } else {
            bail!("{} is neither file, folder nor link", source.display());
        }
    }
    Ok(())
}

/// Where something is mounted at or below a folder, deepest first.
pub(crate) fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| point.starts_with(folder))
        .collect();
    found.sort_unstable();
    found.reverse();
    Ok(found)
}

/// Unmounts everything at or below a folder.
pub(crate) fn unmount_below(folder: &Path) -> Result<()> {
    for point in mounts_below(folder)? {
        unmount(&point, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {}", point.display()))?;
    }
    Ok(())
}

/// Removes a folder with everything in it; what is mounted there is unmounted first, so that only our copy goes.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    if fs::symlink_metadata(folder).is_err() {
        return Ok(());
    }
    unmount_below(folder)?;
    fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
}

/// Makes a folder of root's with the usual permissions, whatever the umask or the caller's habit.
pub(crate) fn make_public(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    chown(folder, Some(0), Some(0)).with_context(|| format!("cannot give {} to root", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn a_clone_shares_what_never_changes_and_copies_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/blob"), "data").unwrap();
        fs::write(from.join("meta.db"), "old").unwrap();
        symlink("blob", from.join("sub/link")).unwrap();
        clone(&from, &to, &|path| path.extension().is_some_and(|e| e == "db")).unwrap();
        let inode = |p: PathBuf| fs::metadata(p).unwrap().ino();
        assert_eq!(inode(from.join("sub/blob")), inode(to.join("sub/blob")));
        assert_eq!(fs::read_link(to.join("sub/link")).unwrap(), Path::new("blob"));
        fs::write(to.join("meta.db"), "new").unwrap();
        assert_eq!(fs::read_to_string(from.join("meta.db")).unwrap(), "old");
    }
}
