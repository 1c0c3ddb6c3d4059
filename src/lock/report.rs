//! `quorate lease`: what is held by whom.

use super::lease::{Leases, SeenLease};
use super::release::release;
use super::{holder, kill_switch, kured};
use crate::access::Access;
use crate::cli::Global;
use crate::cli::lease::{Lease, LeaseCommand};
use crate::clock::Clock;
use crate::config::Config;
use crate::exit::ExitStatus;
use crate::{output, place};
use comfy_table::{Table, presets};
use kube::Client;
use quorum_safety::lock::{HolderFacts, LeaseView, Life, Record, Release, life};
use quorum_safety::{Fact, KillSwitch, Kured};
use serde::Serialize;

const NOT_LOOKED: &str = "not looked at from the command line";

/// Runs `quorate lease`.
///
/// # Errors
/// When the API cannot be reached, the configuration is wrong, or the release cannot be written.
pub async fn run(global: &Global, lease: &Lease, clock: Clock) -> anyhow::Result<ExitStatus> {
    let access = Access::new(global).await?;
    let config = place::configuration(global, &access).await?;
    let leases = Leases::new(access, Vec::new(), super::timings(&config), clock);
    match &lease.command {
        LeaseCommand::Show => {
            let report = Report::read(&leases, &config).await?;
            output::answer(global.output, &report, || report.text(clock.now()))?;
            Ok(report.status())
        }
        LeaseCommand::Release(args) => {
            let released = release(&leases, &config, args).await?;
            output::answer(global.output, &released, || released.text(&args.name))?;
            Ok(released.status())
        }
    }
}

/// All locks, as `quorate lease show -o json` prints them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    api_version: &'static str,
    kind: &'static str,
    leases: Vec<Row>,
    kured: Fact<Kured>,
    kill_switch: Fact<KillSwitch>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    lease: String,
    state: State,
    /// Whole only when its record can be read.
    holder: Option<Fact<Record>>,
    identity: Option<String>,
    renewed: Option<jiff::Timestamp>,
    /// Whether the holder lives, in words.
    proof: String,
    release: Option<Fact<Release>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum State {
    Free,
    Alive,
    Gone,
    Unproven,
    Unknown,
}

impl Report {
    async fn read(leases: &Leases, config: &Config) -> anyhow::Result<Self> {
        let client = leases.client().await?;
        let limit = config.times.answer.get();
        let mut rows = Vec::new();
        for name in super::names(config) {
            rows.push(match leases.read(&name).await {
                Ok(seen) => row(leases, &client, seen).await,
                Err(error) => Row {
                    lease: name,
                    state: State::Unknown,
                    holder: None,
                    identity: None,
                    renewed: None,
                    proof: error.to_string(),
                    release: None,
                },
            });
        }
        let kured = super::in_flight(&kured::find(&client, &config.kured, limit).await);
        let kill_switch = kill_switch::read(&client, leases.namespace(), limit).await;
        Ok(Self { api_version: quorum_safety::record::API_VERSION, kind: "Leases", leases: rows, kured, kill_switch })
    }

    fn status(&self) -> ExitStatus {
        let unread = self.leases.iter().any(|row| row.state == State::Unknown);
        if unread { ExitStatus::Unknown } else { ExitStatus::Ok }
    }

