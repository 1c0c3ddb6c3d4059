//! Drills: the newest backup becomes a real etcd, which is compared and thrown away.

use super::*;
use std::os::unix::fs::PermissionsExt;

struct Scratch {
    folder: TempDir,
    version: EtcdVersion,
}

impl Scratch {
    fn new(version: EtcdVersion) -> Result<Self> {
        Ok(Self { folder: TempDir::new()?, version })
    }

    /// Of the store of that host.
    fn drill(&self, host: &Host, etcdutl: Option<&Path>, more: &[&str]) -> Result<Said> {
        let own = lab::binaries::etcdutl(self.version)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["etcd", "drill", "-ojson"]).args(more);
        command.arg(format!("--config={}/config.yaml", host.state.path().display()));
        command.arg(format!("--etcd={}", lab::binaries::etcd_server(self.version)?.display()));
        command.arg(format!("--etcdutl={}", etcdutl.unwrap_or(&own).display()));
        command.arg(format!("--scratch={}", self.folder.path().display()));
        let said = command.env_remove("KUBERNETES_SERVICE_HOST").env_remove("KUBECONFIG").output()?.into();
        // However it ended, nothing of it is left.
        let left: Vec<String> =
            fs::read_dir(self.folder.path())?.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(left, ["quorate-drill.lock"], "{said:?}");
        assert!(!self.runs()?, "its etcd runs still: {said:?}");
        Ok(said)
    }

    /// Whether any process has its folder on its command line.
    fn runs(&self) -> Result<bool> {
        let own = self.folder.path().display().to_string();
        let mut found = false;
        for entry in fs::read_dir("/proc")? {
            let words = fs::read(entry?.path().join("cmdline")).unwrap_or_default();
            found |= String::from_utf8_lossy(&words).contains(&own);
        }
        Ok(found)
    }
}

fn host(version: EtcdVersion, keys: u32) -> Result<Host> {
    let host = Host::of(version, 1)?;
    for number in 0..keys {
        host.put(&format!("/registry/keys/{number}"), b"value")?;
    }
    host.configured(&format!("{{directory: {}, recipients: [{}]}}", host.store.path().display(), KEYS[0].0))?;
    Ok(host)
}

fn a_backup_is_rehearsed(version: EtcdVersion) -> Result<()> {
    let (host, scratch) = (host(version, 20)?, Scratch::new(version)?);
    host.backup(&[])?.ended(0, "Backup done");
    let identity = format!("--identity={}", key_file(host.state.path(), 0)?);
    let said = scratch.drill(&host, None, &[&identity])?.ended(0, "20 keys");
    let summary = said.document()["summary"].as_str().unwrap().to_owned();
    assert!(summary.starts_with("a restore of etcd-snapshot-") && summary.contains("works: revision 21"), "{summary}");
    assert!(summary.contains("as many below each of 1 prefixes, and 20 of them with the values"), "{summary}");
    Ok(())
}

/// What is restored has as many keys at the same revision, and is another: the numbers alone do not tell.
fn another_snapshot_of_the_same_size_is_told(version: EtcdVersion, other: [(&str, &[u8]); 2], why: &str) -> Result<()> {
    let fill = |pairs: [(&str, &[u8]); 2]| -> Result<Host> {
        let host = Host::of(version, 1)?;
        pairs.iter().try_for_each(|(key, value)| host.put(key, value))?;
        host.configured(&format!("{{directory: {}, compression: none}}", host.store.path().display()))?;
        host.backup(&[])?.ended(0, "Backup done");
        Ok(host)
    };
    let host = fill([("/registry/pods/a", b"value"), ("/registry/secrets/b", b"value")])?;
    let scratch = Scratch::new(version)?;
    let path = host.state.path().join("drill.json");
    let record = format!("--record={}", path.display());
    scratch.drill(&host, None, &[&record])?.ended(0, "2 keys");
    let good = fs::read_to_string(&path)?;
    let from = serde_json::from_str::<Value>(&good)?["from"].as_str().context("no snapshot")?.to_owned();
    let other = fill(other)?;
    let tool = swapped(&host, version, &other.stored(&other.manifests()?.pop().context("no manifest")?))?;
    let said = scratch.drill(&host, Some(&tool), &[&record])?.ended(21, why);
    // The good one stays, and is told.
    assert_eq!(fs::read_to_string(&path)?, good);
    assert!(said.out.contains("the last good drill: ") && said.out.contains(&format!(", of {from}")), "{said:?}");
    assert!(said.document()["summary"].as_str().is_some_and(|it| it.contains("does not work: ")), "{said:?}");
    Ok(())
}

