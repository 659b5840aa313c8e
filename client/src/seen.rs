//! The highest policy and TCB evaluation numbers that were seen, so that nobody can bring an older policy or older
//! endorsements, whose holes are known, once newer ones were accepted.
//!
//! One small file of the user's own. A signed policy's numbers count for each signer, those of an unsigned file for
//! that file; TCB evaluation numbers count for each platform root.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use cocoon_evidence::Digest32;
use cocoon_verify::{Floors, Policy, TrustedGuest};
use serde::{Deserialize, Serialize};

const SEEN_VERSION: u32 = 1;
const FILE_BYTES_MAX: usize = 256 * 1024;
const LOCK_DEADLINE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Why the numbers cannot be known or remembered. Nothing is accepted then.
#[derive(Debug, thiserror::Error)]
pub enum SeenError {
    /// The file system.
    #[error("the file of numbers that were seen, {path}, cannot be {attempted}; --state names another one")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Read, written or made.
        attempted: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not what this program writes.
    #[error("{path} is damaged; if you know that its numbers do not matter to you, remove it")]
    Malformed {
        /// Which file.
        path: PathBuf,
    },
    /// Another program of this user accepted newer ones meanwhile.
    #[error(
        "{what} number {found} was accepted, but {path} has {seen} by now: what is older than something accepted is \
         refused; start again with the newer policy, or have the provider renew the endorsements"
    )]
    Older {
        /// The policy's, or that of the TCB evaluation.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Of what was to be accepted.
        found: u64,
        /// The highest that was accepted.
        seen: u64,
    },
    /// It would grow without end.
    #[error("{path} is full ({FILE_BYTES_MAX} bytes); remove it, or name another one with --state")]
    Full {
        /// Which file.
        path: PathBuf,
    },
    /// Neither XDG_STATE_HOME nor HOME is set.
    #[error("there is no home directory to remember numbers in; name a file with --state")]
    NoHome,
}

/// The file, by its path.
#[derive(Debug, Clone)]
pub struct Seen {
    path: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Numbers {
    version: u32,
    policies: BTreeMap<String, u64>,
    tcb_evaluation: BTreeMap<String, u32>,
}

impl Seen {
    /// In this file; it need not exist yet.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where programs of this user remember things: `$XDG_STATE_HOME/cocoon/seen.json`.
    ///
    /// # Errors
    /// [`SeenError::NoHome`].
    pub fn of_user() -> Result<Self, SeenError> {
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
        let state = state.ok_or(SeenError::NoHome)?;
        Ok(Self::at(state.join("cocoon/seen.json")))
    }

    /// What is not accepted any more. `file`: where the policy was read from.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub fn floors(&self, policy: &Policy, file: &Path) -> Result<Floors, SeenError> {
        let numbers = self.read()?;
        let policy_number = numbers.policies.get(&policy_key(policy, file));
        let tcb = numbers.tcb_evaluation.get(&root_key(policy));
        Ok(Floors {
            policy_number: policy_number.copied().unwrap_or_default(),
            tcb_evaluation_number: tcb.copied().unwrap_or_default(),
        })
    }

    /// Remembers what this guest was accepted by. The file may have been raised since its numbers were asked for, by a
    /// program that runs beside this one.
    ///
    /// # Errors
    /// The file cannot be written, or has higher numbers by now.
    pub fn accept(&self, policy: &Policy, file: &Path, guest: &TrustedGuest) -> Result<(), SeenError> {
        if let Some(folder) = self.path.parent() {
            let mut builder = fs::DirBuilder::new();
            let made = builder.recursive(true).mode(0o700).create(folder);
            made.map_err(|source| self.error("made", source))?;
        }
        let _one_at_a_time = self.lock()?;
        let mut numbers = self.read()?;
        let older = |what, found, seen| SeenError::Older {
            what,
            path: self.path.clone(),
            found,
            seen,
        };
        let number = numbers.policies.entry(policy_key(policy, file)).or_default();
        let mut raised =
            raise(number, policy.terms().number).map_err(|(found, seen)| older("policy", found, seen))?;
        if let Some(found) = guest.tcb_evaluation_number() {
            let number = numbers.tcb_evaluation.entry(root_key(policy)).or_default();
            raised |= raise(number, found)
                .map_err(|(found, seen)| older("TCB evaluation", found.into(), seen.into()))?;
        }
        if raised { self.write(&numbers) } else { Ok(()) }
    }

    fn read(&self) -> Result<Numbers, SeenError> {
        let malformed = || SeenError::Malformed {
            path: self.path.clone(),
        };
        let mut text = String::new();
        match File::open(&self.path)
            .and_then(|file| file.take(FILE_BYTES_MAX as u64 + 1).read_to_string(&mut text))
        {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Numbers {
                    version: SEEN_VERSION,
                    ..Numbers::default()
                });
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(malformed()),
            Err(source) => return Err(self.error("read", source)),
        }
        let numbers: Numbers = serde_json::from_str(&text).map_err(|_| malformed())?;
        if numbers.version == SEEN_VERSION {
            Ok(numbers)
        } else {
            Err(malformed())
        }
    }

    /// Whole or not at all: a new file takes the old one's name.
    fn write(&self, numbers: &Numbers) -> Result<(), SeenError> {
        let text = serde_json::to_vec_pretty(numbers).expect("plain values are JSON");
        if text.len() > FILE_BYTES_MAX {
            return Err(SeenError::Full {
                path: self.path.clone(),
            });
        }
        let new = self.beside("new");
        let written = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&new, &self.path))
            .and_then(|()| match self.path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
                _ => Ok(()),
            });
        written.map_err(|source| self.error("written", source))
    }

    fn lock(&self) -> Result<File, SeenError> {
        let opened = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.beside("lock"));
        opened
            .and_then(|file| lock_within(LOCK_DEADLINE, file))
            .map_err(|source| self.error("locked", source))
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".");
        path.push(suffix);
        path.into()
    }

    pub(crate) fn error(&self, attempted: &'static str, source: io::Error) -> SeenError {
        SeenError::Io {
            path: self.path.clone(),
            attempted,
            source,
        }
    }
}

/// Whoever holds it writes a small file; one that was stopped while it did must not stop all others.
fn lock_within(limit: Duration, file: File) -> io::Result<File> {
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if started.elapsed() < limit => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => {
                let reason = format!(
                    "another program has held it for {} s; end that one",
                    limit.as_secs()
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
            }
        }
    }
}

/// Whether it is higher than before; the two if it is lower.
fn raise<T: Copy + PartialOrd>(seen: &mut T, found: T) -> Result<bool, (T, T)> {
    if found < *seen {
        return Err((found, *seen));
    }
    let raised = found > *seen;
    *seen = found;
    Ok(raised)
}

fn policy_key(policy: &Policy, file: &Path) -> String {
    match policy.signer() {
        Some(key) => format!("signer {key}"),
        None => {
            // A file that was read can be named; what cannot is remembered as it was given.
            let path = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
            format!("file {}", path.display())
        }
    }
}

fn root_key(policy: &Policy) -> String {
    Digest32::of(policy.terms().platform.root_pem.trim().as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_stopped_while_it_wrote_does_not_stop_all_others() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().write(true).open(file.path()).unwrap();
        let held = lock_within(Duration::ZERO, open()).unwrap();
        let refused = lock_within(Duration::ZERO, open()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        drop(held);
        lock_within(Duration::ZERO, open()).unwrap();
    }
}
