//! The state directory: one node at a time, everything in it readable by its owner alone.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};

use crate::journal::check_space;

/// How long a start waits for a node that is going: the kernel takes a killed process down step by step, and its
/// locks are among the last that go, 0.3 s on a busy machine.
const GOING_LIMIT: Duration = Duration::from_secs(3);

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// The file system refused.
    #[error("cannot write to the state directory {}; choose another state_dir or free some space", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another node uses it.
    #[error(
        "another node runs on the state directory {} (process {pid}); stop it with `cocoon-launch down`, or \
         choose another state_dir",
        path.display()
    )]
    Busy {
        /// The directory.
        path: PathBuf,
        /// Who, as far as known.
        pid: String,
    },
}

/// A state directory that is ours while this lives. The lock goes with the process, however it ends.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Makes the directory where needed.
    ///
    /// # Errors
    /// [`StateDirError::Io`].
    pub fn create(path: &Path) -> Result<(), StateDirError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| StateDirError::Io {
            path: path.to_owned(),
            source,
        })
    }

    /// [`Self::take`], after waiting a little for a node that was killed or ends.
    ///
    /// # Errors
    /// See [`StateDirError`].
    pub async fn take_over(path: &Path) -> Result<Self, StateDirError> {
        Self::wait_until_free(path, GOING_LIMIT).await;
        Self::take(path)
    }

    /// Makes it where needed and takes it.
    ///
    /// # Errors
    /// See [`StateDirError`].
    pub fn take(path: &Path) -> Result<Self, StateDirError> {
        Self::create(path)?;
        let io_error = |source| StateDirError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(io_error)?;
        let mut pid = String::new();
        (&mut file).take(16).read_to_string(&mut pid).map_err(io_error)?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(StateDirError::Busy {
                    path: path.to_owned(),
                    pid: pid.trim().to_owned(),
                });
            }
            Err((_, errno)) => return Err(io_error(errno.into())),
        };
        check_space(path).map_err(io_error)?;
        let write_pid = |file: &mut File| {
            file.set_len(0)?;
            io::Seek::rewind(file)?;
            writeln!(file, "{}", std::process::id())
        };
        write_pid(&mut lock).map_err(io_error)?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until nobody holds the directory; `false` if somebody still does after `limit`.
    pub async fn wait_until_free(path: &Path, limit: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let Ok(file) = File::open(path.join("lock")) else {
                return true;
            };
            if Flock::lock(file, FlockArg::LockSharedNonblock).is_ok() {
                return true;
            }
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Replaces a file as a whole: a reader sees the old or the new content.
///
/// # Errors
/// Those of the file system.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_node_on_the_same_directory_is_refused_with_the_firsts_pid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateDir::take(&path).unwrap();
        let error = StateDir::take(&path).unwrap_err();
        assert!(
            error.to_string().contains(&std::process::id().to_string()),
            "{error}"
        );
        assert!(!StateDir::wait_until_free(&path, Duration::from_millis(50)).await);
        drop(first);
        assert!(StateDir::wait_until_free(&path, Duration::from_millis(50)).await);
        StateDir::take(&path).unwrap();
    }

    #[tokio::test]
    async fn a_node_that_is_going_is_waited_for_and_one_that_stays_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let running = StateDir::take(dir.path()).unwrap();
        let refused = StateDir::take_over(dir.path()).await.unwrap_err();
        assert!(matches!(refused, StateDirError::Busy { .. }), "{refused}");

        let going = async {
            tokio::time::sleep(GOING_LIMIT / 2).await;
            drop(running);
        };
        let (taken, ()) = tokio::join!(StateDir::take_over(dir.path()), going);
        taken.unwrap();
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let error = anyhow::Error::from(StateDir::take(Path::new("/proc/none")).unwrap_err());
        assert!(format!("{error:#}").contains("/proc/none"), "{error:#}");
    }
}
