//! kured's lock: finding its DaemonSet, reading, taking and giving back the annotation. kured knows nothing of us; it takes its lock
//! before it drains, so while we hold it no node reboots.

use super::lease::{FIELD_MANAGER, Leases, said};
use super::{Guard, GuardError};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Container;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use quorum_safety::lock::{KuredBlock, KuredLock, KuredStep, kured_step};
use quorum_safety::{Code, Fact, Reason};
use std::time::Duration;

/// kured's annotation, unless its flag `--lock-annotation` names another.
pub const ANNOTATION: &str = "weave.works/kured-node-lock";

/// How often a write is tried again after the DaemonSet changed in between: its status does whenever a pod of it does.
const ATTEMPTS: usize = 5;

/// Between two of them.
const AGAIN: Duration = Duration::from_millis(200);

/// kured's DaemonSet.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The annotation that it uses.
    pub annotation: String,
    /// `--concurrency`: how many nodes may hold the lock.
    pub concurrency: u32,
    /// The lock; none inside when nobody holds it, unknown when it cannot be understood.
    pub lock: Fact<Option<KuredLock>>,
    version: String,
}

/// Finds kured: `setting` is `auto`, `none` or `NAMESPACE/NAME`. No kured is a fact; a refused list is not.
pub async fn find(client: &Client, setting: &str, limit: Duration) -> Fact<Option<Found>> {
    if setting == "none" {
        return Fact::Known(None);
    }
    let answer = match setting.split_once('/') {
        Some((namespace, name)) => named(client, namespace, name, limit).await.and_then(|found| match found {
            Some(found) => Ok(Some(found)),
            None => Err(format!("DaemonSet {setting} of kured, which the configuration names, does not exist")),
        }),
        None => search(client, limit).await,
    };
    Fact::from(answer)
}

async fn named(client: &Client, namespace: &str, name: &str, limit: Duration) -> Result<Option<Found>, String> {
    let what = format!("DaemonSet {namespace}/{name} of kured");
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    match tokio::time::timeout(limit, api.get_opt(name)).await {
        Ok(Ok(Some(set))) => Found::of(&set).map(Some).ok_or_else(|| format!("{what} has no name")),
        Ok(Ok(None)) => Ok(None),
        Ok(Err(error)) => Err(format!("{what}: {}", said(&error))),
        Err(_) => Err(format!("{what}: no answer in {limit:?}")),
    }
}

async fn search(client: &Client, limit: Duration) -> Result<Option<Found>, String> {
    let api: Api<DaemonSet> = Api::all(client.clone());
    let sets = match tokio::time::timeout(limit, api.list(&ListParams::default())).await {
        Ok(Ok(sets)) => sets.items,
        Ok(Err(error)) => return Err(format!("looking for kured among all DaemonSets: {}", said(&error))),
        Err(_) => return Err(format!("looking for kured among all DaemonSets: no answer in {limit:?}")),
    };
    Ok(among(&sets, "auto")?.map(|(found, _)| found))
}

/// Finds kured among all DaemonSets of the cluster, by the same `setting`.
///
/// # Errors
/// In words, when there are two, or the one that is named does not exist.
pub(crate) fn among<'a>(sets: &'a [DaemonSet], setting: &str) -> Result<Option<(Found, &'a DaemonSet)>, String> {
    let named = setting.split_once('/');
    let is_it = |set: &DaemonSet| match named {
        Some((namespace, name)) => {
            set.metadata.namespace.as_deref() == Some(namespace) && set.metadata.name.as_deref() == Some(name)
        }
        None => setting != "none" && is_kured(set),
    };
    let mut found = sets.iter().filter(|set| is_it(set)).filter_map(|set| Some((Found::of(set)?, set)));
    match (found.next(), found.next()) {
        (None, _) if named.is_some() => {
            Err(format!("DaemonSet {setting} of kured, which the configuration names, does not exist"))
        }
        (first, None) => Ok(first),
        (Some((first, _)), Some((second, _))) => Err(format!(
            "more than one kured: {}/{} and {}/{}; name one in the configuration",
            first.namespace, first.name, second.namespace, second.name
        )),
        (None, Some(_)) => Ok(None),
    }
}

