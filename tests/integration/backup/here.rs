//! Backups that are carried out.

use super::*;

/// As it comes, and compressed for somebody: what is stored is what etcd's own tools take it for.
fn a_backup_is_proven_and_opens_again(version: EtcdVersion) -> Result<()> {
    let host = Host::of(version, 3)?;
    host.put("before", b"yes")?;
    let leader = host.leader()?;
    host.configured("{compression: none}")?;
    let said = host.backup(&[])?.ended(0, "Backup done: etcd-snapshot-");
    let [manifest] = host.manifests()?.try_into().map_err(|all| anyhow!("{all:?}"))?;
    let file = host.stored(&manifest);
    let bytes = fs::metadata(&file)?.len();
    assert!(
        said.err.contains(&format!("Backup done: {} ({bytes} bytes)", file.file_name().unwrap().display())),
        "{said:?}"
    );
    // From a follower.
    let giver = manifest["member"]["name"].as_str().context("no member")?;
    assert_ne!(giver, format!("k{leader}"));
    assert!(manifest["etcdVersion"].as_str().unwrap().starts_with(version.number()), "{manifest}");
    assert_eq!(host.names()?.len(), 2, "{:?}", host.names()?);
    // etcd's own word.
    let status = Command::new(lab::binaries::etcdutl(version)?)
        .args(["snapshot", "status", "--write-out=json"])
        .arg(&file)
        .output()?;
    let status: Value = serde_json::from_slice(&status.stdout)?;
    for field in ["hash", "revision", "totalSize"] {
        assert_eq!(manifest["snapshot"][field], status[field], "{field}: {manifest}, {status}");
    }
    let sum = Command::new("sha256sum").arg(&file).output()?;
    let sum = String::from_utf8(sum.stdout)?;
    for of in ["snapshot", "stored"] {
        assert!(sum.starts_with(manifest[of]["sha256"].as_str().unwrap()), "{sum} {manifest}");
    }
    let said = verify(&file, &[])?.ended(0, "verified").document();
    assert_eq!(said["manifest"], manifest);
    // A snapshot that is sound, and not the one that its manifest is about.
    let own = fs::read(&file)?;
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/crates/etcd-snapshot/fuzz/corpus/used-3.6.db"), &file)?;
    verify(&file, &[])?.ended(21, "its manifest says");
    fs::write(&file, own)?;

    // A second name a second later, whatever the clock says.
    host.configured(&format!("{{recipients: [{}]}}", KEYS[0].0))?;
    host.another(&[])?.ended(0, ".db.zst.age");
    let sealed = host.manifests()?.pop().context("no second")?;
    let sealed_file = host.stored(&sealed);
    assert!(sealed["stored"]["bytes"].as_u64() < sealed["snapshot"]["bytes"].as_u64(), "{sealed}");
    assert_eq!(sealed["stored"]["encryption"]["recipients"], json!([KEYS[0].0]));
    let (own, strange) = (key_file(host.state.path(), 0)?, key_file(host.state.path(), 1)?);
    verify(&sealed_file, &["--identity", &own])?.ended(0, "verified");
    verify(&sealed_file, &["--identity", &strange])?.ended(2, "for none of the identities that were given");
    verify(&sealed_file, &[])?.ended(2, "--identity");
    // Without quorate, by the tools of the two formats.
    let opened = Command::new("sh")
        .args(["-c", r#"age -d -i "$1" "$2" | zstd -dc | sha256sum"#, "sh", &own])
        .arg(&sealed_file)
        .output()?;
    let sum = sealed["snapshot"]["sha256"].as_str().context("no sum")?;
    assert!(String::from_utf8_lossy(&opened.stdout).starts_with(sum), "{opened:?}");
    // Of the node nothing but here a manifest of etcd is there.
    assert!(sealed["node"]["absent"].as_str().unwrap().contains("ca.key is not here"), "{sealed}");

    // A bit of what is stored, and another file under its name.
    let whole = fs::read(&sealed_file)?;
    let mut damaged = whole.clone();
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    fs::write(&sealed_file, &damaged)?;
    verify(&sealed_file, &["--identity", &own])?.ended(21, "it is damaged");
    fs::write(&sealed_file, &whole[..at])?;
    verify(&sealed_file, &["--identity", &own])?.ended(21, "it is damaged: ");
    let list = host.command(&["--list", &format!("--to={}", host.store.path().display())]).output()?;
    let list = Said::from(list).ended(0, "EtcdBackups").document();
    assert_eq!(
        (list["backups"].as_array().map(Vec::len), list["strange"].as_array().map(Vec::len)),
        (Some(1), Some(1))
    );
    Ok(())
}

#[test]
fn a_backup_of_etcd_3_5_is_proven_and_opens_again() -> Result<()> {
    a_backup_is_proven_and_opens_again(EtcdVersion::V3_5)
}

#[test]
fn a_backup_of_etcd_3_6_is_proven_and_opens_again() -> Result<()> {
    a_backup_is_proven_and_opens_again(EtcdVersion::V3_6)
}

#[test]
fn a_backup_of_etcd_3_7_is_proven_and_opens_again() -> Result<()> {
    a_backup_is_proven_and_opens_again(EtcdVersion::V3_7)
}

/// Whichever member is drained, dead or frozen: any follower that is healthy serves.
#[test]
fn r32_any_healthy_follower_serves_and_no_member_by_its_name() -> Result<()> {
    let host = Host::of(EtcdVersion::V3_6, 3)?;
    host.configured("{compression: none}")?;
    let leader = host.leader()?;
    let [one, other] = (1..=3).filter(|number| *number != leader).collect::<Vec<_>>()[..] else { panic!("two") };
    for (gone, serves) in [(one, other), (other, one)] {
        host.cluster.member(gone)?.pause()?;
        let said = host.another(&[])?.ended(0, "Backup done");
        assert!(said.err.contains(&format!("taking the snapshot from k{serves} ")), "{said:?}");
        assert!(said.err.contains(&format!("not from another: Q004-member-unanswered: k{gone}")), "{said:?}");
        host.cluster.member(gone)?.resume()?;
        host.cluster.wait_healthy(PATIENCE)?;
        if host.leader()? != leader {
            return Ok(()); // An election: who follows is another question then.
        }
    }
    Ok(())
}

/// It leads nobody any more, and serves a snapshot to whoever asks: etcd's snapshots ask no quorum.
#[test]
fn an_isolated_leader_that_still_answers_is_not_taken_for_a_source() -> Result<()> {
    let host = Host::of(EtcdVersion::V3_6, 3)?;
    host.configured("{compression: none}")?;
    let leader = host.leader()?;
    for number in (1..=3).filter(|number| *number != leader) {
        host.cluster.member(number)?.pause()?;
    }
    // Plain etcd: exit code 0.
    let (plain, pki) = (host.state.path().join("plain.db"), host.cluster.pki_dir());
    let saved = Command::new(lab::binaries::etcdctl()?)
        .arg(format!("--endpoints={}", host.cluster.member(leader)?.endpoint()))
        .arg(format!("--cacert={}", pki.join("ca.crt").display()))
        .arg(format!("--cert={}", pki.join("healthcheck-client.crt").display()))
        .arg(format!("--key={}", pki.join("healthcheck-client.key").display()))
        .args(["snapshot", "save"])
        .arg(&plain)
        .output()?;
    assert!(saved.status.success(), "{saved:?}");
    assert!(fs::metadata(&plain)?.len() > 0);
    let said = host.backup(&[])?.ended(12, "nothing was stored");
    assert!(said.document()["reasons"].to_string().contains("Q001-membership-unknown"), "{said:?}");
    assert_eq!(host.names()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn old_backups_go_after_a_new_one_and_a_dry_run_only_tells() -> Result<()> {
    let host = Host::of(EtcdVersion::V3_6, 1)?;
    host.configured("{compression: none, keep: 2, minimumAge: 0s}")?;
    host.backup(&[])?.ended(0, "Backup done");
    let first = host.manifests()?.pop().context("none")?;
    // Older ones of this cluster, dated back as their names say; one of another cluster, and one that no manifest speaks for.
    for day in 1..=3 {
        let mut old = first.clone();
        let name = format!("etcd-snapshot-2020010{day}-000000");
        (old["name"], old["takenAt"]) = (name.clone().into(), format!("2020-01-0{day}T00:00:00Z").into());
        old["snapshot"]["revision"] = 0.into();
        old["stored"]["file"] = format!("{name}.db").into();
        if day == 3 {
            old["clusterId"] = "dead".into();
        }
        fs::copy(host.stored(&first), host.store.path().join(format!("{name}.db")))?;
        fs::write(host.store.path().join(format!("{name}.json")), old.to_string())?;
    }
    fs::write(host.store.path().join("etcd-snapshot-20190101-000000.db"), "from the old pipeline")?;
    let before = host.names()?;
    let said = host.backup(&["--dry-run"])?.ended(0, "nothing was stored or removed");
    for line in
        ["after it: etcd-snapshot-20200101-000000", "after it: etcd-snapshot-20200102-000000", "of another cluster"]
    {
        assert!(said.out.contains(line), "{said:?}");
    }
    assert_eq!(host.names()?, before);
    let said = host.another(&[])?.ended(0, "removed: etcd-snapshot-20200101-000000");
    let names = host.names()?;
    assert!(!names.iter().any(|name| name.contains("20200101") || name.contains("20200102")), "{names:?}");
    for stays in ["etcd-snapshot-20200103-000000.db", "etcd-snapshot-20190101-000000.db"] {
        assert!(names.iter().any(|name| name == stays), "{names:?}");
    }
    assert!(said.out.contains("it was never proven"), "{said:?}");
    Ok(())
}

/// The node, while no apiserver serves although one answers: its archive lacks nothing but what the snapshot holds. One that is wanted and
/// cannot be made is told by the exit code, and costs neither the snapshot nor anything old.
#[test]
fn a_node_is_archived_although_the_api_is_of_no_use() -> Result<()> {
    let host = Host::of(EtcdVersion::V3_6, 1)?;
    let folder = host.cluster.dir().to_owned();
    host.admin(&serve(|_| ("500 Internal Server Error", b"etcd is away".to_vec()))?)?;
    fs::write(folder.join("pki/ca.key"), "the key of a test")?;
    let manifest = folder.join("manifests/kube-apiserver.yaml");
    fs::write(&manifest, "    - kube-apiserver\n")?;
    host.configured(&format!("{{compression: none, recipients: [{}], keep: 1, minimumAge: 0s}}", KEYS[0].0))?;
    // Two locks, and whoever has one looks at the other.
    let members = fs::File::create(host.state.path().join("members.lock"))?;
    members.lock()?;
    host.backup(&[])?.ended(11, "a change of members runs on this host");
    drop(members);
    let said = host.backup(&[])?.ended(0, "Backup done");
    assert!(said.out.contains("without kubeadm's own record, which the snapshot has as well"), "{said:?}");
    let first = host.manifests()?.pop().context("none")?;
    let archive = host.store.path().join(first["node"]["stored"]["file"].as_str().context("no archive")?);
    let (own, strange) = (key_file(host.state.path(), 0)?, key_file(host.state.path(), 1)?);
    let said = verify(&archive, &["--identity", &own])?.ended(0, "pki/ca.key").document();
    assert_eq!(said["manifest"], first);
    let unopened = verify(&archive, &[])?.ended(0, "manifest").document();
    assert!(unopened.get("holds").is_none(), "{unopened}");
    verify(&archive, &["--identity", &strange])?.ended(2, "for none of the identities that were given");
    let mut damaged = fs::read(&archive)?;
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    let copy = host.state.path().join(archive.file_name().context("no name")?);
    fs::write(&copy, &damaged)?;
    verify(&copy, &[])?.ended(21, "no manifest lies beside it");
    fs::copy(
        archive.with_file_name(format!("{}.json", first["name"].as_str().context("no name")?)),
        copy.with_file_name(format!("{}.json", first["name"].as_str().context("no name")?)),
    )?;
    verify(&copy, &[])?.ended(21, "its manifest says that it has");

    fs::write(&manifest, "    - --encryption-provider-config=/nowhere/enc.yaml\n")?;
    let said = host.another(&[])?.ended(20, "Backup done");
    assert!(
        said.out.contains("/nowhere/enc.yaml is not here") && said.out.contains("nothing that has one was removed"),
        "{said:?}"
    );
    let without = |all: &[Value]| all.iter().filter(|it| it["node"].get("stored").is_none()).count();
    let two = host.manifests()?;
    assert_eq!((two.len(), without(&two)), (2, 1));
    // A Job tries four times: what lacks it goes for the next that does.
    host.another(&[])?.ended(20, "Backup done");
    let again = host.manifests()?;
    assert_eq!((again.len(), without(&again)), (2, 1));
    assert!(again.contains(&first) && again != two, "{again:?}");
    Ok(())
}

/// Secrets that were to be encrypted do not lie there for anybody to read because the API was away.
#[test]
fn without_its_configuration_a_backup_is_refused_since_nobody_knows_for_whom_to_encrypt_it() -> Result<()> {
    let host = Host::of(EtcdVersion::V3_6, 1)?;
    let to = format!("--to={}", host.store.path().display());
    let args = host.args(&[&to]).into_iter().filter(|arg| !arg.starts_with("--config="));
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    let said: Said = command.args(args).env_remove("KUBERNETES_SERVICE_HOST").env_remove("KUBECONFIG").output()?.into();
    said.ended(2, "it is not known for whom a backup is to be encrypted: `--config FILE` says it");
    assert!(host.names()?.is_empty(), "{:?}", host.names()?);
    host.configured("{}")?;
    host.backup(&[])?.ended(0, "Backup done");
    Ok(())
}

/// Only a server that says 404 has no manifest; what is secret in an address is not told.
#[test]
fn a_manifest_that_a_url_does_not_give_is_not_taken_for_none() -> Result<()> {
    let host = Host::of(EtcdVersion::V3_6, 1)?;
    host.configured("{compression: none}")?;
    host.backup(&[])?.ended(0, "Backup done");
    let manifest = host.manifests()?.pop().context("none")?;
    let (file, bytes) = (host.stored(&manifest), fs::read(host.stored(&manifest))?);
    let name = file.file_name().context("no name")?.to_string_lossy().into_owned();
    let text = manifest.to_string();
    let url = serve(move |path| match path.split_once('/').and_then(|(_, path)| path.split_once('/')) {
        Some((_, file)) if file.contains(".db") => ("200 OK", bytes.clone()),
        Some(("none", _)) => ("404 Not Found", Vec::new()),
        Some(("shut", _)) => ("403 Forbidden", Vec::new()),
        Some(("away", _)) => ("503 Service Unavailable", Vec::new()),
        _ => ("200 OK", text.clone().into_bytes()),
    })?;
    let of = |folder: &str, query: &str| {
        verify(format!("{}/{folder}/{name}{query}", url.replace("//", "//me:secret@")), &[])
    };
    for (folder, query, code, with) in [
        ("all", "", 0, true),
        ("none", "", 0, false),
        ("shut", "", 1, false),
        ("away", "", 1, false),
        ("shut", "?X-Amz-Signature=secret", 0, false),
    ] {
        let said = of(folder, query)?.ended(code, &name);
        assert!(!said.out.contains("secret") && !said.err.contains("secret"), "{said:?}");
        assert_eq!(code == 0 && said.document().get("manifest").is_some(), with, "{folder}{query}: {said:?}");
    }
    Ok(())
}
