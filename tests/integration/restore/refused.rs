//! What a restore refuses, before anything is changed.

use super::*;
use quorate::etcd::backup::manifest::Compression;
use quorate::etcd::backup::seal::Seal;

/// A key of age that opens nothing here.
const STRANGE: &str = "AGE-SECRET-KEY-1QYPQXPQ9QCRSSZG2PVXQ6RS0ZQG3YYC5Z5TPWXQERGD3C8G7RUSQGPQYEE";

/// One thing is wrong at a time; then nothing is, but that there is quorum.
pub(super) fn everything_that_is_wrong_is_told(place: &Place, file: &Path) -> Result<()> {
    let before = place.untouched()?;
    let although = ["--yes=k1", "--although-quorum", "--because=a test"];
    let unchanged = |said: &Said| -> Result<()> {
        ensure!(place.untouched()? == before && !place.state.path().join("restore.begun").exists(), "{said:?}");
        Ok(())
    };
    let refused = |file: &Path, more: &[&str], code: i32, what: &str| -> Result<Said> {
        let said = place.restore(file, more)?.ended(code, what);
        unchanged(&said)?;
        Ok(said)
    };
    // Quorum is there, and who has not said that it does not matter is not told what stops it.
    let said = refused(file, &["--yes=k1"], 10, "Q038-restore-over-quorum")?;
    assert!(said.out.contains("k2 is not stopped") && !said.err.contains("pgrep"), "{said:?}");
    // Who has, is; and two clusters at once are not to be had.
    let said = refused(file, &although, 11, "k3 is not stopped: port 2379 of")?;
    assert!(said.err.contains("on k2, as root:") && said.err.contains("pgrep"), "{said:?}");
    refused(
        file,
        &[&although[..], &["--gone=k7"]].concat(),
        2,
        "no other control plane node is called so; there are k2, k3",
    )?;
    // That it is gone does not count against its answer.
    refused(file, &[&although[..], &["--gone=k2", "--gone=k3"]].concat(), 11, "k2 is not stopped")?;
    // The snapshot.
    let bytes = fs::read(file)?;
    let other = place.snapshots.path().join("other.db");
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    fs::write(&other, &damaged)?;
    refused(&other, &although, 21, "other.db: ")?;
    fs::write(&other, &bytes[..bytes.len() - 32])?;
    refused(&other, &although, 21, "it has no checksum")?;
    refused(&place.snapshots.path().join("nowhere.db"), &although, 2, "nowhere.db")?;
    Ok(())
}

#[test]
fn a_snapshot_for_another_key_and_a_disk_without_room_are_refused() -> Result<()> {
    let mut place = Place::new(EtcdVersion::V3_6, 1, false)?;
    let file = place.snapshot()?;
    place.hand_over()?;
    place.served()?;
    let before = place.untouched()?;
    let although = ["--yes=k1", "--although-quorum", "--because=a test"];
    // Sealed by a backup, for somebody else.
    let recipient = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";
    let sealed = place.snapshots.path().join("sealed.db.zst.age");
    let seal = Seal {
        compression: Compression::Zstd,
        recipients: vec![recipient.parse().map_err(|why: String| anyhow!(why))?],
    };
    let bytes = fs::read(&file)?;
    seal.write(fs::File::create(&sealed)?, |out| out.write_all(&bytes))?;
    let key = place.snapshots.path().join("key.txt");
    fs::write(&key, STRANGE)?;
    let identity = format!("--identity={}", key.display());
    place.restore(&sealed, &although)?.ended(2, "--identity");
    place.restore(&sealed, &[&although[..], &[&identity]].concat())?.ended(2, "for none of the identities");
    // Another node's name, no name, no reason.
    place
        .restore(&file, &["--yes=k2", "--although-quorum", "--because=a test"])?
        .ended(2, "is not this node, which is k1");
    place.restore(&file, &although[1..])?.ended(2, "confirm with --yes=k1");
    place.restore(&file, &["--yes=k1", "--although-quorum", "--because= "])?.ended(2, "--because is empty");
    // A tool that cannot raise revisions.
    place.script("old", "echo '  --data-dir string'")?;
    let old = format!("--etcdutl={}", place.snapshots.path().join("old").display());
    let mut args = place.run_args(&file, &although)?;
    args.retain(|arg| !arg.starts_with("--etcdutl"));
    args.push(old);
    Said::from(quorate(&args)?).ended(1, "has no --bump-revision");
    // A small disk.
    let small = TempDir::new()?;
    let mount = |args: &[&str]| Command::new(args[0]).args(&args[1..]).arg(small.path()).status();
    ensure!(mount(&["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs"])?.success());
    let mut args = place.run_args(&file, &although)?;
    args.retain(|arg| !arg.starts_with("--state-dir"));
    args.push(format!("--state-dir={}", small.path().display()));
    let said = quorate(&args);
    ensure!(mount(&["umount"])?.success());
    Said::from(said?).ended(11, "there is no room");
    assert_eq!(place.untouched()?, before);
    assert!(!place.state.path().join("restore.begun").exists());
    Ok(())
}
