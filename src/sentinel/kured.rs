//! kured's own configuration, as its DaemonSet has it: which file it looks at, how often, what else would let a node go. Pure. Its lock is
//! [`crate::lock::kured`]'s.

use super::reason::{Code, Reason};
use super::window::Window;
use crate::lock::kured::{containers, flag, switch};
use k8s_openapi::api::apps::v1::DaemonSet;
use regex_lite::Regex;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// kured's own default of `--reboot-sentinel`.
const SENTINEL: &str = "/var/run/reboot-required";
/// kured's own default of `--period`.
const PERIOD: Duration = Duration::from_secs(3600);
/// The longest period with which the control plane's Lease is held for kured.
pub const LONGEST_PERIOD: Duration = Duration::from_secs(15 * 60);

/// The alerts that quorate ships (kustomize/components). One that fires must not keep kured from what the gate is open for: nothing would
/// be rebooted, and what the alert is about never end (incident R29).
pub const ALERTS: [&str; 2] = ["EtcdBackupStale", "EtcdDrillStale"];

/// What of kured's configuration counts here. What cannot be understood is a reason why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The file it looks at, as the host knows it.
    pub file: Result<PathBuf, Reason>,
    /// How often it looks.
    pub period: Result<Duration, String>,
    /// When it reboots at all.
    pub window: Result<Window, String>,
    /// What it asks in the place of the file.
    pub command: Option<Reason>,
    /// Why an alert of ours may keep it from acting, on any node.
    pub alerts: Option<Reason>,
    /// What makes it dangerous to a control plane, each named.
    pub dangers: Vec<Reason>,
}

impl Settings {
    /// Reads them from its arguments, its environment and its volumes.
    pub fn of(set: &DaemonSet) -> Self {
        let period = flag(set, "period").and_then(|text| match text {
            None => Ok(PERIOD),
            Some(text) => duration(&text).ok_or_else(|| format!("--period of kured is `{text}`")),
        });
        let alerts = alerts(set).unwrap_or_else(|why| Some(unreadable(why)));
        Self {
            file: file(set),
            command: command(set),
            alerts,
            dangers: dangers(set, &period),
            period,
            window: window(set),
        }
    }

    /// Why a gate at `file` would not be kured's; none when it would.
    pub fn elsewhere(&self, file: &Path) -> Option<Reason> {
        let gate = normal(file);
        match &self.file {
            Ok(looked_at) if *looked_at == gate => None,
            Ok(looked_at) => Some(Reason::new(
                Code::KuredElsewhere,
                format!(
                    "kured looks at {}, the gate is {}: give kured --reboot-sentinel={}",
                    looked_at.display(),
                    gate.display(),
                    file.display()
                ),
            )),
            Err(why) => {
                let detail = format!("{}; the gate is {}", why.detail, gate.display());
                Some(Reason { detail, ..why.clone() })
            }
        }
    }
}

fn unreadable(why: String) -> Reason {
    Reason::new(Code::KuredUnreadable, why)
}

fn window(set: &DaemonSet) -> Result<Window, String> {
    let [days, start, end, zone] = ["reboot-days", "start-time", "end-time", "time-zone"].map(|name| flag(set, name));
    let [days, start, end, zone] = [days?, start?, end?, zone?];
    Window::parse(days.as_deref(), start.as_deref(), end.as_deref(), zone.as_deref())
}

/// The file on the host that kured looks at. It looks with its own eyes: the path is its container's, and only a mount of a host path makes
/// it the host's (kured, pkg/checkers, `FileRebootChecker`).
fn file(set: &DaemonSet) -> Result<PathBuf, Reason> {
    let seen = flag(set, "reboot-sentinel").map_err(unreadable)?.unwrap_or_else(|| SENTINEL.to_owned());
    on_host(set, PathBuf::from(seen)).map_err(|why| Reason::new(Code::KuredElsewhere, why))
}

