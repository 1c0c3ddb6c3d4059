//! All text that is given to nft. Pure.
//!
//! New connections to this node's apiserver, and of its pods to the Service default/kubernetes, go to peers. NAT sees only the first
//! packet of a connection and the first mapping wins, so the priority lies before kube-proxy's. The two rules
//! each look at a set whose elements time out by themselves: whoever stops refreshing them, however he ended, leaves rules that match nothing.
//! Where the kernel knows owners, the table goes away with the nft process as well.

use std::net::{IpAddr, SocketAddr};

/// Name of the table.
pub(super) const TABLE: &str = "quorate_handover";
/// How long the rule outlives its last refresh, in seconds.
const OUTLIVES: u32 = 15;

/// What is handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// This node's own apiserver.
    pub(super) local: SocketAddr,
    /// The Service default/kubernetes.
    pub(super) service: Option<SocketAddr>,
}

impl Target {
    /// `ip` or `ip6`.
    fn family(&self) -> &'static str {
        if self.local.is_ipv4() { "ip" } else { "ip6" }
    }

    fn same_family(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.local.is_ipv4()
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let service = self.service.filter(|service| self.same_family(service.ip()));
        std::iter::once(self.local).chain(service).collect()
    }

    /// Takes away what an earlier holder has left, which is refused where that one lives and owns it. Adding what may be there already never
    /// fails, so that deleting it never does. One line is one transaction.
    pub(super) fn clear(&self) -> String {
        let family = self.family();
        format!("add table {family} {TABLE}; delete table {family} {TABLE}")
    }

    /// Makes the table, matching nothing yet.
    pub(super) fn setup(&self, owned: bool) -> String {
        let (family, table) = (self.family(), TABLE);
        let flags = if owned { " { flags owner; }" } else { "" };
        let address = if family == "ip" { "ipv4_addr" } else { "ipv6_addr" };
        [
            format!("add table {family} {table}{flags}"),
            format!("add set {family} {table} armed {{ type {address} . inet_service; flags timeout; }}"),
            // The same without ports: nft cannot join a connection's original port to its address.
            format!("add set {family} {table} originals {{ type {address}; flags timeout; }}"),
            format!(
                "add chain {family} {table} prerouting {{ type nat hook prerouting priority -110; policy accept; }}"
            ),
            format!(
                "add chain {family} {table} postrouting {{ type nat hook postrouting priority 90; policy accept; }}"
            ),
        ]
        .join("; ")
    }

    /// Puts in force what holds for the next seconds, in one transaction: these peers, or nothing when none is ready.
    pub(super) fn refresh(&self, peers: &[IpAddr]) -> String {
        let (family, table, port) = (self.family(), TABLE, self.local.port());
        let peers: Vec<IpAddr> = peers.iter().copied().filter(|peer| self.same_family(*peer)).collect();
        let mut lines = vec![
            format!("flush chain {family} {table} prerouting"),
            format!("flush chain {family} {table} postrouting"),
            format!("flush set {family} {table} armed"),
            format!("flush set {family} {table} originals"),
        ];
        let list = |addresses: Vec<String>| addresses.join(", ");
        let to = match peers.as_slice() {
            [] => return lines.join("; "),
            [only] => bracketed(*only),
            several => {
                let map = several.iter().enumerate().map(|(n, peer)| format!("{n} : {peer}")).collect();
                format!("numgen inc mod {} map {{ {} }}", several.len(), list(map))
            }
        };
        let armed =
            self.addresses().iter().map(|it| format!("{} . {} timeout {OUTLIVES}s", it.ip(), it.port())).collect();
        let originals = self.addresses().iter().map(|it| format!("{} timeout {OUTLIVES}s", it.ip())).collect();
        let peers = peers.iter().map(IpAddr::to_string).collect();
        lines.push(format!("add element {family} {table} armed {{ {} }}", list(armed)));
        lines.push(format!("add element {family} {table} originals {{ {} }}", list(originals)));
        // Not what the node itself sends: kubelet, controller-manager, probes, and the proof of recovery stay local.
        lines.push(format!(
            "add rule {family} {table} prerouting iifname != \"lo\" {family} daddr . tcp dport @armed dnat to {to}:{port}"
        ));
        // The answer must come back through here. Only while this lives: kube-proxy too sends connections to the Service on
        // to these peers, and they keep their source address. Two connections that got the same port at once would lose one's first packet.
        lines.push(format!(
            "add rule {family} {table} postrouting ct status dnat ct original {family} daddr @originals {family} daddr {{ {} }} tcp dport {port} masquerade fully-random",
            list(peers)
        ));
        lines.join("; ")
    }

    /// Takes everything away.
    pub(super) fn remove(&self) -> String {
        format!("delete table {} {TABLE}", self.family())
    }

    /// Arguments of nft that print the set in force.
    pub(super) fn question(&self) -> [&'static str; 5] {
        ["list", "set", self.family(), TABLE, "armed"]
    }
}