/// By name, label, image or command: charts and forks rename the DaemonSet.
fn is_kured(set: &DaemonSet) -> bool {
    let labels = set.metadata.labels.iter().flatten();
    let labelled = labels
        .filter(|(key, _)| matches!(key.as_str(), "app.kubernetes.io/name" | "k8s-app" | "app" | "name"))
        .any(|(_, value)| value == "kured");
    let runs = containers(set).iter().any(|container| {
        let image = container.image.as_deref().is_some_and(|image| repository(image) == "kured");
        image || container.command.iter().flatten().any(|word| word.rsplit('/').next() == Some("kured"))
    });
    set.metadata.name.as_deref() == Some("kured") || labelled || runs
}

/// The last part of an image's name, without tag and digest.
fn repository(image: &str) -> &str {
    let last = image.split('@').next().and_then(|image| image.rsplit('/').next());
    last.and_then(|last| last.split(':').next()).unwrap_or(image)
}

/// The containers of its pods.
pub(crate) fn containers(set: &DaemonSet) -> &[Container] {
    set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()).map_or(&[], |pod| pod.containers.as_slice())
}

/// The value of a flag of kured's, from its arguments or its environment.
///
/// # Errors
/// In words, when it is set and the DaemonSet does not say to what.
pub(crate) fn flag(set: &DaemonSet, name: &str) -> Result<Option<String>, String> {
    value(set, name, false)
}

/// The same of a switch, which needs no value and never takes the next word for one.
pub(crate) fn switch(set: &DaemonSet, name: &str) -> Result<bool, String> {
    Ok(value(set, name, true)?
        .is_some_and(|text| !matches!(text.as_str(), "false" | "0" | "f" | "F" | "FALSE" | "False")))
}

fn value(set: &DaemonSet, name: &str, switch: bool) -> Result<Option<String>, String> {
    let variable = format!("KURED_{}", name.replace('-', "_").to_uppercase());
    for container in containers(set) {
        let found = match in_words(container, &format!("--{name}"), switch) {
            Some(value) => Some(value),
            None => in_environment(container, &variable)?,
        };
        match found {
            // kubelet puts a variable's value there.
            Some(value) if value.contains("$(") => {
                return Err(format!("--{name} of kured is `{value}`: expected a value"));
            }
            Some(value) => return Ok(Some(value)),
            None => {}
        }
    }
    Ok(None)
}

/// Of a flag that is given twice the last one counts (pflag).
fn in_words(container: &Container, long: &str, switch: bool) -> Option<String> {
    let mut last = None;
    let mut words = container.command.iter().flatten().chain(container.args.iter().flatten());
    while let Some(word) = words.next() {
        match word.strip_prefix(long) {
            Some("") if switch => last = Some("true".to_owned()),
            Some("") => last = words.next().cloned().or(last),
            Some(value) => last = value.strip_prefix('=').map(str::to_owned).or(last),
            None => {}
        }
    }
    last
}

/// Of a variable that is given twice the last one counts; one of `env` goes before those of `envFrom`. An empty one is none.
fn in_environment(container: &Container, variable: &str) -> Result<Option<String>, String> {
    let elsewhere = |what: &str| Err(format!("{variable} of kured may come from {what}: expected a value, or a flag"));
    match container.env.iter().flatten().rfind(|env| env.name == variable) {
        Some(env) if env.value_from.is_some() => return elsewhere("`valueFrom`"),
        Some(env) => return Ok(env.value.clone().filter(|value| !value.is_empty())),
        None => {}
    }
    let begins = |prefix: Option<&str>| variable.starts_with(prefix.unwrap_or_default());
    if container.env_from.iter().flatten().any(|from| begins(from.prefix.as_deref())) {
        return elsewhere("`envFrom`");
    }
    Ok(None)
}

