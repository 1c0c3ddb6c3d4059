//! A sentinel that can do nothing: no account, no right on its host.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A copy of the program that anybody may run, its log, and a host.
struct Alone {
    folder: TempDir,
}

impl Alone {
    fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        // By another process: one that this one starts meanwhile, for another test, would hold the copy open for writing, and it were busy.
        let copied = Command::new("/bin/cp").arg(env!("CARGO_BIN_EXE_quorate")).arg(folder.path()).status()?;
        anyhow::ensure!(copied.success(), "cp: {copied}");
        fs::create_dir_all(folder.path().join("host/var/run"))?;
        Ok(Self { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs it as that user until it has said this; with the default log.
    fn says(&self, user: u32, words: &str) -> Result<String> {
        let mut command = Command::new(self.path("quorate"));
        command.uid(user);
        self.says_in(command, words)
    }

    /// The same with a host's folder that is read-only, by a mount of the process's own.
    fn says_read_only(&self, words: &str) -> Result<String> {
        let run = self.path("host/var/run").display().to_string();
        let mut command = Command::new("/usr/bin/unshare");
        let script = r#"/bin/mount --bind "$1" "$1" && /bin/mount -o remount,bind,ro "$1" && shift && exec "$@""#;
        command.args(["--mount", "/bin/sh", "-c", script, "sh", &run]).arg(self.path("quorate"));
        self.says_in(command, words)
    }

    fn says_in(&self, mut command: Command, words: &str) -> Result<String> {
        let log = fs::File::create(self.path("log"))?;
        command.args(["sentinel", "run"]).arg(format!("--host={}", self.path("host").display())).env_clear();
        // In a pod without a token: that the Service has an address is all that it knows of the API.
        command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1").env("KUBERNETES_SERVICE_PORT", "1");
        command.env("QUORATE_NODE_NAME", "k2").env("QUORATE_POD_NAME", "p").env("QUORATE_POD_UID", "u");
        let mut child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        let said = until(&format!("it says `{words}`"), PATIENCE, || {
            anyhow::ensure!(child.try_wait()?.is_none(), "it has ended: {}", fs::read_to_string(self.path("log"))?);
            let log = fs::read_to_string(self.path("log"))?;
            Ok(if log.contains(words) { ControlFlow::Break(log) } else { ControlFlow::Continue(anyhow!("{log}")) })
        });
        child.kill()?;
        child.wait()?;
        said
    }
}

#[test]
fn r25_without_a_token_the_gate_is_closed_and_that_is_said() -> Result<()> {
    let alone = Alone::new()?;
    fs::write(alone.path("host").join(REQUIRED), "")?;
    // Of a sentinel that is dead.
    fs::write(alone.path("host").join(GATE), "{}")?;
    let log = alone.says(0, "S005-api-unknown")?;
    assert!(log.contains("the pod's service account cannot be used"), "{log}");
    assert!(log.contains("The gate was open when the sentinel began; it is closed"), "{log}");
    assert!(!alone.path("host").join(GATE).exists());
    Ok(())
}

#[test]
fn r26_a_host_path_that_cannot_be_written_is_said_in_one_line_at_the_start() -> Result<()> {
    let alone = Alone::new()?;
    let log = alone.says(65534, "S004-file-not-writable")?;
    let line = log.lines().find(|line| line.contains("S004")).unwrap();
    assert!(line.contains("/var/run on the host, as user 65534: Permission denied"), "{line}");
    // Nor can what is there be removed: it counts as open, and is told as open.
    fs::write(alone.path("host").join(GATE), "{}")?;
    let log = alone.says(65534, "S003-file-stays")?;
    assert!(log.contains("The gate is open"), "{log}");
    assert!(alone.path("host").join(GATE).exists());
    Ok(())
}

/// Such a host refuses also to remove what is not there: that is no gate that may be open.
#[test]
fn r26_on_a_read_only_host_a_gate_that_is_not_there_is_closed_and_one_that_is_stays_open() -> Result<()> {
    let alone = Alone::new()?;
    let log = alone.says_read_only("S004-file-not-writable")?;
    assert!(log.contains("Read-only file system") && !log.contains("may be open"), "{log}");
    fs::write(alone.path("host").join(GATE), "{}")?;
    let log = alone.says_read_only("S003-file-stays")?;
    assert!(log.contains("The gate may be open and cannot be closed"), "{log}");
    Ok(())
}

/// Nobody knows what is in a folder that is not there: it counts as open, and is looked for again after a pause, not at once.
#[test]
fn r26_a_gate_whose_folder_is_not_there_counts_as_open() -> Result<()> {
    let alone = Alone::new()?;
    fs::remove_dir(alone.path("host/var/run"))?;
    let log = alone.says(0, "S003-file-stays")?;
    assert!(log.contains("folder of /var/run/quorate-reboot-required"), "{log}");
    assert!(!log.contains("its Lease is not held"), "{log}");
    Ok(())
}

/// What it needs to work, its pod's name or an address to listen at, is not needed to close.
#[test]
fn r25_a_sentinel_that_cannot_begin_closes_the_gate_first() -> Result<()> {
    let alone = Alone::new()?;
    fs::write(alone.path("host").join(GATE), "{}")?;
    let mut command = Command::new(alone.path("quorate"));
    command.args(["sentinel", "run"]).arg(format!("--host={}", alone.path("host").display())).env_clear();
    let ended = command.output()?;
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("QUORATE_NODE_NAME is not set"), "{said}");
    assert!(!alone.path("host").join(GATE).exists(), "{said}");
    Ok(())
}