fn on_host(set: &DaemonSet, seen: PathBuf) -> Result<PathBuf, String> {
    let pod = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let mounts = containers(set).iter().filter_map(|container| container.volume_mounts.as_deref()).flatten();
    let covering = mounts.filter(|mount| seen.starts_with(&mount.mount_path));
    let Some(mount) = covering.max_by_key(|mount| Path::new(&mount.mount_path).components().count()) else {
        return Err(format!("kured looks at {} in its own container, where no volume is mounted", seen.display()));
    };
    let volumes = pod.and_then(|pod| pod.volumes.as_deref()).unwrap_or_default();
    let host = volumes.iter().find(|volume| volume.name == mount.name).and_then(|volume| volume.host_path.as_ref());
    let Some(host) = host else {
        return Err(format!(
            "kured looks at {}, which is on volume {} and not on the host",
            seen.display(),
            mount.name
        ));
    };
    if mount.sub_path_expr.is_some() {
        return Err(format!("kured looks at {}, which is mounted by an expression", seen.display()));
    }
    let mut on_host = PathBuf::from(&host.path);
    if let Some(sub) = &mount.sub_path {
        on_host.push(sub);
    }
    let rest = seen.strip_prefix(&mount.mount_path).map_err(|error| error.to_string())?;
    // An empty rest would append a slash.
    if !rest.as_os_str().is_empty() {
        on_host.push(rest);
    }
    Ok(normal(&on_host))
}

/// `/var/run` is a link to `/run` on every host with systemd.
fn normal(path: &Path) -> PathBuf {
    match path.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => path.to_owned(),
    }
}

/// What it asks is no file, on whatever node.
fn command(set: &DaemonSet) -> Option<Reason> {
    let command = match flag(set, "reboot-sentinel-command") {
        Ok(command) => command.filter(|command| !command.is_empty())?,
        Err(why) => return Some(unreadable(why)),
    };
    let why = format!("--reboot-sentinel-command={command}: kured does not look at the gate");
    Some(Reason::new(Code::KuredCommand, why))
}

fn dangers(set: &DaemonSet, period: &Result<Duration, String>) -> Vec<Reason> {
    let mut dangers = Vec::new();
    match flag(set, "concurrency").map(|text| text.map(|text| (text.parse::<u32>(), text))) {
        Ok(None | Some((Ok(0 | 1), _))) => {}
        Ok(Some((_, text))) => {
            dangers.push(Reason::new(Code::KuredConcurrency, format!("--concurrency={text}: expected 1")))
        }
        Err(why) => dangers.push(unreadable(why)),
    }
    match flag(set, "lock-ttl").map(|text| text.map(|text| (duration(&text), text))) {
        Ok(None | Some((Some(Duration::ZERO), _))) => {}
        Ok(Some((_, text))) => dangers.push(Reason::new(
            Code::KuredLockTtl,
            format!("--lock-ttl={text}: another node would go while this one is not back; expected none"),
        )),
        Err(why) => dangers.push(unreadable(why)),
    }
    match switch(set, "force-reboot") {
        Ok(false) => {}
        Ok(true) => dangers.push(Reason::new(Code::KuredForces, "--force-reboot: expected false")),
        Err(why) => dangers.push(unreadable(why)),
    }
    match period {
        Ok(period) if *period <= LONGEST_PERIOD => {}
        Ok(period) => dangers.push(Reason::new(
            Code::KuredPeriod,
            format!("--period is {} min: expected at most {}", period.as_secs() / 60, LONGEST_PERIOD.as_secs() / 60),
        )),
        Err(why) => dangers.push(unreadable(why.clone())),
    }
    dangers
}

