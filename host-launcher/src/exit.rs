//! Exit codes of `cocoon-launch`, and the failure that carries one to `main`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the process exits with. Scripts rely on these numbers: they do not change meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done.
    Ok = 0,
    /// `status`: no node runs on this configuration.
    NotRunning = 1,
    /// The command line, node.toml or a file it names is wrong.
    Usage = 2,
    /// QEMU, the vsock backend or another program is missing.
    Missing = 3,
    /// The guest did not come up to serving.
    BootFailed = 4,
    /// Another node uses this state directory, or an address is taken.
    Busy = 5,
    /// The chain could not be started or reached.
    Chain = 6,
    /// The launcher itself failed, for example because the disk is full.
    Internal = 7,
    /// The guest served and then ended without being asked to.
    GuestDied = 8,
}

impl Exit {
    /// The table for `--help`.
    pub const HELP: &str = "Exit codes:
  0  done
  1  status: no node runs on this configuration
  2  the command line, node.toml or a file it names is wrong
  3  QEMU, the vsock backend or another program is missing
  4  the guest did not come up to serving
  5  another node uses this state directory, or an address is taken
  6  the chain could not be started or reached
  7  the launcher itself failed (for example: no space left on the disk)
  8  the guest served, then ended without being asked to";
}

/// An error with the exit code that it ends the process with.
#[derive(Debug)]
pub struct Failure {
    /// Ends the process.
    pub exit: Exit,
    /// What was attempted, why it failed, what to do.
    pub error: anyhow::Error,
}

impl Failure {
    /// A failure in words.
    pub fn new(exit: Exit, error: impl fmt::Display + fmt::Debug + Send + Sync + 'static) -> Self {
        Self {
            exit,
            error: anyhow::Error::msg(error),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

/// Says which exit code an error leads to.
pub trait OrExit<T> {
    /// Turns the error into a [`Failure`] with this code.
    ///
    /// # Errors
    /// The receiver's.
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            exit,
            error: error.into(),
        })
    }
}
