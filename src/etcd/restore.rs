//! `quorate etcd restore`: a snapshot in the place of what etcd holds. One node is restored as a cluster of one, without any API; what the
//! snapshot held of quorate is made harmless before anything acts on it; the other nodes join. Nothing of what was there is deleted.

use super::backup::manifest::Facts;
use super::backup::open::{self, NotVerified, Opened};
use super::backup::take::blocking;
use super::host::{lock, record};
use super::{members, verify};
use crate::cli::Global;
use crate::cli::etcd::restore::{From, Plan as PlanArgs, RestoreCommand, Run};
use crate::clock::Clock;
use crate::config::Config;
use crate::exit::{ExitStatus, UsageError};
use crate::observe::Sources;
use crate::observe::etcd::{client_url, host as host_of};
use crate::place::{self, InPlace};
use crate::report::{Outcome, Report};
use crate::seen::{self, Seen};
use crate::{access::Access, observe, output};
use anyhow::Context;
use etcd_snapshot::{Snapshot, Trailer};
use gate::{Against, against};
use host::Host;
pub(super) use host::room;
use journal::{Journal, folder};
use node::{Node, Peer};
use quorum_safety::{Code, Disruption, Fact, Member, Mine, NodeName, Observation, Policy, Verdict, judge};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::IsTerminal;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use step::Step;
use work::Work;

mod gate;
mod harmless;
mod host;
mod join;
mod journal;
mod node;
mod plan;
pub(super) mod prove;
pub mod step;
pub(super) mod tool;
mod words;
pub(super) mod work;

/// The lock of a restore on this host.
const LOCK: &str = "restore.lock";
/// What etcd takes beyond its database: two segments of its log, and a little.
pub(super) const BESIDE: u64 = 192 << 20;

/// Runs the command.
///
/// # Errors
/// When it could not be begun; what was refused, or is half done, is an answer.
pub async fn run(global: &Global, command: &RestoreCommand, clock: Clock) -> anyhow::Result<ExitStatus> {
    match command {
        RestoreCommand::Plan(args) => plan_it(global, args, clock).await,
        RestoreCommand::Join(args) => join::run(global, args, clock).await,
        RestoreCommand::Run(run) => {
            let report = Asked { global, run, clock }.here().await?;
            output::answer(global.output, &report.document(), || report.text())?;
            Ok(report.outcome.status())
        }
    }
}

/// A snapshot that was proven, with what it holds.
pub(super) struct Proven {
    pub(super) opened: Opened,
    snapshot: Snapshot,
    pub(super) facts: Facts,
}

impl Proven {
    /// Opens it as `verify` does, and proves all of it.
    ///
    /// # Errors
    /// When it cannot be opened, or something is wrong with it.
    pub(super) async fn of(from: &From, spool: &Path, clock: Clock) -> anyhow::Result<Self> {
        let opened = open::open(&from.file, verify::identities(&from.identity)?, spool, clock).await?;
        Self::opened(from.file.clone(), opened).await
    }

    /// Proves all of one that is open; `file` is what it is called.
    ///
    /// # Errors
    /// When something is wrong with it.
    pub(super) async fn opened(file: String, opened: Opened) -> anyhow::Result<Self> {
        let proven = blocking(move || -> anyhow::Result<Self> {
            let snapshot = verify::proven(&file, &opened)?;
            if snapshot.trailer == Trailer::Missing {
                let why = "it has no checksum: a database out of a data directory, or a snapshot that was cut";
                return Err(NotVerified { file, why: why.to_owned() }.into());
            }
            let facts = Facts::of(&snapshot);
            Ok(Self { opened, snapshot, facts })
        })
        .await;
        proven.map_err(|error| anyhow::anyhow!(error))?
    }

    /// The members that the snapshot names.
    fn peers(&self) -> Vec<Peer> {
        let peer = |member: &etcd_snapshot::Member| {
            let address = member.peer_urls.iter().find_map(|url| host_of(url))?;
            (!member.name.is_empty()).then(|| Peer { name: NodeName(member.name.clone()), address })
        };
        self.snapshot.members.iter().filter_map(peer).collect()
    }
}