impl Found {
    fn of(set: &DaemonSet) -> Option<Self> {
        let default = || ANNOTATION.to_owned();
        let (annotation, named) = match flag(set, "lock-annotation") {
            Ok(name) => (name.unwrap_or_else(default), Ok(())),
            Err(why) => (default(), Err(why)),
        };
        let number = flag(set, "concurrency").and_then(|text| match text.map(|text| (text.parse(), text)) {
            None => Ok(1),
            Some((Ok(number), _)) => Ok(number),
            Some((Err(_), text)) => Err(format!("--concurrency of kured is `{text}`")),
        });
        let (concurrency, counted) = match number {
            Ok(number) => (number, Ok(())),
            Err(why) => (1, Err(why)),
        };
        let value = set.metadata.annotations.as_ref().and_then(|all| all.get(&annotation));
        let lock = match (named.and(counted), value) {
            (Err(why), _) => Fact::Unknown(why),
            (Ok(()), None) => Fact::Known(None),
            (Ok(()), Some(json)) => match serde_json::from_str(json) {
                Ok(lock) => Fact::Known(Some(lock)),
                Err(error) => Fact::Unknown(format!("annotation {annotation} of kured: {error}")),
            },
        };
        Some(Self {
            namespace: set.metadata.namespace.clone()?,
            name: set.metadata.name.clone()?,
            annotation,
            concurrency,
            lock,
            version: set.metadata.resource_version.clone()?,
        })
    }

    /// Writes or removes the annotation, on the condition that nothing was written since it was read.
    async fn write(&self, client: &Client, lock: Option<&KuredLock>) -> Result<Result<(), Conflict>, String> {
        let value = match lock {
            None => serde_json::Value::Null,
            Some(lock) => serde_json::to_string(lock).map_err(|error| error.to_string())?.into(),
        };
        let patch = serde_json::json!({"metadata": {
            "resourceVersion": self.version,
            "annotations": {self.annotation.as_str(): value},
        }});
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let api: Api<DaemonSet> = Api::namespaced(client.clone(), &self.namespace);
        match api.patch(&self.name, &params, &Patch::Merge(&patch)).await {
            Ok(_) => Ok(Ok(())),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Err(Conflict)),
            Err(error) => Err(format!("DaemonSet {}/{}: {}", self.namespace, self.name, said(&error))),
        }
    }
}

/// Somebody wrote in between.
struct Conflict;

fn unknown(why: impl Into<String>) -> Reason {
    Reason::new(Code::KuredUnknown, why)
}

/// Takes kured's lock under a Lease that is held. `names` are all Leases of ours.
///
/// # Errors
/// The reason why not: then the Lease is to be given back.
pub(crate) async fn take(
    leases: &Leases,
    setting: &str,
    guard: &Guard,
    names: &[String],
) -> Result<Option<Found>, Reason> {
    let limit = leases.request_limit();
    let (identity, operation) = (guard.identity().await, guard.operation().await);
    let mut last = "its DaemonSet changed in between".to_owned();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(AGAIN).await;
        }
        let client = match leases.client().await {
            Ok(client) => client,
            Err(error) => {
                last = error.to_string();
                continue;
            }
        };
        let found = find(&client, setting, limit).await;
        let seen = match &found {
            Fact::Unknown(why) => Fact::Unknown(why.clone()),
            Fact::Known(None) => Fact::Known(None),
            Fact::Known(Some(found)) => found.lock.clone().map(Some),
        };
        // Asked only when a block of ours is there: who still lives?
        let ours = matches!(&seen, Fact::Known(Some(Some(lock))) if lock.blocks().iter().any(KuredBlock::is_ours));
        let live = if ours { leases.holders(names).await } else { Fact::Known(Vec::new()) };
        let step = kured_step(&seen, &identity, &live);
        let found = match (step, found) {
            (KuredStep::GiveLeaseBack(Fact::Known(node)), _) => {
                return Err(Reason::new(Code::KuredLockHeld, format!("kured's lock is held by {node}")));
            }
            (KuredStep::GiveLeaseBack(Fact::Unknown(why)), _) | (_, Fact::Unknown(why)) => return Err(unknown(why)),
            (_, Fact::Known(None)) | (KuredStep::Nothing, _) => return Ok(None),
            (KuredStep::Mine, Fact::Known(found)) => return Ok(found),
            (KuredStep::Take, Fact::Known(Some(found))) => found,
        };
        let block = KuredBlock::ours(&operation, &identity, leases.clock.now().to_string());
        let lock = KuredLock::filled(block, found.concurrency);
        match guard.act(limit, found.write(&client, Some(&lock))).await {
            Ok(Ok(Ok(()))) => return Ok(Some(found)),
            Ok(Ok(Err(Conflict))) => {}
            // It may have been written: only another look tells.
            Ok(Err(why)) => last = why,
            Err(GuardError::NoAnswer(late)) => last = late.to_string(),
            Err(late) => return Err(unknown(late.to_string())),
        }
    }
    Err(unknown(format!("kured's lock could not be taken, {ATTEMPTS} times: {last}")))
}

