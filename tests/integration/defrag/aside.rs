//! The node's apiserver out of rotation while its etcd is away: the program enters the host, which here is a namespace of each kind made for
//! this test, and puts its rule into the kernel. Who answers then is tested beside the rule itself (`src/node/handover/kernel.rs`).

use super::*;

/// Says that this process is the one inside, and in which network it must not be.
const INSIDE: &str = "QUORATE_TEST_OUTSIDE_IS";
const TABLE: &str = "quorate_handover";

#[test]
fn clients_go_to_peers_while_a_member_is_away_and_no_longer() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    if let Ok(outside) = std::env::var(INSIDE) {
        assert!(std::process::id() == 1 && network()? != outside, "this would change the host");
        return inside();
    }
    let here = module_path!().split_once("::").context("a module")?.1;
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
        .arg(std::env::current_exe()?)
        .args(["--exact", &format!("{here}::clients_go_to_peers_while_a_member_is_away_and_no_longer"), "--nocapture"])
        .env(INSIDE, network()?)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{errors}");
    Ok(())
}

fn network() -> Result<String> {
    Ok(fs::read_link("/proc/self/ns/net")?.to_string_lossy().into_owned())
}

fn sh(script: &str) -> Result<String> {
    let output = Command::new("sh").args(["-ec", script]).output()?;
    anyhow::ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// What kubeadm leaves on the node of this member, in a copy of /etc that nobody outside sees.
fn host_of(place: &Place, member: u8) -> Result<()> {
    let address = place.stage.api.address(member);
    let folder = "/etc/kubernetes/manifests";
    fs::create_dir_all(folder)?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kube-apiserver"}, "spec": {"containers": [
        {"name": "kube-apiserver", "image": "registry.k8s.io/kube-apiserver:v1.36.1",
            "command": ["kube-apiserver", format!("--advertise-address={address}")]}]}});
    fs::write(format!("{folder}/kube-apiserver.yaml"), pod.to_string())?;
    Ok(())
}

/// Begins on that member's node and waits until the member is away, with the rule in force.
fn begun(place: &Place, member: usize) -> Result<(Process, Process)> {
    host_of(place, u8::try_from(member)?)?;
    let stalled = place.snapshot(member)?;
    let run = place.stage.begin_of(&format!("k{member}-1"), place.words(member, 1, &["--hand-over"])?)?;
    place.begins(member, 1)?;
    let armed = sh(&format!("nft list set ip {TABLE} armed"))?;
    let own = format!("{} . 6443", place.stage.api.address(u8::try_from(member)?));
    assert!(armed.contains(&own), "{armed}");
    let log = place.log(member, 1)?;
    assert!(log.contains(&format!("new connections to k{member}'s apiserver go to [")), "{log}");
    Ok((stalled, run))
}

fn the_rule_is_gone() -> Result<()> {
    until("the rule is gone", PATIENCE, || {
        let tables = sh("nft list tables")?;
        Ok(if tables.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!(tables)) })
    })
}

fn inside() -> Result<()> {
    sh(
        "ip link set lo up; mount -t tmpfs tmpfs /mnt; cp -a /etc /mnt/etc; mount --bind /mnt/etc /etc; rm -rf /etc/kubernetes; mkdir -p /etc/kubernetes",
    )?;
    let place = Place::of(EtcdVersion::V3_6, 48)?;
    std::os::unix::fs::symlink(place.stage.api.pki_dir(), "/etc/kubernetes/pki")?;

    let (stalled, run) = begun(&place, 2)?;
    stalled.kill()?;
    ended(&run)?;
    let log = place.log(2, 1)?;
    assert!(log.contains(r#""outcome":"ok""#) && log.contains("come to this node's apiserver again"), "{log}");
    assert_eq!((sh("nft list tables")?, place.held()?), (String::new(), Default::default()), "{log}");

    // Killed: the other process hears its end.
    let (stalled, run) = begun(&place, 3)?;
    run.kill()?;
    stalled.kill()?;
    the_rule_is_gone()
}