#[test]
fn a_restored_etcd_3_5_that_has_another_value_is_told() -> Result<()> {
    let other: [(&str, &[u8]); 2] = [("/registry/pods/a", b"value"), ("/registry/secrets/b", b"Value")];
    another_snapshot_of_the_same_size_is_told(EtcdVersion::V3_5, other, "its /registry/secrets/b has another value")
}

#[test]
fn a_restored_etcd_3_6_that_has_a_key_elsewhere_is_told() -> Result<()> {
    let other: [(&str, &[u8]); 2] = [("/registry/pods/a", b"value"), ("/registry/pods/b", b"value")];
    let why = "it has 2 keys below /registry/pods/, and the snapshot 1";
    another_snapshot_of_the_same_size_is_told(EtcdVersion::V3_6, other, why)
}

#[test]
fn a_restored_etcd_3_7_that_has_another_key_is_told() -> Result<()> {
    let other: [(&str, &[u8]); 2] = [("/registry/pods/a", b"value"), ("/registry/secrets/c", b"value")];
    another_snapshot_of_the_same_size_is_told(EtcdVersion::V3_7, other, "it has no /registry/secrets/b")
}

/// A tool that restores that database, whatever it was given.
fn swapped(host: &Host, version: EtcdVersion, db: &Path) -> Result<PathBuf> {
    let tool = host.state.path().join("etcdutl");
    let real = lab::binaries::etcdutl(version)?;
    let script = format!(
        "#!/bin/bash\nargs=(); for it in \"$@\"; do case $it in *.db) it={};; esac; args+=(\"$it\"); done; exec {} \"${{args[@]}}\"\n",
        db.display(),
        real.display()
    );
    fs::write(&tool, script)?;
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755))?;
    Ok(tool)
}

#[test]
fn a_backup_of_etcd_3_5_is_rehearsed() -> Result<()> {
    a_backup_is_rehearsed(EtcdVersion::V3_5)
}

#[test]
fn a_backup_of_etcd_3_7_is_rehearsed() -> Result<()> {
    a_backup_is_rehearsed(EtcdVersion::V3_7)
}

#[test]
fn a_drill_takes_the_newest_backup_and_says_what_keeps_it_from_being_restored() -> Result<()> {
    let version = EtcdVersion::V3_6;
    let (host, scratch) = (host(version, 5)?, Scratch::new(version)?);
    let (own, strange) = (key_file(host.state.path(), 0)?, key_file(host.state.path(), 1)?);
    let [own, strange] = [own, strange].map(|path| format!("--identity={path}"));
    scratch.drill(&host, None, &[&own])?.ended(21, "there is no backup that is whole");
    host.backup(&[])?.ended(0, "Backup done");
    let first = host.manifests()?.pop().context("no manifest")?;
    host.put("later", b"yes")?;
    until("the second is over", PATIENCE, || {
        let said = host.backup(&[])?;
        let taken = said.err.contains("it is there already");
        Ok(if taken { ControlFlow::Continue(anyhow!("{said:?}")) } else { ControlFlow::Break(said) })
    })?
    .ended(0, "Backup done");
    scratch.drill(&host, None, &[&own])?.ended(0, "6 keys");
    scratch.drill(&host, None, &[&strange])?.ended(2, "for none of the identities");
    // The older one by its name.
    let older = host.stored(&first).display().to_string();
    scratch.drill(&host, None, &[&own, &older])?.ended(0, "5 keys");

    // An etcd that a restore would not be made with.
    let newer = Scratch::new(EtcdVersion::V3_7)?;
    newer.drill(&host, None, &[&own])?.ended(21, "etcd of the drill is 3.7.");

    // A tool that restores something else than it was given.
    let other = scratch_db(&host, &own, &older)?;
    let tool = swapped(&host, version, &other)?;
    scratch.drill(&host, Some(&tool), &[&own])?.ended(21, "does not work: ");
    // One that writes nothing.
    fs::write(
        &tool,
        "#!/bin/sh\necho ' --bump-revision --mark-compacted'; case $* in *--help*) exit 0;; esac; exit 3\n",
    )?;
    scratch.drill(&host, Some(&tool), &[&own])?.ended(1, "exit status: 3");

    // A bit of the newest.
    let newest = host.stored(&host.manifests()?.pop().context("no manifest")?);
    let mut bytes = fs::read(&newest)?;
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&newest, bytes)?;
    scratch.drill(&host, None, &[&own])?.ended(21, "it is damaged");
    // One that is not even whole is passed over, and told; so is one of tomorrow.
    fs::remove_file(&newest)?;
    let mut tomorrow = first.clone();
    (tomorrow["name"], tomorrow["takenAt"]) = (json!("etcd-snapshot-21000101-000000"), json!("2100-01-01T00:00:00Z"));
    tomorrow["stored"]["file"] = json!("etcd-snapshot-21000101-000000.db.zst.age");
    fs::copy(&older, host.store.path().join("etcd-snapshot-21000101-000000.db.zst.age"))?;
    let name = host.store.path().join("etcd-snapshot-21000101-000000.json");
    fs::write(name, tomorrow.to_string())?;
    let said = scratch.drill(&host, None, &[&own])?.ended(0, "5 keys");
    for told in ["etcd-snapshot-21000101-000000 is dated in the future", "it is not whole: "] {
        assert!(said.err.contains(told), "{told}: {said:?}");
    }
    Ok(())
}

