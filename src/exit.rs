//! Exit codes. They are an interface: Jobs' failure policies and scripts read them, and no number ever moves.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// Done, or nothing to do.
    Ok,
    /// An error that has no code of its own.
    Failed,
    /// Bad usage: flags, configuration, files.
    Usage,
    /// Refused: not like this. In a Job: 0, with the verdict in the termination message.
    Refused,
    /// Held: not now. In a Job: 0.
    Held,
    /// Something needed could not be seen, so nothing was done. In a Job with a verdict: 0.
    Unknown,
    /// Something was changed and not finished; the message says what is done and how to go on.
    Midway,
    /// A snapshot in which something is wrong.
    NotVerified,
}

impl ExitStatus {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 10,
            Self::Held => 11,
            Self::Unknown => 12,
            Self::Midway => 20,
            Self::NotVerified => 21,
        }
    }

    /// The status of a number that a Job left; none when it is not one of ours.
    pub const fn from_code(code: i32) -> Option<Self> {
        Some(match code {
            0 => Self::Ok,
            1 => Self::Failed,
            2 => Self::Usage,
            10 => Self::Refused,
            11 => Self::Held,
            12 => Self::Unknown,
            20 => Self::Midway,
            21 => Self::NotVerified,
            _ => return None,
        })
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

/// Bad usage that clap cannot see: a file, a value in the configuration, an object. Exits with 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_moves() {
        let numbers = [
            (ExitStatus::Ok, 0),
            (ExitStatus::Failed, 1),
            (ExitStatus::Usage, 2),
            (ExitStatus::Refused, 10),
            (ExitStatus::Held, 11),
            (ExitStatus::Unknown, 12),
            (ExitStatus::Midway, 20),
            (ExitStatus::NotVerified, 21),
        ];
        for (status, number) in numbers {
            assert_eq!(status.code(), number);
            assert_eq!(ExitStatus::from_code(i32::from(number)), Some(status));
        }
    }
}
