//! `quorate etcd backup`: a snapshot of a healthy voter, proven before it has a name in the store, with a manifest that says what it is. A Job
//! does it under the Lease of snapshots; with the API away, a control plane node does.

use crate::access::Access;
use crate::cli::Global;
use crate::cli::etcd::Backup;
use crate::clock::Clock;
use crate::config::Config;
use crate::etcd::{host, members};
use crate::exit::{ExitStatus, UsageError};
use crate::job::{self, Placement, Request};
use crate::lock::{self, Claimant, Leases, Taken};
use crate::observe::Sources;
use crate::observe::etcd::ClientFiles;
use crate::output;
use crate::place::{self, InPlace, OwnPod};
use crate::report::{Outcome, Report};
use choose::Beside;
use list::Inventory;
use quorum_safety::{Code, Mine, NodeName, Policy};
use seal::Seal;
use std::path::{Path, PathBuf};
use store::Store;
use work::Work;

pub mod choose;
mod flush;
pub mod list;
pub mod manifest;
pub mod name;
mod node;
pub mod open;
pub mod progress;
pub mod retain;
pub mod seal;
pub mod store;
pub mod take;
mod work;

/// The template of a backup.
const TEMPLATE: &str = "quorate-backup";
/// The volume of that template on which a snapshot is kept until it is stored.
const SPOOL: &str = "/spool";
/// The lock of a host, while there is no Lease.
pub(super) const HOST_LOCK: &str = "etcd-snapshot.lock";

/// Runs the command.
///
/// # Errors
/// When it could not be begun; what was refused, or failed, is an answer.
pub async fn run(global: &Global, backup: &Backup, clock: Clock) -> anyhow::Result<ExitStatus> {
    let asked = Asked { global, backup, clock };
    if backup.in_job {
        let report = asked.in_job().await?.fitted();
        report.leave()?;
        // Not as elsewhere: a Job that has stored nothing has not succeeded, or the age of the last success would lie (incident R32).
        return Ok(report.outcome.status());
    }
    let report = match (backup.here, backup.list) {
        (true, true) => return asked.list_here().await,
        (true, false) => asked.here().await?,
        (false, _) => asked.by_job().await?,
    };
    output::answer(global.output, &report.document(), || report.text())?;
    Ok(report.outcome.status())
}

/// What was asked for.
struct Asked<'a> {
    global: &'a Global,
    backup: &'a Backup,
    clock: Clock,
}