/// The older backup as etcd sent it.
fn scratch_db(host: &Host, identity: &str, sealed: &str) -> Result<PathBuf> {
    let key = identity.strip_prefix("--identity=").context("no identity")?;
    let keys: Vec<quorate::etcd::backup::seal::Identity> =
        quorate::etcd::backup::seal::Identity::read(Path::new(key)).map_err(|why| anyhow!(why))?;
    let path = host.state.path().join("other.db");
    let file = fs::File::create(&path)?;
    quorate::etcd::backup::seal::unseal(&fs::File::open(sealed)?, &keys, &file)?;
    Ok(path)
}

/// What the pod of the component does, its containers as processes one after the other, with their very command lines.
#[test]
fn the_containers_of_the_cron_job_do_a_drill() -> Result<()> {
    let version = EtcdVersion::V3_6;
    let host = host(version, 7)?;
    host.configured(&format!("{{directory: {}}}", host.store.path().display()))?;
    host.backup(&[])?.ended(0, "Backup done");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/kustomize/components/drill/cronjob.yaml");
    let cron_job: k8s_openapi::api::batch::v1::CronJob = serde_saphyr::from_str(&fs::read_to_string(path)?)?;
    let pod = cron_job.spec.and_then(|spec| spec.job_template.spec).and_then(|spec| spec.template.spec);
    let pod = pod.context("no pod")?;
    let scratch = TempDir::new()?;
    let command = |container: &k8s_openapi::api::core::v1::Container| -> Result<(PathBuf, Vec<String>)> {
        let words = container.command.iter().flatten().chain(container.args.iter().flatten());
        let mut words: Vec<String> = words
            .map(|word| {
                let word = word.replace("/scratch", &scratch.path().display().to_string());
                word.replace("/etc/quorate/config.yaml", &host.state.path().join("config.yaml").display().to_string())
            })
            .collect();
        let program = match container.name.as_str() {
            "fetch" | "quorate" => env!("CARGO_BIN_EXE_quorate").into(),
            "restore" if words.remove(0) == "etcdutl" => lab::binaries::etcdutl(version)?,
            "etcd" if words.remove(0) == "etcd" => lab::binaries::etcd_server(version)?,
            other => anyhow::bail!("what is container {other}?"),
        };
        Ok((program, words))
    };
    let run = |container: &k8s_openapi::api::core::v1::Container| -> Result<Said> {
        let (program, words) = command(container)?;
        Ok(Command::new(program).args(words).output()?.into())
    };
    let init = pod.init_containers.context("no init containers")?;
    let [fetch, restore, etcd] = init.as_slice() else { anyhow::bail!("{init:?}") };
    run(fetch)?.ended(0, "");
    run(restore)?.ended(0, "");
    assert_eq!(etcd.restart_policy.as_deref(), Some("Always"));
    let (program, words) = command(etcd)?;
    let server = Process::new("etcd", program, words, scratch.path().join("etcd.log"));
    server.start()?;
    let [compare] = pod.containers.as_slice() else { anyhow::bail!("{:?}", pod.containers) };
    run(compare)?.ended(0, "7 keys");
    server.kill()?;
    // Nobody serves it, and what was fetched is of no use to anybody else.
    fs::remove_file(scratch.path().join("rehearsed.json"))?;
    run(compare)?.ended(1, "what was fetched");
    Ok(())
}
