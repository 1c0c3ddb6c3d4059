use super::*;

/// A node that wants a reboot, and nothing in its way.
fn wanted(lease: Lease) -> Facts {
    Facts {
        required: Fact::Known(true),
        file: Fact::Known(false),
        lease,
        kured: Fact::Known(Lock::Free),
        reasons: Vec::new(),
        whole: true,
        waited: false,
        owes_end: false,
        gives_up: None,
        rests: None,
        not_recovered: Vec::new(),
    }
}

fn open() -> Facts {
    Facts { file: Fact::Known(true), ..wanted(Lease::Held(Step::Open)) }
}

fn unknown<T>() -> Fact<T> {
    Fact::Unknown("why".to_owned())
}

fn reason() -> Reason {
    Reason::new(Code::NodeNotReady, "k3")
}

fn act(facts: &Facts) -> Act {
    plan(facts).act
}

#[test]
fn a_reboot_goes_from_lease_to_lease() {
    let before = wanted(Lease::NotOurs);
    assert!(before.asks_for_lease() && act(&before) == Act::Wait);
    assert_eq!(act(&wanted(Lease::Held(Step::Acquired))), Act::Announce);
    assert_eq!(act(&wanted(Lease::Held(Step::Open))), Act::Open);
    assert_eq!((act(&open()), plan(&open()).open), (Act::Wait, true));
    let drains = Facts { kured: Fact::Known(Lock::Here), ..open() };
    assert_eq!(act(&drains), Act::Wait, "kured drains");
    let back = |kured, not_recovered| Facts {
        required: Fact::Known(false),
        kured: Fact::Known(kured),
        not_recovered,
        ..wanted(Lease::Held(Step::Recover))
    };
    let waits = plan(&back(Lock::Returning, vec![]));
    assert_eq!(waits.act, Act::Wait);
    assert_eq!(waits.reasons.first().map(|reason| &reason.code[..4]), Some("Q073"), "{waits:?}");
    let sick = back(Lock::Free, vec![Reason::new(Code::Recovering, "etcd is behind")]);
    assert_eq!(act(&sick), Act::Wait, "h06: Ready is not recovered");
    assert_eq!(plan(&sick).reasons.first().map(|reason| &*reason.detail), Some("etcd is behind"));
    assert_eq!(act(&back(Lock::Free, vec![])), Act::GiveBack);
}

/// Each row makes one thing of an open gate wrong.
#[test]
fn an_open_gate_closes_on_whatever_is_not_as_it_should_be() {
    let rows = [
        ("the verdict turned", Facts { reasons: vec![reason()], ..open() }),
        ("not everything was looked at", Facts { whole: false, ..open() }),
        ("no reboot is wanted", Facts { required: Fact::Known(false), ..open() }),
        ("the host cannot be read", Facts { required: unknown(), ..open() }),
        ("another node has kured's lock", Facts { kured: Fact::Known(Lock::Elsewhere), ..open() }),
        ("kured's lock cannot be read", Facts { kured: unknown(), ..open() }),
        ("kured did not act", Facts { waited: true, ..open() }),
        ("the drain was aborted", Facts { gives_up: Some(reason()), ..open() }),
        ("the Lease is not held", Facts { lease: Lease::NotOurs, ..open() }),
        ("the Lease is late", Facts { lease: Lease::Ours, ..open() }),
        ("the Lease cannot be read", Facts { lease: Lease::Unknown, ..open() }),
        ("it was never announced", Facts { lease: Lease::Held(Step::Acquired), ..open() }),
        ("it is from before the boot", Facts { lease: Lease::Held(Step::Recover), ..open() }),
        ("the file cannot be seen", Facts { file: unknown(), lease: Lease::NotOurs, ..open() }),
    ];
    for (what, facts) in rows {
        let plan = plan(&facts);
        assert_eq!((plan.act, plan.open), (Act::Close, true), "{what}");
    }
}

#[test]
fn a_closed_gate_ends_kureds_pod_before_anything_is_given_back() {
    let closed = Facts { file: Fact::Known(false), owes_end: true, gives_up: Some(reason()), ..open() };
    assert_eq!(act(&closed), Act::EndKured);
    let ended = Facts { owes_end: false, ..closed.clone() };
    assert_eq!(act(&Facts { kured: Fact::Known(Lock::Returning), ..ended.clone() }), Act::Wait);
    assert_eq!(act(&Facts { kured: Fact::Known(Lock::Here), ..ended.clone() }), Act::Wait);
    assert_eq!(act(&Facts { kured: unknown(), ..ended.clone() }), Act::Wait, "it may be this node's");
    assert_eq!(act(&ended), Act::GiveBack);
    // The boot id may be of before the boot.
    let sick = Facts { not_recovered: vec![Reason::new(Code::Recovering, "etcd is behind")], ..ended };
    assert_eq!(act(&sick), Act::Wait);
    assert!(plan(&sick).reasons.iter().any(|reason| reason.code.starts_with("S034")));
    // Without the Lease as well.
    assert_eq!(act(&Facts { lease: Lease::NotOurs, ..closed }), Act::EndKured);
    assert_eq!(act(&Facts { kured: Fact::Known(Lock::Here), ..wanted(Lease::NotOurs) }), Act::EndKured);
}

#[test]
fn nobody_asks_for_the_lease_for_nothing() {
    let no = |facts: Facts| assert!(!facts.asks_for_lease(), "{facts:?}");
    no(Facts { reasons: vec![reason()], ..wanted(Lease::NotOurs) });
    no(Facts { whole: false, ..wanted(Lease::NotOurs) });
    no(Facts { required: Fact::Known(false), ..wanted(Lease::NotOurs) });
    no(Facts { required: unknown(), ..wanted(Lease::NotOurs) });
    no(Facts { kured: Fact::Known(Lock::Elsewhere), ..wanted(Lease::NotOurs) });
    no(Facts { kured: unknown(), ..wanted(Lease::NotOurs) });
    no(Facts { rests: Some("until".to_owned()), ..wanted(Lease::NotOurs) });
    no(Facts { owes_end: true, ..wanted(Lease::NotOurs) });
    no(Facts { file: Fact::Known(true), ..wanted(Lease::NotOurs) });
    no(Facts { file: unknown(), ..wanted(Lease::Ours) });
    no(wanted(Lease::Unknown));
    // What its node has begun is taken up whatever else is.
    assert!(Facts { required: Fact::Known(false), reasons: vec![reason()], ..wanted(Lease::Ours) }.asks_for_lease());
    // What was taken for nothing is given back.
    assert_eq!(act(&Facts { reasons: vec![reason()], ..wanted(Lease::Held(Step::Acquired)) }), Act::GiveBack);
}

#[test]
fn a_node_that_wants_nothing_has_nothing_to_say() {
    let quiet = Facts { required: Fact::Known(false), reasons: vec![reason()], ..wanted(Lease::NotOurs) };
    assert_eq!(plan(&quiet), Plan { act: Act::Wait, open: false, pending: false, reasons: Vec::new() });
}
