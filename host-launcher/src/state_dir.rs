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

/// A killed process is gone within this, QEMU's gigabytes on a very busy machine included.
const DYING_LIMIT: Duration = Duration::from_secs(10);

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

    /// [`Self::take`], after waiting for a node that was killed and is not gone yet. The kernel takes a killed
    /// process down step by step, and its locks and listening sockets are among the last that go: 0.3 s on a busy
    /// machine. A node that lives is not waited for.
    ///
    /// # Errors
    /// See [`StateDirError`].
    pub async fn take_over(path: &Path) -> Result<Self, StateDirError> {
        let deadline = tokio::time::Instant::now() + DYING_LIMIT;
        let holder = fs::read_to_string(path.join("lock")).unwrap_or_default();
        if let Ok(pid) = holder.trim().parse() {
            while is_dying(pid) && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
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

/// Whether this process was killed, or ended, and still has threads that hold its files.
fn is_dying(pid: u32) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    // Its memory goes first, and with it the command line.
    let no_memory = fs::read(process.join("cmdline")).is_ok_and(|line| line.is_empty());
    let threads = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
    (no_memory || is_killed(&process)) && threads.into_iter().any(|thread| !is_gone(&thread.path()))
}

/// Whether SIGKILL (9) waits for the process: `SigPnd` and `ShdPnd` in /proc/PID/status, proc(5), are masks with
/// signal 1 in the lowest bit.
fn is_killed(process: &Path) -> bool {
    const SIGKILL_BIT: u64 = 1 << 8;
    let status = fs::read_to_string(process.join("status")).unwrap_or_default();
    let masks = status.lines().filter_map(|line| {
        line.strip_prefix("SigPnd:")
            .or_else(|| line.strip_prefix("ShdPnd:"))
    });
    masks
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & SIGKILL_BIT != 0)
}

/// Whether a thread has closed its files: it has disappeared, or is a zombie (Z, X), third field in proc(5)'s stat.
fn is_gone(thread: &Path) -> bool {
    let Ok(stat) = fs::read_to_string(thread.join("stat")) else {
        return true;
    };
    // The second field is the program's name in parentheses, which may itself hold any character.
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
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

    /// A process that holds the directory's lock, as its standard input.
    fn holder(path: &Path) -> std::process::Child {
        StateDir::create(path).unwrap();
        let lock = path.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&lock)
            .unwrap();
        file.try_lock().unwrap();
        let child = std::process::Command::new("sleep")
            .arg("600")
            .stdin(file)
            .spawn()
            .unwrap();
        fs::write(&lock, format!("{}\n", child.id())).unwrap();
        child
    }

    #[tokio::test]
    async fn a_node_starts_at_once_after_the_last_one_was_killed() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let path = dir.path().join(round.to_string());
            let mut child = holder(&path);
            let refused = StateDir::take_over(&path).await.unwrap_err();
            assert!(refused.to_string().contains(&child.id().to_string()), "{refused}");
            child.kill().unwrap();
            // Nobody has waited for it: it is dying, then a zombie.
            StateDir::take_over(&path).await.unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn only_a_killed_process_with_open_files_is_dying() {
        assert!(!is_dying(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        while !is_gone(&PathBuf::from(format!("/proc/{}", child.id()))) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!is_dying(child.id()), "a zombie has closed its files");
        child.wait().unwrap();
        assert!(!is_dying(child.id()));
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let error = anyhow::Error::from(StateDir::take(Path::new("/proc/none")).unwrap_err());
        assert!(format!("{error:#}").contains("/proc/none"), "{error:#}");
    }
}
