//! `quorate lease release`: told, stopped, abandoned, one after the other ([`by_hand`]).

use super::lease::{LeaseError, Leases, SeenLease, Write};
use super::report::facts;
use super::take::LOOK_AGAIN;
use crate::cli::lease::Release as ReleaseArgs;
use crate::config::Config;
use crate::exit::{ExitStatus, UsageError};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::PostParams;
use kube::{Api, Client};
use quorum_safety::lock::{LeaseView, Life, Record, Release, Sighting, Stage, by_hand, life};
use serde::Serialize;

/// What came of a release by hand.
#[derive(Debug, Serialize)]
#[expect(clippy::large_enum_variant, reason = "one is made")]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "answer")]
pub(super) enum Released {
    /// Nobody held it.
    Free { kured: Option<String> },
    /// Recorded. Abandoned: it is free. Else the next actor takes it once the holder has had the time to see it.
    Recorded { release: Release, half_done: Option<Record>, abandon: bool, kured: Option<String> },
    /// The holder lives.
    Alive { identity: String },
}

impl Released {
    pub(super) fn status(&self) -> ExitStatus {
        match self {
            Self::Recorded { release, abandon: true, .. } if release.stage != Stage::Abandoned => ExitStatus::Held,
            Self::Free { .. } | Self::Recorded { .. } => ExitStatus::Ok,
            Self::Alive { .. } => ExitStatus::Refused,
        }
    }

    pub(super) fn text(&self, name: &str) -> String {
        match self {
            Self::Free { kured } => format!("nobody holds {name}: nothing to release{}", on_a_line(kured)),
            Self::Alive { identity } => format!(
                "refused: `{identity}` holds {name}, and its pod runs on a Ready node\n\nhint: stop that pod (its Job) instead; with \
                 `--even-if-alive` the holder is told to stop, and the next actor waits for its deadline"
            ),
            Self::Recorded { release, half_done, abandon, kured } => {
                let Release { identity, because, by, .. } = release;
                let released = format!("released {name} of `{identity}` because: {because} (by {by})");
                let what = half_done.as_ref().map_or("what it had begun".to_owned(), |record| {
                    format!("{} on {} (step {})", record.operation, record.target, record.step)
                });
                let then = match release.stage {
                    Stage::Told | Stage::Stopped if !abandon && half_done.is_some() => format!(
                        "{what} is half done: the next run finishes or undoes it before anything else starts; `--abandon` says that \
                         this was done by hand"
                    ),
                    Stage::Told if *abandon => format!(
                        "{what} is not abandoned: the holder has not been seen to stop\n\nhint: give the same command again"
                    ),
                    Stage::Stopped if *abandon => format!(
                        "{what} is not abandoned yet: the holder has stopped, but it may have acted until a moment ago\n\nhint: see \
                         that the target is right and that `quorate-node-step` does not run there; then give the same command again"
                    ),
                    Stage::Told | Stage::Stopped => {
                        "the next actor takes it once the holder's deadline has passed".to_owned()
                    }
                    Stage::Abandoned => format!("{what} is given up: the Lease is free"),
                };
                format!("{released}\n{then}{}", on_a_line(kured))
            }
        }
    }
}

fn on_a_line(note: &Option<String>) -> String {
    note.as_ref().map_or_else(String::new, |note| format!("\n{note}"))
}

pub(super) async fn release(leases: &Leases, config: &Config, args: &ReleaseArgs) -> anyhow::Result<Released> {
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
    let facts = facts(leases, &client, &seen.view, false).await;
    let (LeaseView::Held { identity, record, .. }, Some(stage)) =
        (&seen.view, by_hand(&seen.view, &facts, args.abandon))
    else {
        return Ok(Released::Free { kured: no_block_left(leases, config).await });
    };
    if stage == Stage::Told && life(&seen.view, &facts) == Life::Alive && !args.even_if_alive {
        return Ok(Released::Alive { identity: identity.clone() });
    }
    let half_done = record.known().filter(|record| record.step.touched).cloned();
    let mut release = Release {
        identity: identity.clone(),
        because: args.because.clone(),
        by: whoami(&client).await,
        at: leases.clock.unix(),
        stage,
    };
    let told = write(leases, &seen, &release).await?;
    if args.abandon && stage == Stage::Told {
        release = stop(leases, &client, told, release).await?;
    }
    let kured = if release.stage == Stage::Abandoned { no_block_left(leases, config).await } else { None };
    Ok(Released::Recorded { release, half_done, abandon: args.abandon, kured })
}

/// Whoever held the Lease may have held kured's lock as well; without the Lease behind it, it holds everybody up. What was done about
/// it, in words.
async fn no_block_left(leases: &Leases, config: &Config) -> Option<String> {
    match super::kured::clear_stale(leases, &config.kured, &super::names(config)).await {
        Ok(None) => None,
        Ok(Some(block)) => Some(format!("kured's lock was held by {block}, which is gone: it is free too")),
        Err(why) => Some(format!(
            "whether kured's lock is still held for it is not known: {why}\n\nhint: give the same command again"
        )),
    }
}

async fn write(leases: &Leases, seen: &SeenLease, release: &Release) -> Result<SeenLease, LeaseError> {
    let end = leases.clock.boottime().saturating_add(leases.request_limit());
    let write = match release.stage {
        Stage::Told | Stage::Stopped => Write::Release(release),
        // The holder was proven to act no more before `Stopped` was recorded, and nobody wrote since.
        Stage::Abandoned => Write::Abandon(release),
    };
    let written = leases.write(seen, &write, end).await?;
    tracing::warn!(
        lease = seen.name,
        holder = release.identity,
        because = release.because,
        by = release.by,
        stage = ?release.stage,
        "A Lease was released by hand"
    );
    Ok(written)
}

/// Waits until the holder that was told to stop can act no more, and records that. The release comes back as it was when the Lease
/// went to another in between, or is still written to after twice the time that this takes.
async fn stop(leases: &Leases, client: &Client, told: SeenLease, release: Release) -> Result<Release, LeaseError> {
    let clock = leases.clock;
    let begun = clock.boottime();
    let end = begun.saturating_add(leases.timings.silence().saturating_mul(2));
    let mut sighting = Sighting::first(&told.view, begun);
    tracing::warn!(
        lease = told.name,
        holder = release.identity,
        at_most = ?leases.timings.silence(),
        "Waiting until the holder can act no more"
    );
    while clock.boottime() < end {
        tokio::time::sleep(LOOK_AGAIN.min(leases.timings.renew)).await;
        let seen = leases.read(&told.name).await?;
        let now = clock.boottime();
        sighting = sighting.again(&seen.view, now);
        let facts = facts(leases, client, &seen.view, sighting.silent(now, &leases.timings)).await;
        match by_hand(&seen.view, &facts, false) {
            Some(Stage::Told) if facts.of == release.identity => {}
            Some(stage) if facts.of == release.identity => {
                let stopped = Release { stage, at: clock.unix(), ..release.clone() };
                match write(leases, &seen, &stopped).await {
                    Ok(_) => return Ok(stopped),
                    Err(LeaseError::Conflict(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Some(_) | None => break,
        }
    }
    Ok(release)
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
