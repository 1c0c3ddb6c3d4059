//! `quorate lease`: what is held by whom, and releases by hand.

use super::lease::{Leases, SeenLease, Write};
use super::{holder, kill_switch, kured};
use crate::access::Access;
use crate::cli::Global;
use crate::cli::lease::{Lease, LeaseCommand, Release as ReleaseArgs};
use crate::clock::Clock;
use crate::config::Config;
use crate::exit::{ExitStatus, UsageError};
use crate::{output, place};
use comfy_table::{Table, presets};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::PostParams;
use kube::{Api, Client};
use quorum_safety::lock::{HolderFacts, LeaseView, Life, Record, Release, life};
use quorum_safety::{Fact, KillSwitch, Kured, NodeName};
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
    let LeaseView::Held { identity, record, release, .. } = &seen.view else { return (Life::Nobody, None) };
    let release = match release {
        Fact::Known(None) => None,
        Fact::Known(Some(release)) => Some(Fact::Known(release.clone())),
        Fact::Unknown(why) => Some(Fact::Unknown(why.clone())),
    };
    let facts = match record {
        Fact::Known(record) => {
            let unit = Fact::Unknown(NOT_LOOKED.to_owned());
            holder::look(client, record, unit, false, leases.request_limit()).await
        }
        Fact::Unknown(why) => HolderFacts::unknown(identity, why),
    };
    (life(&seen.view, &facts), release)
}

/// What came of a release by hand.
#[derive(Debug, Serialize)]
#[expect(clippy::large_enum_variant, reason = "one is made")]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "answer")]
enum Released {
    /// Nobody held it.
    Free,
    /// Recorded; the next actor takes it once the holder has had the time to see it.
    Recorded { release: Release, half_done: Option<Record> },
    /// The holder lives.
    Alive { identity: String },
}

impl Released {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Free | Self::Recorded { .. } => ExitStatus::Ok,
            Self::Alive { .. } => ExitStatus::Refused,
        }
    }

    fn text(&self, name: &str) -> String {
        match self {
            Self::Free => format!("nobody holds {name}: nothing to release"),
            Self::Alive { identity } => format!(
                "refused: `{identity}` holds {name}, and its pod runs on a Ready node\n\nhint: stop that pod (its Job) instead; with \
                 `--even-if-alive` the holder is told to stop, and the next actor waits for its deadline"
            ),
            Self::Recorded { release, half_done } => {
                let mut text = format!(
                    "released {name} of `{}` because: {} (by {})",
                    release.identity, release.because, release.by
                );
                match half_done {
                    Some(record) if !release.abandoned => text.push_str(&format!(
                        "\n{} on {} is half done (step {}): the next run finishes or undoes it before anything else starts; \
                         `--abandon` says that this was done by hand",
                        record.operation, record.target, record.step
                    )),
                    _ => text.push_str("\nthe next actor takes it once the holder's deadline has passed"),
                }
                text
            }
        }
    }
}

async fn release(leases: &Leases, config: &Config, args: &ReleaseArgs) -> anyhow::Result<Released> {
    let known = super::names(config);
    if !known.contains(&args.name) {
        return Err(UsageError(format!(
            "no Lease of quorate is called `{}`: there are {}",
            args.name,
            known.join(", ")
        ))
        .into());
    }
    if args.because.trim().is_empty() {
        return Err(UsageError("--because is empty: say why, it is recorded".to_owned()).into());
    }
    let client = leases.client().await?;
    let seen = leases.read(&args.name).await?;
    let LeaseView::Held { identity, record, .. } = &seen.view else { return Ok(Released::Free) };
    let (life, _) = look(leases, &client, &seen).await;
    if life == Life::Alive && !args.even_if_alive {
        return Ok(Released::Alive { identity: identity.clone() });
    }
    let release = Release {
        identity: identity.clone(),
        because: args.because.clone(),
        by: whoami(&client).await,
        at: leases.clock.unix(),
        abandoned: args.abandon,
    };
    let end = leases.clock.boottime().saturating_add(leases.request_limit());
    leases.write(&seen, &Write::Release(&release), end).await?;
    tracing::warn!(
        lease = args.name,
        holder = release.identity,
        because = release.because,
        by = release.by,
        abandoned = release.abandoned,
        "A Lease was released by hand"
    );
    let half_done = record.known().filter(|record| record.step.touched).cloned();
    Ok(Released::Recorded { release, half_done })
}

/// Who the API server says we are; only recorded, so an unknown name stops nothing.
async fn whoami(client: &Client) -> String {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    match api.create(&PostParams::default(), &SelfSubjectReview::default()).await {
        Ok(review) => review
            .status
            .and_then(|status| status.user_info)
            .and_then(|user| user.username)
            .unwrap_or_else(|| "unknown".to_owned()),
        Err(error) => {
            tracing::debug!(%error, "The API server does not say who we are");
            "unknown".to_owned()
        }
    }
}

/// For callers of [`super::take`] that cannot look at a host: that proof is then not to be had.
pub async fn nobody_looks(_target: NodeName) -> Fact<bool> {
    Fact::Unknown("this actor cannot look at the host".to_owned())
}
