//! The host: the file that is looked at, the folder by which a test holds the process up, and the reboot.
//!
//! In that folder `steps` gets a line for each step that is come to, and `hold`, when it is there, names the one at which the process waits
//! until it is gone or names another.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::time::sleep;

use super::{Options, Step};
use crate::output::say;

const POLL: Duration = Duration::from_millis(100);

pub(super) struct Host {
    required: PathBuf,
    folder: PathBuf,
}

impl Host {
    pub(super) fn new(options: &Options) -> Self {
        Self { required: options.reboot_sentinel.clone(), folder: options.contract_folder.clone() }
    }

    pub(super) fn is_reboot_required(&self) -> bool {
        self.required.exists()
    }

    /// Tells that it is there, and waits while it is held up.
    pub(super) async fn comes_to(&self, step: Step) -> Result<()> {
        say(format_args!("step {step}"));
        let steps = self.folder.join("steps");
        let file = File::options().create(true).append(true).open(&steps);
        let written = file.and_then(|mut file| writeln!(file, "{step}"));
        written.with_context(|| steps.display().to_string())?;
        while self.held_at()? == Some(step) {
            sleep(POLL).await;
        }
        Ok(())
    }

    fn held_at(&self) -> Result<Option<Step>> {
        let hold = self.folder.join("hold");
        match fs::read_to_string(&hold) {
            Ok(text) => Ok(Step::named(text.trim())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| hold.display().to_string()),
        }
    }

    /// Has the host reboot, as kured does by nsenter: by a process of its own, since only one with a single thread may change its mounts.
    pub(super) fn ask_for_reboot(&self) -> Result<()> {
        let asked = Command::new("/proc/self/exe").arg("--contract-reboot").status();
        let status = asked.context("cannot run itself")?;
        if !status.success() {
            bail!("the reboot failed: {status}");
        }
        Ok(())
    }
}

/// Becomes `systemctl reboot` of the host.
pub(super) fn reboot() -> Result<()> {
    let mounts = File::open("/proc/1/ns/mnt").context("the host's mounts")?;
    move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))
        .context("cannot enter the host's mounts")?;
    Err(Command::new("/bin/systemctl").arg("reboot").exec()).context("/bin/systemctl")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_held_up_at_a_step_until_the_file_says_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host { required: folder.path().join("required"), folder: folder.path().to_owned() };
        assert!(!host.is_reboot_required());
        fs::write(&host.required, "").unwrap();
        assert!(host.is_reboot_required());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            host.comes_to(Step::Seen).await.unwrap();
            fs::write(folder.path().join("hold"), "locked\n").unwrap();
            host.comes_to(Step::Cordoned).await.unwrap();
            let held = tokio::time::timeout(POLL * 3, host.comes_to(Step::Locked)).await;
            assert!(held.is_err(), "it was not held up");
            fs::remove_file(folder.path().join("hold")).unwrap();
            host.comes_to(Step::Locked).await.unwrap();
        });
        assert_eq!(fs::read_to_string(folder.path().join("steps")).unwrap(), "seen\ncordoned\nlocked\nlocked\n");
    }
}
