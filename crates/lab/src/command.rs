//! Running the host's programs: what failed is said with the program, its arguments and its last lines.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, anyhow, bail};

/// A program and its arguments, stdin closed.
pub(crate) fn command<I, S>(program: &str, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    command
}

/// Like [`command`], but killed with the lab: a build that was interrupted must not go on writing behind the next one. What it has started
/// itself ends when nobody listens any more.
pub(crate) fn tied<I, S>(program: &str, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    // The signal comes for a death after it was asked for; a lab that had died before is seen by its number.
    let still_there = r#"[ "$PPID" = "$1" ] || exit 1; shift; exec "$@""#;
    let mut command = self::command("setpriv", ["--pdeathsig", "KILL", "--", "sh", "-c", still_there, "sh"]);
    command.arg(std::process::id().to_string()).arg(program).args(args);
    command
}

fn line_of(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The last lines of a text, on one line.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    all.iter().skip(all.len().saturating_sub(lines)).copied().collect::<Vec<_>>().join(" | ")
}

/// Runs to the end, whatever the exit code; only a program that cannot be started is an error.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command.output().map_err(|error| cannot_start(command, error))
}

pub(crate) fn cannot_start(command: &Command, error: std::io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy().into_owned();
    if error.kind() == ErrorKind::NotFound {
        return anyhow!("`{program}` is not installed on this host; scripts/setup installs what the lab needs");
    }
    anyhow!(error).context(format!("cannot start `{program}`"))
}

/// Runs to the end and gives what it wrote to stdout; a failure is an error with its last lines.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let err = String::from_utf8_lossy(&output.stderr);
        let said = if err.trim().is_empty() { tail(&out, 5) } else { tail(&err, 5) };
        bail!("`{}` failed ({}): {said}", line_of(command), output.status);
    }
    Ok(out)
}

/// Like [`capture`], for the effect only.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    capture(command).map(drop)
}

/// One clear line when any of these programs is missing on the host.
pub(crate) fn require(programs: &[&str]) -> Result<()> {
    let path = std::env::var_os("PATH").context("PATH is not set")?;
    let missing: Vec<&str> = programs
        .iter()
        .copied()
        .filter(|program| !std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!("missing on this host: {} (scripts/setup installs what the lab needs)", missing.join(", "))
}

/// Reads a file, naming it when that fails.
pub(crate) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file with its parent folders, naming it when that fails.
pub(crate) fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_program_and_its_last_lines() {
        let error = run(&mut command("sh", ["-c", "echo first >&2; echo last >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("first | last"), "{error}");
        let error = run(&mut command("no-such-program-here", ["x"])).unwrap_err().to_string();
        assert!(error.contains("scripts/setup"), "{error}");
        let error = require(&["sh", "no-such-program-here"]).unwrap_err().to_string();
        assert!(error.starts_with("missing on this host: no-such-program-here ("), "{error}");
    }
}