/// `plan`.
async fn plan_it(global: &Global, args: &PlanArgs, clock: Clock) -> anyhow::Result<ExitStatus> {
    let spool = args.spool.clone().unwrap_or_else(std::env::temp_dir);
    let proven = Proven::of(&args.from, &spool, clock).await?;
    let own = Node::read(&args.files.kubernetes_dir).ok();
    let (nodes, nodes_from) = nodes(global, args, &proven, own.as_ref()).await?;
    let wanted = args.on.as_ref().map(|name| NodeName(name.clone()));
    let on = match wanted.as_ref().or(own.as_ref().map(|own| &own.name)) {
        Some(name) => match (nodes.iter().find(|peer| peer.name == *name), &wanted) {
            (Some(found), _) => Some(found),
            (None, None) => nodes.first(),
            (None, Some(name)) => {
                let all: Vec<&str> = nodes.iter().map(|peer| peer.name.0.as_str()).collect();
                return Err(UsageError(format!("no node is called `{name}`: there are {}", all.join(", "))).into());
            }
        },
        None => nodes.first(),
    };
    let Some(on) = on else {
        let text = "no control plane node is known: say --node NAME=ADDRESS, once for each";
        return Err(UsageError(text.to_owned()).into());
    };
    let others: Vec<Peer> = nodes.iter().filter(|peer| *peer != on).cloned().collect();
    let plan = plan::plan(&args.from, &proven.facts, on, &others, nodes_from);
    output::answer(global.output, &plan, || plan.text())?;
    Ok(ExitStatus::Ok)
}

/// The control plane nodes, and where that is known from: what was typed, the API, etcd's members on this host, the snapshot itself.
async fn nodes(
    global: &Global,
    args: &PlanArgs,
    proven: &Proven,
    own: Option<&Node>,
) -> anyhow::Result<(Vec<Peer>, &'static str)> {
    if !args.node.is_empty() {
        let again = |(at, one): (usize, &(String, String))| {
            args.node
                .iter()
                .take(at)
                .any(|other| other.0 == one.0 || other.1 == one.1)
                .then(|| format!("{}={}", one.0, one.1))
        };
        if let Some(twice) = args.node.iter().enumerate().find_map(again) {
            let text = format!("--node {twice}: its name or its address was typed before: expected each node once");
            return Err(UsageError(text).into());
        }
        let typed = args.node.iter();
        let typed = typed.map(|(name, address)| Peer { name: NodeName(name.clone()), address: address.clone() });
        return Ok((typed.collect(), "those that were typed"));
    }
    let asked = async {
        let access = Access::new(global).await.ok()?;
        let config = place::configuration(global, &access).await.ok()?;
        place::nodes(&access, &config).await.ok()
    };
    if let Some(nodes) = asked.await {
        let found: Vec<Peer> = control_plane(&nodes);
        if !found.is_empty() {
            return Ok((found, "those of the API"));
        }
    }
    let mut found = proven.peers();
    let Some(own) = own else {
        return Ok((
            distinct(found),
            "the members that the snapshot names, since the API does not answer: others may have joined since",
        ));
    };
    found.extend(own.joined.clone());
    found.push(Peer { name: own.name.clone(), address: own.address.to_string() });
    let place = InPlace::in_folder(global, &args.files.kubernetes_dir).await;
    if let Ok(place) = &place {
        let pace = observe::etcd::Pace {
            answer: Config::default().times.answer.get(),
            between_samples: std::time::Duration::ZERO,
        };
        let sources = place.sources();
        let urls: Vec<String> = sources.seeds.iter().chain(&sources.peers).cloned().collect();
        let asked = observe::etcd::ask(&sources.etcd, &urls, pace).await;
        found.extend(listed(asked.membership.known().map(|list| list.members()).unwrap_or_default()));
    }
    Ok((distinct(found), "etcd's members as this host, or the snapshot, names them, since the API does not answer"))
}

