//! Voters that are healthy and under strain (incident R19).

use super::*;

const GIB: u64 = 1 << 30;

fn reads(first: Fact<u64>, second: Fact<u64>) -> impl FnOnce(&mut MemberView) {
    move |view| {
        view.first_read = first;
        view.second_read = second;
    }
}

fn took(n: u64, who: u64, first: u64, second: u64) -> Cluster {
    healthy(n).on_member(who, reads(Fact::Known(first), Fact::Known(second)))
}

#[test]
fn a_voter_that_reads_slowly_holds_a_new_target() {
    let slow = |n: u64, who: u64| took(n, who, 1_800, 1_001);
    check([
        ("k2, both times", slow(3, 2), reboot(1), "held Q024"),
        ("of five", slow(5, 2), reboot(1), "held Q024"),
        ("the target itself", slow(3, 1), upgrade(1), "held Q024"),
        ("at the bound", took(3, 2, 1_000, 1_000), reboot(1), "permitted 0"),
        ("the first time only", took(3, 2, 2_900, 1_000), reboot(1), "permitted 0"),
        ("the second time only", took(3, 2, 1_000, 2_900), reboot(1), "permitted 0"),
        ("another bound", took(3, 2, 51, 51).with(|c| c.policy.slow_read = 50), reboot(1), "held Q024"),
        ("lifted", slow(3, 2).lifting(&[Code::ReadSlow]), reboot(1), "permitted 0"),
        (
            "its second read was not answered: that is no hiccup",
            healthy(3).on_member(2, |view| view.second_read = unknown()),
            reboot(1),
            "held Q014",
        ),
        (
            "how long the first took is not known",
            healthy(3).on_member(2, |view| view.first_read = unknown()),
            reboot(1),
            "held Q014",
        ),
        (
            "nothing could be read through it: it does not count, and nobody asks how long that took",
            healthy(3).on_member(2, reads(unknown(), Fact::Known(2_000))).on_member(2, |view| {
                view.linearizable_read = unknown();
            }),
            reboot(1),
            "refused Q014 Q030",
        ),
        ("leadership stays meanwhile", slow(3, 3), move_leader(2), "held Q024"),
        ("nobody joins meanwhile", slow(3, 2), Disruption::AddLearner, "held Q024"),
        ("nor is anybody defragmented", slow(3, 2), defragment(1), "held Q024"),
        ("of a learner there is no read", healthy(3).learner(), promote(4), "permitted 0"),
    ]);
}

/// A slow voter counts: what keeps others from beginning must not keep what is half done from its end.
#[test]
fn strain_holds_nobody_who_finishes_mends_or_takes_a_worker() {
    let all = |cluster: Cluster| {
        (1..=3).fold(cluster, |cluster, n| {
            cluster.on_member(n, |view| fixture::slow(view, 2_900)).on_samples(n, |s| s.db_size = 2 * GIB)
        })
    };
    let half_done =
        || ours("k1", healthy(3).adopted("k1")).power_cut(1).on_node("k1", |node| node.ready = Fact::Known(false));
    check([
        ("begun anew", all(healthy(3)), upgrade(1), "held Q024 Q025"),
        ("the Lease was taken, nothing begun", all(healthy(3).taken("k1")), upgrade(1), "held Q024 Q025"),
        ("finished", all(healthy(3).adopted("k1")), upgrade(1), "permitted 0"),
        (
            "finished, its own voter down",
            all(healthy(3)).with(|c| *c = strained(half_done())),
            upgrade(1),
            "permitted 0",
        ),
        ("leadership moves off what is half done", strained(half_done()), move_leader(2), "permitted 0"),
        ("a dead member goes", all(healthy(3)).member_dead(2), remove(2), "permitted 0"),
        ("a dead member is replaced", all(healthy(3)).member_dead(2), replace(2), "permitted 0"),
        ("a learner is promoted", all(healthy(3)).learner(), promote(4), "permitted 0"),
        ("a worker", all(healthy(3)), worker(), "permitted 1"),
        (
            "what is half done is refused for what is lost, and for that only",
            strained(half_done()).member_dead(2),
            upgrade(1),
            "refused Q004 Q030",
        ),
    ]);
}

/// k2 and k3 read slowly, and their databases are full.
fn strained(cluster: Cluster) -> Cluster {
    [2, 3].into_iter().fold(cluster, |cluster, n| {
        cluster.on_member(n, |view| fixture::slow(view, 2_900)).on_samples(n, |s| s.db_size = 2 * GIB)
    })
}

#[test]
fn a_database_that_is_nearly_full_holds_a_new_target() {
    let fills = |size: u64, quota: Fact<Quota>| {
        healthy(3).on_samples(2, move |sample| {
            sample.db_size = size;
            sample.db_quota = quota.clone();
        })
    };
    let of = |bytes: u64| Fact::Known(Quota::Bytes(bytes));
    let assumed = |bytes: u64, cluster: Cluster| cluster.with(|c| c.policy.assumed_quota = bytes);
    check([
        ("nine tenths", fills(900, of(1_000)), reboot(1), "permitted 0"),
        ("a byte more", fills(901, of(1_000)), reboot(1), "held Q025"),
        ("all of it", fills(2 * GIB, of(2 * GIB)), reboot(1), "held Q025"),
        ("the target's own", fills(901, of(1_000)), reboot(2), "held Q025"),
        ("another bound", fills(501, of(1_000)).with(|c| c.policy.database_fill = 50), reboot(1), "held Q025"),
        ("what cannot be multiplied in 64 bits", fills(u64::MAX / 2, of(u64::MAX)), reboot(1), "permitted 0"),
        ("lifted", fills(901, of(1_000)).lifting(&[Code::DatabaseNearlyFull]), reboot(1), "permitted 0"),
        ("a large quota", fills(4 * GIB, of(8 * GIB)), reboot(1), "permitted 0"),
        ("no quota at all", fills(8 * GIB, Fact::Known(Quota::Disabled)), reboot(1), "permitted 0"),
        ("not told: the default", fills(2 * GIB - 1, unknown()), reboot(1), "held Q025"),
        ("not told, and more than the default holds", fills(4 * GIB, unknown()), reboot(1), "held Q025"),
        ("not told, and less", fills(GIB, unknown()), reboot(1), "permitted 0"),
        ("not told, the configuration does", assumed(8 * GIB, fills(4 * GIB, unknown())), reboot(1), "permitted 0"),
        (
            "the configuration is not asked where etcd tells",
            assumed(8 * GIB, fills(4 * GIB, of(2 * GIB))),
            reboot(1),
            "held Q025",
        ),
        ("cured", fills(901, of(1_000)), defragment(1), "permitted 0"),
        ("cured", fills(901, of(1_000)), defragment(2), "permitted 0"),
        (
            "the later sample counts",
            fills(901, of(1_000)).on_second(2, |sample| sample.db_size = 100),
            reboot(1),
            "permitted 0",
        ),
    ]);
}
