//! Whether the wall clock can be believed: windows and soaking are told by it, on this node and, by what it writes, on all others. Pure.

use super::reason::{Code, Reason};
use jiff::Timestamp;
use std::time::Duration;

/// How far the wall clock and the boot clock may go apart between two looks.
const JUMP: Duration = Duration::from_secs(60);

/// What both clocks said.
#[derive(Clone, Debug, Default)]
pub struct Jumps {
    before: Option<(Timestamp, Duration)>,
    /// The last jump: when, on the boot clock, and by how many seconds.
    last: Option<(Duration, f64)>,
}

impl Jumps {
    /// Another look at both. Whether the wall clock has jumped since the one before.
    pub fn look(&mut self, wall: Timestamp, boot: Duration) -> bool {
        let Some((wall_before, boot_before)) = self.before.replace((wall, boot)) else { return false };
        let by_wall = wall.duration_since(wall_before).as_secs_f64();
        let apart = by_wall - boot.saturating_sub(boot_before).as_secs_f64();
        let jumped = apart.abs() > JUMP.as_secs_f64();
        if jumped {
            self.last = Some((boot, apart));
        }
        jumped
    }

    /// Why nothing that is told by the wall clock counts: since a jump the boot clock has not run for as long as a node must have been up.
    pub fn reason(&self, soak: Duration) -> Option<Reason> {
        let ((_, boot), (at, apart)) = (self.before?, self.last?);
        let left = soak.saturating_sub(boot.saturating_sub(at));
        (boot == at || !left.is_zero()).then(|| {
            let left = left.as_secs().div_ceil(60);
            Reason::new(Code::ClockJumped, format!("by {apart:.0} s; {left} min are left until it counts again"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_jump_the_clock_counts_again_when_a_node_would_have_soaked() {
        let at = |wall: i64, boot: u64| (Timestamp::from_second(wall).unwrap(), Duration::from_secs(boot));
        let soak = Duration::from_secs(3600);
        let mut jumps = Jumps::default();
        let mut look = |wall, boot| {
            let (wall, boot) = at(wall, boot);
            let now = jumps.look(wall, boot);
            (now, jumps.reason(soak).is_some(), jumps.reason(Duration::ZERO).is_some())
        };
        assert_eq!(look(1_000_000, 100), (false, false, false), "nothing to compare with");
        assert_eq!(look(1_000_300, 401), (false, false, false));
        assert_eq!(look(1_100_000, 701), (true, true, true));
        assert_eq!(look(1_100_300, 1001), (false, true, false), "this look has not jumped, and a day is missing");
        assert_eq!(look(1_103_599, 4300), (false, true, false));
        assert_eq!(look(1_103_600, 4301), (false, false, false));
        assert_eq!(look(1_000_000, 4601), (true, true, true), "backwards, too");
    }
}