fn control_plane(nodes: &[quorum_safety::NodeView]) -> Vec<Peer> {
    let named = nodes.iter().filter(|node| node.control_plane);
    let named = named.filter_map(|node| Some(Peer { name: node.name.clone(), address: node.address.known()?.clone() }));
    named.collect()
}

fn listed(members: &[Member]) -> Vec<Peer> {
    let peer = |member: &Member| {
        let name = if member.has_started() { member.name.clone() } else { format!("member {}", member.id) };
        Some(Peer { name: NodeName(name), address: observe::etcd::address(member)? })
    };
    members.iter().filter_map(peer).collect()
}

/// One for each address; of several names the last.
fn distinct(peers: Vec<Peer>) -> Vec<Peer> {
    let by_address: BTreeMap<String, Peer> = peers.into_iter().map(|peer| (peer.address.clone(), peer)).collect();
    let mut peers: Vec<Peer> = by_address.into_values().collect();
    peers.sort();
    peers
}

/// `run`, as it was asked for.
struct Asked<'a> {
    global: &'a Global,
    run: &'a Run,
    clock: Clock,
}

impl Asked<'_> {
    fn state(&self) -> &Path {
        &self.run.files.state_dir
    }

    async fn here(&self) -> anyhow::Result<Report> {
        if !rustix::process::geteuid().is_root() {
            return Err(UsageError("a restore changes this host: run it as root".to_owned()).into());
        }
        let overrides = self.run.although_quorum || !self.run.gone.is_empty();
        if overrides && self.run.because.as_deref().unwrap_or_default().trim().is_empty() {
            return Err(UsageError("--because is empty: say why, it is recorded".to_owned()).into());
        }
        let state = self.state();
        let held =
            |what: &str| Ok(Report::new(Outcome::Held, format!("{what} on this host; nothing was changed"), &[]));
        let Some(_restore) = lock(state, LOCK)? else { return held("another restore runs") };
        let Some(_members) = lock(state, members::HOST_LOCK)? else { return held("a change of members runs") };
        let Some(journal) = Journal::begun(state)? else { return self.anew().await };
        if journal.doing.touches_nothing() {
            Journal::forget(state)?;
            return self.anew().await;
        }
        if journal.from != self.run.from.file {
            let text = format!(
                "another restore is half done: `quorate etcd restore run {} --here` goes on with it",
                journal.from
            );
            return Ok(Report::new(Outcome::Held, text, &[]));
        }
        output::progress(&format!("the restore {} has begun before, and is gone on with", journal.id));
        self.confirm(&journal.node.name)?;
        let step = journal.doing;
        Ok(self.work(journal, None).run(step).await)
    }

    fn work(&self, journal: Journal, snapshot: Option<fs::File>) -> Work<'_> {
        let run = self.run;
        Work {
            global: self.global,
            host: Host { kubernetes: &run.files.kubernetes_dir, state: self.state() },
            journal,
            snapshot,
            etcdutl: run.etcdutl.as_deref(),
            systemctl: &run.systemctl,
            clock: self.clock,
            began: self.clock.boottime(),
        }
    }

    /// The name of the node, typed once more.
    fn confirm(&self, node: &NodeName) -> Result<(), UsageError> {
        let said = match &self.run.yes {
            Some(said) => said.clone(),
            None if std::io::stdin().is_terminal() => {
                members::ask(&format!("type `{node}` to go on: ")).map_err(|error| UsageError(format!("{error:#}")))?
            }
            None => return Err(UsageError(format!("this is no terminal: confirm with --yes={node}"))),
        };
        if said == node.0 {
            return Ok(());
        }
        Err(UsageError(format!("`{said}` is not this node, which is {node}: nothing was changed")))
    }

    /// Everything before anything is changed: the snapshot is proven, the cluster looked at, what will happen told and confirmed.
    async fn anew(&self) -> anyhow::Result<Report> {
        let (run, clock, state) = (self.run, self.clock, self.state());
        let node = Node::read(&run.files.kubernetes_dir)
            .map_err(|why| UsageError(format!("a restore is done on a control plane node of kubeadm: {why}")))?;
        let own = folder(state);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&own)
            .with_context(|| format!("make {}", own.display()))?;
        let proven = Proven::of(&run.from, &own, clock).await?;
        let place = InPlace::in_folder(self.global, &run.files.kubernetes_dir).await?;
        let config = place.configuration(self.global).await?;
        let seen = look(&place, &config, &proven, clock).await;
        let others = self.others(&node, &proven, &seen.observation);
        if let Some(report) = self.stands_against(&node, &others, &seen, &config).await? {
            return Ok(report);
        }
        if let Some(report) = no_room(&node, state, &proven.facts)? {
            return Ok(report);
        }
        let journal = Journal {
            id: clock.now().strftime("%Y%m%d-%H%M%S").to_string(),
            from: run.from.file.clone(),
            before: cluster(&seen.observation).or(proven.opened.manifest.as_ref().map(|it| it.cluster_id)),
            node,
            others,
            snapshot: proven.facts,
            doing: Step::Keep,
        };
        story(&journal, proven.opened.manifest.as_ref().map(|it| it.taken_at))
            .iter()
            .for_each(|line| output::progress(line));
        self.confirm(&journal.node.name)?;
        if let Some(because) = &run.because {
            record(state, &self.command(), because, &self.lifted(), clock)?;
        }
        Ok(self.work(journal, Some(proven.opened.file)).run(Step::Keep).await)
    }

    fn lifted(&self) -> Vec<Code> {
        if self.run.although_quorum { vec![Code::RestoreOverQuorum] } else { Vec::new() }
    }

    fn command(&self) -> String {
        let gone: String = self.run.gone.iter().map(|name| format!(" --gone {name}")).collect();
        let although = if self.run.although_quorum { " --although-quorum" } else { "" };
        format!("quorate etcd restore run {} --here{although}{gone}", self.run.from.file)
    }

    /// The other control plane nodes, by everything that names one: a node that nobody thinks of would go on to serve the old data.
    fn others(&self, node: &Node, proven: &Proven, seen: &Observation) -> Vec<Peer> {
        let mut found = proven.peers();
        found.extend(node.joined.clone());
        let lists = seen.etcd.members.iter().filter_map(|view| view.member_list.known());
        found.extend(lists.flat_map(|list| listed(list)));
        found.extend(seen.etcd.membership.known().map(|list| listed(list.members())).unwrap_or_default());
        found.extend(seen.nodes.known().map(|nodes| control_plane(nodes)).unwrap_or_default());
        let own = [Some(node.address.to_string()), host_of(&node.peer_url)];
        found.retain(|peer| peer.name != node.name && !own.contains(&Some(peer.address.clone())));
        distinct(found)
    }

    async fn stands_against(
        &self,
        node: &Node,
        others: &[Peer],
        seen: &Seen,
        config: &Config,
    ) -> anyhow::Result<Option<Report>> {
        let names: BTreeSet<NodeName> = self.run.gone.iter().map(|name| NodeName(name.clone())).collect();
        if let Some(strange) = names.iter().find(|name| !others.iter().any(|other| other.name == **name)) {
            let all: Vec<&str> = others.iter().map(|other| other.name.0.as_str()).collect();
            let text =
                format!("--gone {strange}: no other control plane node is called so; there are {}", all.join(", "));
            return Err(UsageError(text).into());
        }
        let policy = Policy { lifted: self.lifted(), ..config.policy() };
        let reasons = match judge(&seen.observation, &seen.in_flight, &Disruption::Restore, &policy) {
            Verdict::Permitted(_) => Vec::new(),
            Verdict::Held(reasons) | Verdict::Refused(reasons) => reasons.as_slice().to_vec(),
        };
        let asked =
            others.iter().map(|other| async { (other.clone(), gate::ask(&other.address, gate::CONTROL_PLANE).await) });
        let own = node.address.to_string();
        let (asked, own) = tokio::join!(futures::future::join_all(asked), gate::ask(&own, gate::ETCD));
        let found: Against = against(&seen.observation, &reasons, &own, &asked, &names);
        let Some(outcome) = found.outcome() else { return Ok(None) };
        // Who is told what stops a cluster that has quorum, without having said so, would make an end of it.
        if !found.quorum || self.run.although_quorum {
            for peer in &found.running {
                words::stop(&peer.name).iter().for_each(|line| output::progress(line));
            }
        }
        let summary = format!("a restore of {} is not permitted; nothing was changed", node.name);
        let report = Report::with_blockers(outcome, summary, &found.reasons, &found.lines);
        Ok(Some(report.on(&seen.observation)))
    }
}

