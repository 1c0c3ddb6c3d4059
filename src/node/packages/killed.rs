//! The real dpkg and apt, killed in the middle of a package, in a mount namespace of its own: empty package databases, and a repository
//! of small packages made here. Nothing of the host changes and no network is used.

use super::*;
use std::process::Command;

/// Says that this process is the one inside, and which mount namespace it must not be in.
const INSIDE: &str = "QUORATE_TEST_OUTSIDE_IS";

/// Three versions of each package, the newest of which nobody wants; a file `/srv/die-PACKAGE-SCRIPT` kills dpkg once.
const SETUP: &str = r#"
set -eu
for folder in /var/lib/dpkg /var/lib/apt /var/cache/apt /etc/apt /opt /var/log /srv; do
  mkdir -p "$folder"
  mount -t tmpfs tmpfs "$folder"
done
mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/alternatives /var/lib/dpkg/triggers /var/lib/dpkg/parts
mkdir -p /var/lib/apt/lists/partial /var/cache/apt/archives/partial /var/log/apt
mkdir -p /etc/apt/sources.list.d /etc/apt/apt.conf.d /etc/apt/preferences.d
: > /var/lib/dpkg/status
: > /var/lib/dpkg/available
repository='/srv/core:/stable:/v1.36/deb'
mkdir -p "$repository"
cd "$repository"
for version in 1.36.1 1.36.3 1.36.5; do
  for name in kubeadm kubelet kubectl; do
    build=/srv/build
    mkdir -p "$build/DEBIAN" "$build/opt/$name"
    echo "$version" > "$build/opt/$name/version"
    printf 'Package: %s\nVersion: %s-1.1\nArchitecture: all\nMaintainer: T <t@example.org>\nDescription: made here\n' \
      "$name" "$version" > "$build/DEBIAN/control"
    for script in preinst postinst; do
      printf '#!/bin/sh\nif [ -e /srv/die-%s-%s ]; then rm /srv/die-%s-%s; kill -9 $PPID; fi\nexit 0\n' \
        "$name" "$script" "$name" "$script" > "$build/DEBIAN/$script"
      chmod 755 "$build/DEBIAN/$script"
    done
    file="${name}_$version.deb"
    dpkg-deb --build -Znone "$build" "$file" > /dev/null
    { cat "$build/DEBIAN/control"; echo "Filename: ./$file"; echo "Size: $(stat -c %s "$file")"
      echo "SHA256: $(sha256sum "$file" | cut -d' ' -f1)"; echo; } >> Packages
    rm -r "$build"
  done
done
{ date -Ru | sed 's/^/Date: /'; echo SHA256:; echo " $(sha256sum Packages | cut -d' ' -f1) $(stat -c %s Packages) Packages"; } > Release
echo "deb [trusted=yes] file:$repository ./" > /etc/apt/sources.list.d/kubernetes.list
"#;

/// Back to where each case begins, whatever the one before left.
const DOWN: &str = "apt-get install -y -q --allow-downgrades --allow-change-held-packages \
                    kubeadm=1.36.1-1.1 kubelet=1.36.1-1.1 kubectl=1.36.1-1.1";

fn sh(script: &str) {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

fn mounts() -> String {
    std::fs::read_link("/proc/self/ns/mnt").unwrap().to_string_lossy().into_owned()
}

#[test]
fn r14_what_a_killed_dpkg_left_is_finished_at_the_targets_version() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    match std::env::var(INSIDE) {
        Err(_) => {
            let this = format!(
                "{}::r14_what_a_killed_dpkg_left_is_finished_at_the_targets_version",
                module_path!().split_once("::").unwrap().1
            );
            let output = Command::new("unshare")
                .args(["--mount", "--propagation", "private"])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", &this, "--nocapture"])
                .env(INSIDE, mounts())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.contains("1 passed"), "{said}\n{errors}");
        }
        Ok(outside) => {
            assert_ne!(mounts(), outside, "this would change the host's own packages");
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(inside());
        }
    }
}

/// Another dpkg holds the lock for a moment, as unattended upgrades do: that is waited for, not a step that ends midway.
async fn another_is_at_work(apt: PackageManager, deadline: Deadline) {
    let lock = std::fs::File::options().write(true).open("/var/lib/dpkg/lock-frontend").unwrap();
    rustix::fs::fcntl_lock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1500));
        drop(lock);
    });
    apt.hold(&NAMES, deadline).await.unwrap();
    assert_eq!(apt.known(deadline).await.unwrap().held.len(), NAMES.len());
    other.join().unwrap();
}

async fn inside() {
    sh(SETUP);
    let (apt, root) = (PackageManager::Apt, Path::new("/"));
    let deadline = Deadline::after(Duration::from_secs(120));
    let (from, to): (Version, Version) = ("v1.36.1".parse().unwrap(), "v1.36.3".parse().unwrap());
    apt.point_to(root, to, deadline).await.unwrap();
    sh(DOWN);
    another_is_at_work(apt, deadline).await;
    for name in ["kubelet", "kubeadm"] {
        for (script, torn, held_meanwhile) in [
            ("preinst", true, false),
            ("postinst", false, false),
            ("preinst", true, true),
            // dpkg leaves a held package unconfigured.
            ("postinst", false, true),
        ] {
            let what = format!("{name}, killed in its {script}, held: {held_meanwhile}");
            sh(DOWN);
            apt.hold(&NAMES, deadline).await.unwrap();
            assert_eq!(apt.known(deadline).await.unwrap().installed.len(), 3, "{what}");

            std::fs::write(format!("/srv/die-{name}-{script}"), "").unwrap();
            apt.install(root, &[name], to, deadline).await.unwrap_err();
            assert!(journal_left(root).unwrap(), "{what}");
            let known = apt.known(deadline).await.unwrap();
            assert!(!known.installed.contains_key(name), "{what}: {known:?}");
            assert_eq!(known.half_done[name].torn, torn, "{what}: {known:?}");
            assert_eq!(known.half_done[name].version, Some(if torn { from } else { to }), "{what}: {known:?}");
            if held_meanwhile {
                apt.hold(&[name], deadline).await.unwrap();
            }

            // The sub-step before it looks as well, and is not stopped either.
            assert!(apt.lacking_there(root, to, deadline).await.unwrap().is_empty(), "{what}");
            apt.point_to(root, to, deadline).await.unwrap();
            apt.install(root, &[name], to, deadline).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            let known = apt.known(deadline).await.unwrap();
            assert!(known.half_done.is_empty() && !journal_left(root).unwrap(), "{what}: {known:?}");
            for other in NAMES {
                let wanted = if other == name { to } else { from };
                assert_eq!(known.installed[other], wanted, "{what}: {other}");
            }
            let file = std::fs::read_to_string(format!("/opt/{name}/version")).unwrap();
            assert_eq!(format!("v{}", file.trim()), to.to_string(), "{what}");
        }
    }
}