/// Gives kured's lock back, if it is still ours. What was refused or not answered is tried again for as long as a request may take:
/// just then the apiserver of the target may have restarted.
pub(crate) async fn release(guard: &Guard, found: &Found) -> Result<(), GuardError> {
    let clock = guard.leases().clock;
    let end = clock.boottime().saturating_add(guard.leases().request_limit());
    loop {
        let why = match give_back(guard, found).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Conflict)) => "its DaemonSet changed each time".to_owned(),
            Err(GuardError::TooLate(late)) => return Err(late.into()),
            Err(error) => error.to_string(),
        };
        if clock.boottime() >= end {
            return Err(GuardError::Kured(why));
        }
        tracing::warn!(why, "kured's lock was not given back; trying again");
        tokio::time::sleep(AGAIN).await;
    }
}

async fn give_back(guard: &Guard, found: &Found) -> Result<Result<(), Conflict>, GuardError> {
    let leases = guard.leases();
    let limit = leases.request_limit();
    let identity = guard.identity().await;
    let client = leases.client().await?;
    // Uninstalled meanwhile: its lock went with it.
    let now = named(&client, &found.namespace, &found.name, limit).await.map_err(GuardError::Kured)?;
    let Some(now) = now else { return Ok(Ok(())) };
    let lock = now.lock.as_result().map_err(|why| GuardError::Kured(why.to_owned()))?;
    let mine = |block: &KuredBlock| block.is_ours() && block.holder.as_deref() == Some(identity.as_str());
    let Some(lock) = lock.as_ref().filter(|lock| lock.blocks().iter().any(mine)) else { return Ok(Ok(())) };
    let rest: Vec<KuredBlock> = lock.blocks().iter().filter(|block| !mine(block)).cloned().collect();
    let rest = match lock {
        KuredLock::Many { max_owners, .. } if !rest.is_empty() => {
            Some(KuredLock::Many { max_owners: *max_owners, locks: Some(rest) })
        }
        KuredLock::Many { .. } | KuredLock::One(_) => None,
    };
    guard.act(limit, now.write(&client, rest.as_ref())).await?.map_err(GuardError::Kured)
}

