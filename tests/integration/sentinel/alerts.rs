//! Alerts, as the real Prometheus tells them.

use super::*;

/// A real Prometheus whose rules the test writes.
struct Prometheus {
    process: Process,
    url: String,
    rules: PathBuf,
}

impl Prometheus {
    /// One that is still to be started, at an address of its own.
    fn new(folder: &Path, address: std::net::Ipv4Addr) -> Result<Self> {
        let home = folder.join("prometheus");
        fs::create_dir(&home)?;
        let (config, rules) = (home.join("prometheus.yml"), home.join("rules.yml"));
        fs::write(&config, "global: {evaluation_interval: 1s}\nrule_files: [rules.yml]\n")?;
        let args = vec![
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", home.join("data").display()),
            format!("--web.listen-address={address}:9090"),
            "--web.enable-lifecycle".to_owned(),
            "--web.route-prefix=/prometheus".to_owned(),
        ];
        let process = Process::new("prometheus", lab::binaries::prometheus()?, args, home.join("log"));
        let prometheus = Self { process, url: format!("http://{address}:9090/prometheus"), rules };
        prometheus.write(&[])?;
        Ok(prometheus)
    }

    fn write(&self, alerts: &[&str]) -> Result<()> {
        let rules: Vec<Value> = alerts.iter().map(|alert| json!({"alert": alert, "expr": "vector(1)"})).collect();
        Ok(fs::write(&self.rules, json!({"groups": [{"name": "test", "rules": rules}]}).to_string())?)
    }

    /// From now on these alerts fire, as soon as it has evaluated its rules.
    fn fires(&self, alerts: &[&str]) -> Result<()> {
        self.write(alerts)?;
        let (host, path) = self.url.trim_start_matches("http://").split_once('/').context("a path")?;
        let mut stream = TcpStream::connect(host)?;
        write!(
            stream,
            "POST /{path}/-/reload HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        anyhow::ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(())
    }
}

/// From silence to a reboot: what is not known closes, what is active closes, what quorate ships never does.
#[test]
fn r29_an_alert_that_is_active_or_not_known_keeps_a_gate_closed_and_ours_do_not() -> Result<()> {
    let mut fleet = Fleet::of(1)?;
    let prometheus = Prometheus::new(fleet.stage.api.etcd().dir(), fleet.stage.api.address(5))?;
    let alerts = format!("alerts: {{prometheus: '{}', heartbeat: Watchdog}}", prometheus.url);
    fleet.configure(&CONFIG.replace("sentinel: {", &format!("sentinel: {{{alerts}, ")))?;
    fleet.kured(&["--period=10m", "--reboot-sentinel=/sentinel/quorate-reboot-required"])?;
    let boot = json!({"id": "boot-1", "since": 0}).to_string();
    fleet.stage.api.kubectl(["annotate", "node", "k1", &format!("quorate.dev/boot={boot}")])?;
    fleet.worker()?;
    fleet.wants_reboot(4)?;
    fleet.start(4)?;
    fleet.says(4, &format!("S037-alerts-unknown: {}: error sending request", prometheus.url))?;
    prometheus.process.start()?;
    fleet.says(4, "Watchdog does not fire")?;
    prometheus.fires(&["Watchdog", "KubeNodeUnreachable"])?;
    fleet.says(4, "S036-alert-active: KubeNodeUnreachable")?;
    let looks = fleet.looks(4)?;
    fleet.has_looked(4, looks + 2)?;
    assert!(!fleet.is_open(4), "{}", fleet.log(4)?);
    prometheus.process.pause()?;
    fleet.says(4, "no answer in 3 s")?;
    prometheus.process.resume()?;

    // R29: those of ours fire while a node waits for its reboot.
    let quiet = ["Watchdog", "EtcdBackupStale", "EtcdDrillStale"];
    prometheus.fires(&quiet)?;
    fleet.worker_opens()?;
    // Before kured has taken its lock it closes again.
    let from = fleet.log(4)?.len();
    prometheus.fires(&["Watchdog", "KubeNodeUnreachable"])?;
    fleet.closes(4)?;
    fleet.says_after(4, from, "The gate is closed why=\"S036-alert-active: KubeNodeUnreachable")?;

    // A drain raises alerts of its own: after kured has taken its lock nobody asks.
    fleet.slot_is_free()?;
    prometheus.fires(&quiet)?;
    fleet.sentinel(4)?.kill()?;
    fleet.start(4)?;
    fleet.worker_opens()?;
    fleet.kureds_pod(4, "kured-w", Clock::system().now() - jiff::SignedDuration::from_hours(1))?;
    fleet.kured_takes(4)?;
    let looks = fleet.looks(4)?;
    fleet.has_looked(4, looks + 2)?;
    prometheus.process.kill()?;
    let looks = fleet.looks(4)?;
    fleet.has_looked(4, looks + 3)?;
    assert!(fleet.is_open(4), "{}", fleet.log(4)?);
    Ok(())
}
