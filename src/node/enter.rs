//! Leaves the container for the host: the namespaces of PID 1, then its root. The image is made FROM scratch, so every tool that the node
//! step uses is the host's own.

use rustix::process::{Pid, PidfdFlags, chroot, fchdir, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// What stays open of the container that was left.
#[derive(Debug)]
pub(super) struct Container {
    /// This very program, as the image has it.
    pub(super) program: File,
    termination: Option<File>,
}

/// Why the host could not be entered.
#[derive(Debug, thiserror::Error)]
#[error("cannot enter the host ({what}: {source}): the pod must be privileged, with hostPID and hostNetwork")]
pub(super) struct EnterError {
    what: &'static str,
    source: std::io::Error,
}

impl Container {
    /// The termination log, by a way that works from the host too.
    pub(super) fn termination_log(&self) -> PathBuf {
        match &self.termination {
            Some(file) => PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
            None => PathBuf::from(TERMINATION_LOG),
        }
    }
}

/// Where the kubelet reads what a container says at its end.
pub(super) const TERMINATION_LOG: &str = "/dev/termination-log";

/// Moves this process to the host. Must happen while it has one thread: the kernel refuses another mount namespace to a process
/// whose threads share their root (setns(2)). The runtime is of one thread and has started no other yet.
pub(super) fn host() -> Result<Container, EnterError> {
    let wrong = |what| move |source: std::io::Error| EnterError { what, source };
    if std::process::id() == 1 {
        return Err(wrong("PID 1")(std::io::Error::other("it is this process")));
    }
    let program = File::open("/proc/self/exe").map_err(wrong("/proc/self/exe"))?;
    // Only in a pod there is one; what is not there is not reported to.
    let termination = File::options().write(true).open(TERMINATION_LOG).ok();
    let init = Pid::INIT;
    let root = File::open("/proc/1/root").map_err(wrong("/proc/1/root"))?;
    let pidfd = pidfd_open(init, PidfdFlags::empty()).map_err(|error| wrong("pidfd_open")(error.into()))?;
    let spaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::NETWORK;
    move_into_thread_name_spaces(std::os::fd::AsFd::as_fd(&pidfd), spaces)
        .map_err(|error| wrong("setns")(error.into()))?;
    // The root of a mount namespace need not be the root that its processes see.
    fchdir(&root).map_err(|error| wrong("fchdir")(error.into()))?;
    chroot(".").map_err(|error| wrong("chroot")(error.into()))?;
    Ok(Container { program, termination })
}