impl Asked<'_> {
    fn store(&self, config: &Config) -> Result<Store, UsageError> {
        let store = Store::configured(&config.backup, self.clock).map_err(UsageError)?;
        store.ok_or_else(|| {
            UsageError(
                "the configuration has neither `backup.directory` nor `backup.s3`: expected one of them".to_owned(),
            )
        })
    }

    fn spool(&self, default: &Path) -> PathBuf {
        self.backup.spool.clone().unwrap_or_else(|| default.to_owned())
    }

    /// In the pod of a Job.
    async fn in_job(&self) -> anyhow::Result<Report> {
        let access = Access::new(self.global).await?;
        let config = place::configuration(self.global, &access).await?;
        let store = self.store(&config)?;
        if self.backup.list {
            let found = Inventory::of(&store).await?;
            found.text().lines().for_each(output::progress);
            let (whole, strange) = (found.backups.len(), found.strange.len());
            let summary = format!("{}: {whole} backups, {strange} files that are none", found.store);
            return Ok(Report::new(Outcome::Ok, summary, &[]));
        }
        let pod = OwnPod::from_environment()?;
        let leases = Leases::new(access.clone(), Vec::new(), lock::timings(&config), self.clock);
        // Nobody is disrupted: what a snapshot is beside of is decided by the Lease of what does, so its target is where it runs.
        let who = match Claimant::in_pod(&leases, (leases.namespace(), &pod.name), ("backup", &pod.node), "etcd backup")
            .await
        {
            Ok(who) => who,
            Err(why) => return Ok(work::no_lease(why)),
        };
        let guard = match lock::take(&leases, lock::SNAPSHOT, &who, work::PATIENCE, work::no_unit).await {
            Taken::Got(guard) => guard,
            Taken::Held(waits) => return Ok(work::held(&lock::reasons(lock::SNAPSHOT, &waits))),
        };
        let etcd = ClientFiles::in_folder(self.backup.files.kubernetes_dir.join("pki/etcd"));
        let spool = self.spool(Path::new(SPOOL));
        let work = self.work(place::in_pod_with(&access, etcd), &config, config.policy(), &store, &spool)?;
        let report = work.run(Some(&guard)).await;
        Ok(match guard.release().await {
            Ok(()) => report,
            Err(error) => report.and(&format!("; Lease {} is not given back: {error}", lock::SNAPSHOT)),
        })
    }

    fn work<'a>(
        &'a self,
        sources: Sources<'a>,
        config: &'a Config,
        policy: Policy,
        store: &'a Store,
        spool: &'a Path,
    ) -> Result<Work<'a>, UsageError> {
        Ok(Work {
            sources,
            config,
            policy,
            clock: self.clock,
            mine: Mine::Nothing,
            store,
            seal: seal(config)?,
            spool,
            kubernetes: &self.backup.files.kubernetes_dir,
            dry_run: self.backup.dry_run,
            beside: if self.backup.without_lease { Beside::Anything } else { Beside::NoChange },
        })
    }

    async fn place(&self) -> anyhow::Result<(InPlace, Config)> {
        let place = InPlace::in_folder(self.global, &self.backup.files.kubernetes_dir).await?;
        let mut config = if self.backup.list {
            place.configuration(self.global).await?
        } else {
            place.told_configuration(self.global).await.map_err(unknown_recipients)?
        };
        if let Some(to) = &self.backup.to {
            let to = std::path::absolute(to)?;
            (config.backup.directory, config.backup.s3) = (Some(to), None);
        }
        Ok((place, config))
    }

    async fn list_here(&self) -> anyhow::Result<ExitStatus> {
        let (_, config) = self.place().await?;
        let found = Inventory::of(&self.store(&config)?).await?;
        output::answer(self.global.output, &found, || found.text())?;
        Ok(ExitStatus::Ok)
    }

    /// On a control plane node, with the API away.
    async fn here(&self) -> anyhow::Result<Report> {
        let (place, config) = self.place().await?;
        let store = self.store(&config)?;
        // An apiserver that answers and tells nothing makes no Job: whether the nodes can be read is what counts, as for members.
        if let Ok(access) = &place.access
            && !self.backup.without_lease
            && place::nodes(access, &config).await.is_ok()
        {
            let text = "the API answers: without --here a Job does this under the lock; where that is not to be had, as in a database that is \
                full or beside a change of members that is half done, --without-lease --because … goes without it";
            return Err(UsageError(text.to_owned()).into());
        }
        let state = &self.backup.files.state_dir;
        let held = |who: &str| {
            let summary = format!("{who} runs on this host; nothing was stored");
            Ok(Report::new(Outcome::Held, summary, &[]))
        };
        let Some(_lock) = host::lock(state, HOST_LOCK)? else { return held("another backup, or a change of members,") };
        let Some(_members) = host::lock(state, members::HOST_LOCK)? else { return held("a change of members") };
        if self.backup.without_lease {
            let because = self.backup.because.as_deref().unwrap_or_default();
            if because.trim().is_empty() {
                return Err(UsageError("--because is empty: say why, it is recorded".to_owned()).into());
            }
            let lifted = [Code::LeaseHeld, Code::LeaseUnknown];
            // Who only looks goes without nothing.
            if !self.backup.dry_run {
                host::record(state, "quorate etcd backup --here --without-lease", because, &lifted, self.clock)?;
            }
        }
        let spool = self.spool(state);
        let policy = Policy { without_api: true, ..config.policy() };
        let work = self.work(place.sources(), &config, policy, &store, &spool)?;
        Ok(work.run(None).await)
    }

    /// On a workstation.
    async fn by_job(&self) -> anyhow::Result<Report> {
        let access = Access::new(self.global).await?;
        let config = place::configuration(self.global, &access).await?;
        let mut args: Vec<String> = ["etcd", "backup", "--in-job"].map(str::to_owned).to_vec();
        let wanted = [(self.backup.list, "--list"), (self.backup.dry_run, "--dry-run")];
        args.extend(wanted.iter().filter(|(wanted, _)| *wanted).map(|(_, arg)| (*arg).to_owned()));
        // Those that only look do not stand in for one that does something.
        let name = if self.backup.list || self.backup.dry_run {
            job::unique_name("backup-look", None, self.clock)
        } else {
            job::name("backup", None, None)
        };
        let make = |place: &NodeName| Request {
            template: TEMPLATE,
            name: name.clone(),
            args: args.clone(),
            operation: "backup".to_owned(),
            target: None,
            placement: Placement::On(place.clone()),
        };
        super::job::run(&access, &config, None, make).await
    }
}

/// What was to be encrypted must not lie there for anybody to read because the API was away.
fn unknown_recipients(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<UsageError>() {
        Ok(wrong) => wrong.into(),
        Err(error) => UsageError(format!(
            "the configuration cannot be read ({error:#}), so it is not known for whom a backup is to be encrypted: `--config FILE` says it, \
             with `backup: {{recipients: [age1…]}}`, or `backup: {{}}` for one that whoever has the file can read"
        ))
        .into(),
    }
}

fn seal(config: &Config) -> Result<Seal, UsageError> {
    let recipients: Result<Vec<_>, String> = config.backup.recipients.iter().map(|text| text.parse()).collect();
    Ok(Seal { compression: config.backup.compression, recipients: recipients.map_err(UsageError)? })
}