/// Looks as `members --here` does, and at whoever the snapshot names as well.
async fn look(place: &InPlace, config: &Config, proven: &Proven, clock: Clock) -> Seen {
    let sources = place.sources();
    let mut peers = sources.peers.clone();
    peers.extend(proven.peers().iter().map(|peer| client_url(&peer.address)));
    seen::look(&Sources { peers, ..sources }, config, Mine::Nothing, clock).await
}

/// The identity of the cluster that is there, as some member told it.
fn cluster(seen: &Observation) -> Option<quorum_safety::ClusterId> {
    seen.etcd.members.iter().find_map(|view| match (&view.second, &view.first) {
        (Fact::Known(sample), _) | (_, Fact::Known(sample)) => Some(sample.cluster_id),
        (Fact::Unknown(_), Fact::Unknown(_)) => None,
    })
}

/// Whether all of it fits: the copy and the tool into our folder, the new data beside the old.
fn no_room(node: &Node, state: &Path, facts: &Facts) -> anyhow::Result<Option<Report>> {
    let there = node.data_dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let ((own, free_here), (data, free_there)) = (room(state)?, room(there)?);
    let copy = facts.bytes.saturating_add(32 << 20);
    let new = facts.total_size.saturating_add(BESIDE);
    let wanted = if own == data {
        vec![(state, copy.saturating_add(new), free_here)]
    } else {
        vec![(state, copy, free_here), (there, new, free_there)]
    };
    let short: Vec<String> = wanted
        .iter()
        .filter(|(_, needed, free)| free < needed)
        .map(|(path, needed, free)| {
            format!(
                "{} MiB are free at {}, and {} MiB are needed",
                free >> 20,
                path.display(),
                needed.div_ceil(1 << 20)
            )
        })
        .collect();
    let summary = "there is no room for the restored data beside what is there; nothing was changed";
    Ok((!short.is_empty()).then(|| Report::with_blockers(Outcome::Held, summary, &[], &short)))
}

/// What will happen, a line each.
fn story(journal: &Journal, taken_at: Option<jiff::Timestamp>) -> Vec<String> {
    let Journal { node, others, snapshot, from, .. } = journal;
    let taken = taken_at.map_or_else(String::new, |at| format!(", taken {}", at.strftime("%Y-%m-%d %H:%M:%SZ")));
    let keys = snapshot.keys.map_or_else(|| "more than can be counted".to_owned(), |keys| keys.to_string());
    let mut lines = vec![
        format!("{} is restored from {from}: revision {}, {keys} keys{taken}", node.name, snapshot.revision),
        "whatever was written after that is lost to the cluster; nothing on the disk is deleted".to_owned(),
    ];
    lines.extend(Step::ALL.iter().map(|step| format!("  {}. {}", step.number(), step.title())));
    if !others.is_empty() {
        let names: Vec<&str> = others.iter().map(|other| other.name.0.as_str()).collect();
        lines.push(format!("then {} join it, one after the other", names.join(", ")));
    }
    lines
}
