//! The node of etcd's leader wants a reboot.

use super::*;

/// The other two only say since when they are up.
#[test]
fn the_leader_hands_over_before_its_gate_opens() -> Result<()> {
    let mut fleet = Fleet::new()?;
    fleet.kured(&["--period=10m", "--reboot-sentinel=/sentinel/quorate-reboot-required"])?;
    let leads = fleet.stage.leader()?;
    fleet.wants_reboot(leads)?;
    (1..=3).try_for_each(|number| fleet.start(number))?;
    assert_eq!(fleet.opens(&[leads])?, leads);
    assert_ne!(fleet.stage.leader()?, leads, "{}", fleet.log(leads)?);
    let log = fleet.log(leads)?;
    assert_eq!(log.matches("it hands over before its gate is opened").count(), 1, "{log}");
    assert_eq!(log.matches("The Lease is held").count(), 1, "in one turn: {log}");
    Ok(())
}