    fn text(&self, now: jiff::Timestamp) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["LEASE", "HOLDER", "OPERATION", "TARGET", "STEP", "SINCE", "RENEWED", "HOLDER IS"]);
        for row in &self.leases {
            let record = row.holder.as_ref().and_then(Fact::known);
            let of = |field: fn(&Record) -> String| record.map(field).unwrap_or_else(|| "-".to_owned());
            let since = record.map_or("-".to_owned(), |record| ago(now.as_second().saturating_sub(record.since.0)));
            let renewed = row.renewed.map_or("-".to_owned(), |at| ago(now.as_second().saturating_sub(at.as_second())));
            table.add_row([
                row.lease.clone(),
                row.identity.clone().unwrap_or_else(|| "-".to_owned()),
                of(|record| record.operation.clone()),
                of(|record| record.target.to_string()),
                of(|record| record.step.name.clone()),
                since,
                renewed,
                row.proof.clone(),
            ]);
        }
        let kured = match &self.kured {
            Fact::Known(Kured::Absent) => "no kured in this cluster".to_owned(),
            Fact::Known(Kured::Free) => "free".to_owned(),
            Fact::Known(Kured::Held(node)) => format!("held by {node}"),
            Fact::Unknown(why) => format!("unknown: {why}"),
        };
        let kill_switch = match &self.kill_switch {
            Fact::Known(KillSwitch::Off) => "off".to_owned(),
            Fact::Known(KillSwitch::Engaged(why)) => format!("engaged: {why}"),
            Fact::Unknown(why) => format!("unknown, counts as engaged: {why}"),
        };
        format!("{}\nkured's lock: {kured}\nkill switch: {kill_switch}", table.trim_fmt())
    }
}

/// A length of time as people say it.
fn ago(seconds: i64) -> String {
    match seconds {
        i64::MIN..=-1 => "in the future".to_owned(),
        0..=119 => format!("{seconds}s ago"),
        120..=7199 => format!("{}m ago", seconds / 60),
        _ => format!("{}h ago", seconds / 3600),
    }
}

async fn row(leases: &Leases, client: &Client, seen: SeenLease) -> Row {
    let (life, release) = look(leases, client, &seen).await;
    let (identity, holder) = match seen.view {
        LeaseView::Held { identity, record, .. } => (Some(identity), Some(record)),
        LeaseView::Absent | LeaseView::Free { .. } => (None, None),
    };
    let (state, proof) = match life {
        Life::Nobody => (State::Free, "free".to_owned()),
        Life::Alive => (State::Alive, "alive".to_owned()),
        Life::Gone(proof) => (State::Gone, format!("gone: {proof}")),
        Life::Unproven(doubts) => {
            let doubts: Vec<String> = doubts.iter().map(ToString::to_string).collect();
            (State::Unproven, format!("not proven gone: {}", doubts.join("; ")))
        }
    };
    Row { lease: seen.name, state, holder, identity, renewed: seen.renewed, proof, release }
}

/// One look: a single one never shows that a deadline has passed.
async fn look(leases: &Leases, client: &Client, seen: &SeenLease) -> (Life, Option<Fact<Release>>) {
    let LeaseView::Held { release, .. } = &seen.view else { return (Life::Nobody, None) };
    let release = match release {
        Fact::Known(None) => None,
        Fact::Known(Some(release)) => Some(Fact::Known(release.clone())),
        Fact::Unknown(why) => Some(Fact::Unknown(why.clone())),
    };
    (life_of(leases, client, &seen.view).await, release)
}

/// Whether the holder of a Lease lives, by one look, which never shows that a deadline has passed.
pub(crate) async fn life_of(leases: &Leases, client: &Client, view: &LeaseView) -> Life {
    life(view, &facts(leases, client, view, false).await)
}

/// What a command line sees of the holder of a Lease.
pub(super) async fn facts(leases: &Leases, client: &Client, view: &LeaseView, silent: bool) -> HolderFacts {
    match view {
        LeaseView::Absent | LeaseView::Free { .. } => HolderFacts::unknown("", "nobody holds the Lease"),
        LeaseView::Held { record: Fact::Known(record), .. } => {
            let unit = Fact::Unknown(NOT_LOOKED.to_owned());
            holder::look(client, record, unit, silent, leases.request_limit()).await
        }
        LeaseView::Held { identity, record: Fact::Unknown(why), .. } => {
            HolderFacts { silent, ..HolderFacts::unknown(identity, why) }
        }
    }
}