/// The first alert of ours that would keep kured from acting. Its expression may match anywhere in a name; without one every alert counts
/// (kured, pkg/alerts, `matchesRegex`).
fn alerts(set: &DaemonSet) -> Result<Option<Reason>, String> {
    if flag(set, "prometheus-url")?.is_none_or(|url| url.is_empty()) {
        return Ok(None);
    }
    let expression = flag(set, "alert-filter-regexp")?;
    let only_those = switch(set, "alert-filter-match-only")?;
    let filter = match expression.as_deref().map(|text| (text, filter(text))) {
        None => None,
        Some((_, Some(filter))) => Some(filter),
        Some((text, None)) => {
            let alerts = ALERTS.join(" and ");
            let why = format!("whether {alerts} block kured cannot be told from `{text}`: name them there as they are");
            return Ok(Some(Reason::new(Code::KuredAlerts, why)));
        }
    };
    let blocks = |alert: &&&str| filter.as_ref().is_none_or(|filter| filter.is_match(alert) == only_those);
    Ok(ALERTS.iter().find(blocks).map(|alert| {
        let why = match (only_those, &expression) {
            (true, Some(_)) => format!("{alert} blocks kured: take it out of --alert-filter-regexp"),
            (true, None) => format!(
                "{alert} blocks kured: --alert-filter-match-only without --alert-filter-regexp lets every alert count"
            ),
            (false, _) => format!("{alert} blocks kured: put it into --alert-filter-regexp"),
        };
        Reason::new(Code::KuredAlerts, why)
    }))
}

/// The expression, where it is known what Go makes of it.
fn filter(expression: &str) -> Option<Regex> {
    if is_read_alike(expression) { Regex::new(expression).ok() } else { None }
}

/// Whether Go's `regexp` reads an expression as the one here does, as far as they are known to differ: it takes `\<` and `\b{` for something
/// else, and a brace that is no repetition for itself; it has flags that this one does not have, and the other way round.
fn is_read_alike(expression: &str) -> bool {
    let count = |text: &str| text.parse::<u16>().is_ok_and(|count| count <= 1000);
    let is_repetition = |rest: &str| match rest.split_once('}') {
        Some((times, _)) => match times.split_once(',') {
            Some((least, most)) => count(least) && (most.is_empty() || count(most)),
            None => count(times),
        },
        None => false,
    };
    let mut letters = expression.chars();
    while let Some(letter) = letters.next() {
        let rest = letters.as_str();
        let alike = match letter {
            '\\' => match letters.next() {
                Some('b') => !letters.as_str().starts_with('{'),
                Some(escaped) => r".-+*?()|[]{}^$\/dDwWsSBAz".contains(escaped),
                None => false,
            },
            '(' => !rest.starts_with('?') || ["?:", "?i)", "?i:", "?P<"].iter().any(|known| rest.starts_with(known)),
            '{' => is_repetition(rest),
            _ => true,
        };
        if !alike {
            return false;
        }
    }
    true
}

