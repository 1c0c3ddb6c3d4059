//! What strikes in the middle: nothing gets a name that counts, what was there stays, and the next backup is whole.

use super::*;

/// Enough to be struck in the middle of.
const MEGABYTES: u32 = 150;

/// A host with a large database, and a backup that is there already.
fn host() -> Result<(Host, Vec<String>)> {
    let host = Host::of(EtcdVersion::V3_6, 3)?;
    host.configured("{compression: none, stall: 2s}")?;
    host.backup(&[])?.ended(0, "Backup done");
    host.fill(MEGABYTES)?;
    host.cluster.wait_healthy(PATIENCE)?;
    let before = host.published()?;
    Ok((host, before))
}

/// The number of the member that a backup in the background takes its snapshot from.
fn giver(host: &Host) -> Result<usize> {
    let log = fs::read_to_string(host.log_path())?;
    let (_, rest) = log.rsplit_once("taking the snapshot from k").context("nobody is named")?;
    Ok(rest.split(' ').next().context("no number")?.parse()?)
}

#[test]
fn a_member_that_dies_or_freezes_in_mid_stream_costs_nothing_that_is_there() -> Result<()> {
    let (host, before) = host()?;
    let running = host.begin()?;
    host.midway(&running, 4_000_000)?;
    let frozen = host.cluster.member(giver(&host)?)?;
    frozen.pause()?;
    let said = host.ended(&running)?;
    assert!(said.contains("nothing came for 2 s") && said.contains("nothing was stored"), "{said}");
    assert_eq!(host.names()?, before);
    frozen.resume()?;
    host.cluster.wait_healthy(PATIENCE)?;

    let running = host.begin()?;
    host.midway(&running, 4_000_000)?;
    let killed = host.cluster.member(giver(&host)?)?;
    killed.kill()?;
    let said = host.ended(&running)?;
    assert!(said.contains(&format!("no snapshot from {}", killed.name())), "{said}");
    assert_eq!(host.names()?, before);

    // From who is left, or when it is back.
    killed.restart()?;
    host.cluster.wait_healthy(PATIENCE)?;
    host.backup(&[])?.ended(0, "Backup done");
    assert_eq!(host.published()?.len(), before.len() + 2);
    Ok(())
}

#[test]
fn a_backup_that_is_killed_leaves_no_name_and_the_next_one_tidies_up() -> Result<()> {
    let (host, before) = host()?;
    for compression in ["none", "zstd"] {
        host.configured(&format!("{{compression: {compression}, stall: 2s}}"))?;
        for bytes in [1, 8_000_000, u64::from(MEGABYTES) * 900_000] {
            let running = host.begin()?;
            host.midway(&running, bytes)?;
            running.kill()?;
            assert_eq!(host.published()?, before, "{compression}, {bytes}");
        }
    }
    assert!(host.names()?.len() > before.len(), "what was killed has left something");
    host.backup(&[])?.ended(0, "Backup done");
    let names = host.names()?;
    assert!(names.len() == before.len() + 2 && names == host.published()?, "{names:?}");
    Ok(())
}

/// The kernel refuses to write on, as a disk does that is full; and a disk of which it is known before.
#[test]
fn a_disk_that_is_full_is_told_before_or_in_the_middle() -> Result<()> {
    let (host, before) = host()?;
    let to = format!("--to={}", host.store.path().display());
    let words: Vec<String> = host.args(&[&to]).iter().map(|word| format!("'{word}'")).collect();
    let line = format!("trap '' XFSZ; ulimit -f 20000; exec {} {}", env!("CARGO_BIN_EXE_quorate"), words.join(" "));
    let said = Said::from(Command::new("bash").args(["-c", &line]).output()?).ended(1, "nothing was stored");
    assert!(said.out.contains("File too large"), "{said:?}");
    assert_eq!(host.names()?, before);

    let small = TempDir::new()?;
    let mount = |args: &[&str]| Command::new(args[0]).args(&args[1..]).arg(small.path()).status();
    assert!(mount(&["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs"])?.success());
    let said = host.command(&[&format!("--to={}", small.path().display())]).output();
    let left = fs::read_dir(small.path())?.count();
    assert!(mount(&["umount"])?.success());
    Said::from(said?).ended(11, "there is no room");
    assert_eq!(left, 0);
    Ok(())
}
