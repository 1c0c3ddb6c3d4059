//! `quorate etcd defrag --cure-nospace`: gives a cluster whose database has reached its quota its writes back. No Lease can be written
//! then, so it is done on the control plane nodes themselves, under the lock of each host: on one after the other, since whether the disk has
//! room for the copy is seen only there. The last one disarms the alarm.

use crate::cli::Global;
use crate::cli::etcd::Defrag;
use crate::clock::Clock;
use crate::etcd::members::{HostLock, half_done, nobody_known};
use crate::exit::UsageError;
use crate::place::InPlace;
use crate::report::{Outcome, Report};
use crate::seen;
use act::Work;
use plan::Room;
use quorum_safety::{Mine, Policy};
use step::Begun;
pub use step::Step;

mod act;
mod plan;
mod request;
mod step;

/// The command, as it is typed on each node.
const COMMAND: &str = "quorate etcd defrag --cure-nospace --here --without-api";

/// Runs it on this host.
///
/// # Errors
/// When it could not be carried out; what was refused, or is half done, is an answer.
pub(super) async fn run(global: &Global, defrag: &Defrag, clock: Clock) -> anyhow::Result<Report> {
    let because = defrag.because.as_deref().unwrap_or_default();
    if because.trim().is_empty() {
        return Err(UsageError("--because is empty: say why, it is recorded".to_owned()).into());
    }
    let place = InPlace::in_folder(global, &defrag.files.kubernetes_dir).await?;
    let config = place.configuration(global).await?;
    let policy = Policy { without_api: true, lifted: defrag.lift.clone(), ..config.policy() };
    let state = &defrag.files.state_dir;
    let held = |why: String| Ok(Report::new(Outcome::Held, format!("{why}; nothing was changed"), &[]));
    let Some(lock) = HostLock::take(state)? else {
        return held("a change of members, a backup or another cure runs on this host".to_owned());
    };
    if let Some(command) = half_done(&lock) {
        return held(format!("a change of members is half done on this host: `{command}` goes on with it"));
    }
    let begun = Begun::read(state)?;
    let seen = seen::look(&place.sources(), &config, Mine::Nothing, clock).await;
    // Whoever is away for it may be the one that this host would ask for the members.
    let away = begun.as_ref().filter(|begun| begun.step == Step::Defragment).map(|begun| begun.member);
    let id = match (nobody_known(&seen), away) {
        (Some(_), Some(away)) => away,
        (Some(report), None) => return Ok(report),
        (None, _) => {
            let list = seen.observation.etcd.membership.known().map_or(&[][..], |list| list.members());
            let urls = place.sources().seeds;
            match list.iter().find(|member| member.client_urls.iter().any(|url| urls.contains(url))) {
                Some(own) => own.id,
                None => {
                    let urls = urls.join(", ");
                    let text = format!("no member of etcd is at {urls}, which is what etcd's manifest says here");
                    return Err(UsageError(text).into());
                }
            }
        }
    };
    let work = Work {
        sources: place.sources(),
        config: &config,
        room: Room::of(&policy, place.etcd_flag("--quota-backend-bytes=").as_deref()),
        data: place.etcd_flag("--data-dir=").map_or_else(|| defrag.data_dir.clone(), Into::into),
        policy,
        clock,
        own: id,
        state,
        because,
        namespace: &global.namespace,
        wait: defrag.wait,
        began: clock.boottime(),
    };
    let begun = begun.filter(|begun| begun.member == id);
    Ok(work.run(begun, seen).await)
}