/// A length of time as Go writes it: `1h30m`, `90s`, `0`.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, after) = rest.split_at(digits);
        let number: f64 = number.parse().ok()?;
        let end = after.find(|letter: char| letter.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        total += number
            * match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return None,
            };
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(total).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(args: &[&str], mounts: Value, volumes: Value) -> DaemonSet {
        serde_json::from_value(json!({"metadata": {"name": "kured"}, "spec": {"selector": {}, "template": {"spec": {
            "containers": [{"name": "kured", "args": args, "volumeMounts": mounts}], "volumes": volumes,
        }}}}))
        .unwrap()
    }

    fn charts(args: &[&str]) -> DaemonSet {
        set(
            args,
            json!([{"name": "sentinel", "mountPath": "/sentinel", "readOnly": true}]),
            json!([{"name": "sentinel", "hostPath": {"path": "/var/run", "type": "Directory"}}]),
        )
    }

    #[test]
    fn r27_the_file_is_the_one_on_the_host_that_kured_sees() {
        let gate = Path::new("/var/run/gated-reboot-required");
        let file = |set: &DaemonSet| Settings::of(set).elsewhere(gate).map(|reason| reason.detail);
        assert_eq!(file(&charts(&["--reboot-sentinel=/sentinel/gated-reboot-required"])), None);
        let other = file(&charts(&["--reboot-sentinel=/sentinel/reboot-required"])).unwrap();
        assert!(other.contains("/run/reboot-required") && other.contains("/run/gated-reboot-required"), "{other}");
        // The mistake of R27: the path of the host, in a container that has it elsewhere.
        let own = file(&charts(&["--reboot-sentinel=/var/run/gated-reboot-required"])).unwrap();
        assert!(own.contains("in its own container"), "{own}");
        let mounts = json!([{"name": "x", "mountPath": "/var/run"}, {"name": "y", "mountPath": "/var"}]);
        let volumes = json!([{"name": "x", "emptyDir": {}}, {"name": "y", "hostPath": {"path": "/var"}}]);
        let empty = file(&set(&["--reboot-sentinel", "/var/run/gated-reboot-required"], mounts, volumes)).unwrap();
        assert!(empty.contains("volume x"), "the nearest mount counts: {empty}");
        let mounts = json!([{"name": "y", "mountPath": "/h", "subPath": "run"}]);
        let volumes = json!([{"name": "y", "hostPath": {"path": "/var"}}]);
        assert_eq!(file(&set(&["--reboot-sentinel=/h/gated-reboot-required"], mounts, volumes)), None);
    }

    #[test]
    fn r27_what_is_dangerous_to_a_control_plane_is_named() {
        let dangers = |args: &[&str]| {
            let settings = Settings::of(&charts(args));
            settings.dangers.into_iter().map(|reason| reason.code[..4].to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(dangers(&["--period=5m"]), Vec::<String>::new());
        assert_eq!(dangers(&["--period=15m", "--concurrency=1", "--lock-ttl=0", "--force-reboot=false"]), [""; 0]);
        assert_eq!(dangers(&[]), ["S026"], "kured's own default is an hour");
        assert_eq!(dangers(&["--period=16m"]), ["S026"]);
        assert_eq!(dangers(&["--period=often"]), ["S027"]);
        assert_eq!(dangers(&["--period=1m", "--concurrency=2"]), ["S022"]);
        assert_eq!(dangers(&["--period=1m", "--lock-ttl=30m"]), ["S023"]);
        assert_eq!(dangers(&["--period=1m", "--force-reboot=true"]), ["S024"]);
        assert_eq!(dangers(&["--force-reboot", "--period=1m"]), ["S024"]);
        assert_eq!(dangers(&["--period=1m", "--force-reboot", "--force-reboot=false"]), [""; 0], "the last one counts");
        assert_eq!(dangers(&["--period=1m", "--concurrency=1", "--concurrency=2"]), ["S022"]);
    }

    #[test]
    fn a_command_in_the_place_of_the_file_is_told_apart_from_what_is_dangerous() {
        let command = |args: &[&str]| Settings::of(&charts(args)).command.map(|reason| reason.code[..4].to_owned());
        assert_eq!(command(&["--reboot-sentinel-command=/bin/needs"]).as_deref(), Some("S025"));
        assert_eq!(command(&["--reboot-sentinel-command="]), None);
        assert_eq!(command(&["--period=1m"]), None);
    }

    /// What a Secret or a ConfigMap says is not what the DaemonSet says, and no default.
    #[test]
    fn r27_settings_that_are_not_in_the_daemonset_are_not_known() {
        let mut from = charts(&["--period=5m", "--reboot-sentinel=/sentinel/gate"]);
        let pod = from.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
        pod.containers[0].env_from =
            Some(vec![serde_json::from_value(json!({"configMapRef": {"name": "k"}})).unwrap()]);
        let settings = Settings::of(&from);
        assert!(settings.period.is_ok() && settings.file.is_ok(), "what is an argument goes before: {settings:?}");
        assert!(settings.window.is_err());
        let codes = |reasons: Vec<Reason>| reasons.iter().map(|reason| reason.code[..4].to_owned()).collect::<Vec<_>>();
        assert_eq!(codes(settings.command.into_iter().collect()), ["S027"]);
        assert_eq!(codes(settings.dangers), ["S027"; 3], "concurrency, lock-ttl, force-reboot");
        assert_eq!(codes(settings.alerts.into_iter().collect()), ["S027"], "prometheus-url");
        let unknown = Settings::of(&charts(&["--period=$(PERIOD)", "--reboot-sentinel=$(FILE)"]));
        assert!(unknown.period.is_err());
        assert_eq!(codes(unknown.elsewhere(Path::new("/run/gate")).into_iter().collect()), ["S027"]);
    }

    #[test]
    fn r29_no_alert_that_quorate_ships_may_keep_kured_from_acting() {
        let told = |args: &[&str]| {
            let args: Vec<&str> = ["--period=1m"].iter().chain(args).copied().collect();
            let settings = Settings::of(&charts(&args));
            assert_eq!(settings.dangers, []);
            settings.alerts.into_iter().map(|reason| reason.code[..4].to_owned()).collect::<Vec<_>>()
        };
        let prometheus = "--prometheus-url=http://prometheus";
        assert_eq!(told(&[]), [""; 0], "it asks for no alerts");
        assert_eq!(told(&[prometheus]), ["S029"]);
        assert_eq!(told(&[prometheus, "--alert-filter-regexp=^(Watchdog|EtcdBackupStale|EtcdDrillStale)$"]), [""; 0]);
        assert_eq!(told(&[prometheus, "--alert-filter-regexp=^Watchdog$|^Etcd.*"]), [""; 0]);
        assert_eq!(told(&[prometheus, "--alert-filter-regexp=^(Watchdog|RebootRequired)$"]), ["S029"]);
        assert_eq!(told(&[prometheus, "--alert-filter-regexp=^Etcd[A-Z]+$"]), ["S029"]);
        assert_eq!(told(&[prometheus, "--alert-filter-regexp=Stale"]), [""; 0], "anywhere in the name");
        assert_eq!(told(&[prometheus, "--alert-filter-regexp=(?i)^etcd(backup|drill)stale$"]), [""; 0]);
        assert_eq!(told(&[prometheus, "--alert-filter-regexp=^Etcd[A-Z][a-z]{4,5}Stale$"]), [""; 0]);
        assert_eq!(told(&[prometheus, "--alert-filter-regexp="]), [""; 0], "nothing is in every name");
        for unlike in
            [r"\QEtcd", r"\<Etcd", r"Etcd.*\b{end}", "Etcd.{1,2000}", "Etcd{ 1 }", "(?x)Etcd .*", "Etcd(", "Etcd\\"]
        {
            let told = told(&[prometheus, &format!("--alert-filter-regexp={unlike}")]);
            assert_eq!(told, ["S029"], "{unlike}: it cannot be told");
        }
        let only = "--alert-filter-match-only=true";
        assert_eq!(told(&[prometheus, only]), ["S029"], "without an expression every alert counts");
        assert_eq!(told(&[prometheus, only, "--alert-filter-regexp=Drill"]), ["S029"], "anywhere in the name");
        assert_eq!(told(&[prometheus, only, "--alert-filter-regexp=^KernelPanic$"]), [""; 0]);
        assert_eq!(told(&[prometheus, only, "--alert-filter-regexp=^EtcdBackupStale$"]), ["S029"]);
        // All that are shipped.
        let components = Path::new(env!("CARGO_MANIFEST_DIR")).join("kustomize/components");
        let rules = std::fs::read_dir(components)
            .unwrap()
            .filter_map(|folder| std::fs::read_to_string(folder.unwrap().path().join("rule.yaml")).ok());
        let shipped: Vec<String> = rules
            .flat_map(|text| {
                text.lines()
                    .filter_map(|line| line.trim().strip_prefix("- alert: ").map(str::to_owned))
                    .collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(shipped, ALERTS);
    }

    #[test]
    fn periods_are_read_as_go_writes_them() {
        for (text, seconds) in [
            ("1h0m0s", Some(3600)),
            ("90s", Some(90)),
            ("15m", Some(900)),
            ("1.5h", Some(5400)),
            ("0", Some(0)),
            ("0s", Some(0)),
        ] {
            assert_eq!(duration(text), seconds.map(Duration::from_secs), "{text}");
        }
        for text in ["", "5", "5x", "m"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