fn bracketed(address: IpAddr) -> String {
    if address.is_ipv6() { format!("[{address}]") } else { address.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target { local: "10.10.0.11:6443".parse().unwrap(), service: Some("10.96.0.1:443".parse().unwrap()) }
    }

    #[test]
    fn two_peers() {
        let text = target().refresh(&["10.10.0.12".parse().unwrap(), "10.10.0.13".parse().unwrap()]);
        let lines: Vec<&str> = text.split("; ").collect();
        assert_eq!(
            lines,
            [
                "flush chain ip quorate_handover prerouting",
                "flush chain ip quorate_handover postrouting",
                "flush set ip quorate_handover armed",
                "flush set ip quorate_handover originals",
                "add element ip quorate_handover armed { 10.10.0.11 . 6443 timeout 15s, 10.96.0.1 . 443 timeout 15s }",
                "add element ip quorate_handover originals { 10.10.0.11 timeout 15s, 10.96.0.1 timeout 15s }",
                "add rule ip quorate_handover prerouting iifname != \"lo\" ip daddr . tcp dport @armed dnat to numgen inc mod 2 map \
                 { 0 : 10.10.0.12, 1 : 10.10.0.13 }:6443",
                "add rule ip quorate_handover postrouting ct status dnat ct original ip daddr @originals \
                 ip daddr { 10.10.0.12, 10.10.0.13 } tcp dport 6443 masquerade fully-random",
            ]
        );
    }

    #[test]
    fn every_rule_asks_a_set_that_times_out() {
        for target in [target(), Target { local: "[fd00::1]:6443".parse().unwrap(), service: None }] {
            let text = target.refresh(&["10.10.0.12".parse().unwrap(), "fd00::2".parse().unwrap()]);
            let rules: Vec<&str> = text.split("; ").filter(|line| line.starts_with("add rule")).collect();
            assert_eq!(rules.len(), 2);
            for (rule, set) in rules.iter().zip(["armed", "originals"]) {
                assert!(rule.contains(&format!(" @{set} ")), "{rule}");
                let elements = format!(" {set} {{ ");
                let line = text.split("; ").find(|line| line.starts_with("add element") && line.contains(&elements));
                let elements = line.unwrap().split_once(" { ").unwrap().1.split(", ");
                assert!(
                    elements.clone().count() >= 1 && elements.clone().all(|it| it.contains(" timeout 15s")),
                    "{line:?}"
                );
                assert!(target.setup(false).contains(&format!("add set {} {TABLE} {set} ", target.family())));
            }
        }
    }

    #[test]
    fn no_peer_ready_matches_nothing() {
        for peers in [vec![], vec!["fd00::2".parse().unwrap()]] {
            let text = target().refresh(&peers);
            assert!(!text.contains("add"), "{text}");
        }
    }

    #[test]
    fn the_owner_flag_is_the_only_difference() {
        let (owned, plain) = (target().setup(true), target().setup(false));
        assert_eq!(owned.replace(" { flags owner; }", ""), plain);
        assert_ne!(owned, plain);
        assert!(plain.contains("priority -110"), "before kube-proxy's -100: {plain}");
    }

    /// The real nft and kernel take it, in a network namespace of its own.
    #[test]
    fn nft_takes_every_text() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let six = Target { local: "[fd00::1]:6443".parse().unwrap(), service: None };
        let peers: [IpAddr; 4] = ["10.10.0.12", "10.10.0.13", "fd00::2", "fd00::3"].map(|it| it.parse().unwrap());
        for target in [target(), six] {
            for owned in [true, false] {
                let texts = [
                    target.clear(),
                    target.setup(owned),
                    target.refresh(&peers),
                    target.refresh(&peers[..3]),
                    target.refresh(&[]),
                    target.remove(),
                ];
                let script = "for text in \"$@\"; do echo \"$text\"; done | nft -i 2>&1; nft list tables";
                let output = std::process::Command::new("unshare")
                    .args(["-n", "sh", "-c", script, "sh"])
                    .args(&texts)
                    .output()
                    .unwrap();
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(output.status.success() && said.trim().is_empty(), "{texts:#?}\n{said}");
            }
        }
    }
}