/// Removes a block of ours whose holder has no Lease any more, for whoever holds none itself: kured would never reboot again, and
/// nobody who holds no Lease is permitted anything. `names` are all Leases of ours. Answers the `nodeID` that was removed, if any.
///
/// # Errors
/// In words, when it could not be found out or not be written.
pub async fn clear_stale(leases: &Leases, setting: &str, names: &[String]) -> Result<Option<String>, String> {
    let limit = leases.request_limit();
    let client = leases.client().await.map_err(|error| error.to_string())?;
    // The lock before the holders: a block that is written after this look makes the write fail.
    let Some(found) = find(&client, setting, limit).await.as_result().map_err(str::to_owned)?.clone() else {
        return Ok(None);
    };
    let Some(lock) = found.lock.as_result().map_err(str::to_owned)?.clone() else { return Ok(None) };
    let Some(block) = lock.blocks().first().filter(|block| block.is_ours()) else { return Ok(None) };
    let live = leases.holders(names).await;
    // Whoever holds a Lease may be adopting what the block stands for: until it has written its own, kured must find this one.
    if live.known().is_some_and(|live| !live.is_empty()) {
        return Ok(None);
    }
    match kured_step(&Fact::Known(Some(Some(lock.clone()))), "", &live) {
        KuredStep::Take => {}
        KuredStep::GiveLeaseBack(Fact::Unknown(why)) => return Err(why),
        KuredStep::GiveLeaseBack(Fact::Known(_)) | KuredStep::Mine | KuredStep::Nothing => return Ok(None),
    }
    let end = leases.clock.boottime().saturating_add(limit);
    match super::until(leases.clock, end, found.write(&client, None)).await {
        Ok(Ok(Ok(()))) => Ok(Some(block.node_id.clone())),
        Ok(Ok(Err(Conflict))) => Ok(None),
        Ok(Err(why)) => Err(why),
        Err(late) => Err(late.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(metadata: serde_json::Value, container: serde_json::Value) -> DaemonSet {
        let spec = serde_json::json!({
            "selector": {},
            "template": {"spec": {"containers": [container]}},
        });
        serde_json::from_value(serde_json::json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn kured_is_found_by_name_label_image_or_command_and_nothing_else_is() {
        let plain = serde_json::json!({"name": "c", "image": "ghcr.io/x/agent:1"});
        let rows = [
            (set(serde_json::json!({"name": "kured"}), plain.clone()), true),
            (set(serde_json::json!({"name": "a", "labels": {"app.kubernetes.io/name": "kured"}}), plain.clone()), true),
            (
                set(
                    serde_json::json!({"name": "a"}),
                    serde_json::json!({"name": "c", "image": "ghcr.io/kubereboot/kured:1.23.0"}),
                ),
                true,
            ),
            (
                set(
                    serde_json::json!({"name": "a"}),
                    serde_json::json!({"name": "c", "image": "r:5000/kured@sha256:0"}),
                ),
                true,
            ),
            (
                set(serde_json::json!({"name": "a"}), serde_json::json!({"name": "c", "command": ["/usr/bin/kured"]})),
                true,
            ),
            (set(serde_json::json!({"name": "kured-exporter", "labels": {"team": "kured"}}), plain), false),
        ];
        for (set, wanted) in rows {
            assert_eq!(is_kured(&set), wanted, "{:?}", set.metadata);
        }
    }

    #[test]
    fn its_own_flags_say_which_annotation_and_how_many_owners() {
        let metadata = serde_json::json!({
            "name": "kured", "namespace": "kube-system", "resourceVersion": "1",
            "annotations": {"example.com/lock": r#"{"nodeID":"cp1"}"#, "other": r#"{"nodeID":"cp9"}"#},
        });
        let args = serde_json::json!({
            "name": "kured",
            "command": ["/usr/bin/kured"],
            "args": ["--lock-annotation=example.com/lock", "--concurrency", "2"],
        });
        let found = Found::of(&set(metadata.clone(), args)).unwrap();
        assert_eq!((found.annotation.as_str(), found.concurrency), ("example.com/lock", 2));
        assert!(matches!(found.lock, Fact::Known(Some(KuredLock::One(ref block))) if block.node_id == "cp1"));
        let env = serde_json::json!({
            "name": "kured", "env": [{"name": "KURED_LOCK_ANNOTATION", "value": "other"}],
        });
        let found = Found::of(&set(metadata.clone(), env)).unwrap();
        assert!(matches!(found.lock, Fact::Known(Some(KuredLock::One(ref block))) if block.node_id == "cp9"));
        let plain = Found::of(&set(metadata.clone(), serde_json::json!({"name": "kured"}))).unwrap();
        assert_eq!((plain.lock, plain.concurrency), (Fact::Known(None), 1));
        let odd = serde_json::json!({"name": "kured", "args": ["--concurrency=$(N)"]});
        assert!(matches!(Found::of(&set(metadata.clone(), odd)).unwrap().lock, Fact::Unknown(_)));
        // Where it cannot be told which annotation it is, nobody is known not to hold it.
        for container in [
            serde_json::json!({"name": "kured", "args": ["--lock-annotation=$(ANNOTATION)"]}),
            serde_json::json!({"name": "kured", "env": [{"name": "KURED_LOCK_ANNOTATION",
                "valueFrom": {"configMapKeyRef": {"name": "kured", "key": "annotation"}}}]}),
            serde_json::json!({"name": "kured", "envFrom": [{"configMapRef": {"name": "kured"}}]}),
        ] {
            let found = Found::of(&set(metadata.clone(), container)).unwrap();
            assert!(matches!(found.lock, Fact::Unknown(_)), "{found:?}");
        }
    }

    #[test]
    fn a_flag_is_what_kured_reads_or_not_known() {
        let of = |container: serde_json::Value| flag(&set(serde_json::json!({"name": "kured"}), container), "period");
        let said = |text: &str| Ok(Some(text.to_owned()));
        let args = |args: serde_json::Value| serde_json::json!({"name": "kured", "args": args});
        assert_eq!(of(args(serde_json::json!(["--period=1m", "--period=2h"]))), said("2h"), "the last one counts");
        assert_eq!(of(args(serde_json::json!(["--period", "1m", "--periods=3m"]))), said("1m"));
        assert!(of(args(serde_json::json!(["--period=$(PERIOD)"]))).is_err());
        let period = |value: serde_json::Value| {
            let mut variable = serde_json::json!({"name": "KURED_PERIOD"});
            variable.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
            variable
        };
        let other = serde_json::json!({"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}});
        let env = |all: serde_json::Value| serde_json::json!({"name": "kured", "env": all});
        let [one, two, from] =
            [period(serde_json::json!({"value": "1m"})), period(serde_json::json!({"value": "2m"})), period(other)];
        assert_eq!(of(env(serde_json::json!([one, two]))), said("2m"));
        assert!(of(env(serde_json::json!([one, from]))).is_err());
        assert_eq!(of(env(serde_json::json!([from, one]))), said("1m"));
        assert_eq!(of(env(serde_json::json!([period(serde_json::json!({"value": ""}))]))), Ok(None));
        let from = |prefix: &str, args: serde_json::Value, env: serde_json::Value| {
            serde_json::json!({"name": "kured", "args": args, "env": env,
                "envFrom": [{"prefix": prefix, "secretRef": {"name": "s"}}]})
        };
        let none = || serde_json::json!([]);
        assert!(of(from("", none(), none())).is_err());
        assert!(of(from("KURED_", none(), none())).is_err());
        assert_eq!(of(from("OTHER_", none(), none())), Ok(None));
        assert_eq!(of(from("", serde_json::json!(["--period=3m"]), none())), said("3m"));
        assert_eq!(of(from("", none(), serde_json::json!([one]))), said("1m"));
        let switch = |args: serde_json::Value| {
            let set = set(serde_json::json!({"name": "kured"}), serde_json::json!({"name": "kured", "args": args}));
            switch(&set, "force-reboot").unwrap()
        };
        assert!(switch(serde_json::json!(["--force-reboot", "--period=1m"])));
        assert!(switch(serde_json::json!(["--force-reboot=false", "--force-reboot"])));
        assert!(!switch(serde_json::json!(["--force-reboot", "--force-reboot=false"])));
    }
}
