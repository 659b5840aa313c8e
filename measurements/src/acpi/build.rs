//! Which QEMU it is: the tables are compiled into its program.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use cocoon_evidence::Digest32;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::QemuVersion;

/// A program, and what it says it is. QEMU builds AML itself and loads no table from a file, so that nothing
/// beside the program counts; where the path is a script that starts QEMU, the version tells builds apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuBuild {
    /// The first line of `--version`, with the distribution's revision.
    pub version: String,
    /// SHA-256 of the file that was started.
    pub program_sha256: Digest32,
}

/// Why a QEMU cannot be identified.
#[derive(Debug, thiserror::Error)]
#[error("cannot ask {program} for its version")]
pub struct QemuBuildError {
    program: String,
    source: io::Error,
}

const VERSION_BYTES_MAX: u64 = 4096;
const VERSION_LIMIT: Duration = Duration::from_secs(20);

impl QemuBuild {
    /// Hashes the program and asks it.
    ///
    /// # Errors
    /// See [`QemuBuildError`].
    pub fn of(qemu: &Path) -> Result<Self, QemuBuildError> {
        let identify = || {
            Ok(Self {
                program_sha256: hash(&found(qemu))?,
                version: version(qemu)?,
            })
        };
        identify().map_err(|source| QemuBuildError {
            program: qemu.display().to_string(),
            source,
        })
    }

    /// Whether it is of this version.
    pub fn is_version(&self, version: QemuVersion) -> bool {
        self.number().parse() == Ok(version)
    }

    /// The version's number, like "10.0.13".
    pub fn number(&self) -> &str {
        let mut words = self.version.split(' ');
        words
            .find(|word| word.starts_with(|first: char| first.is_ascii_digit()))
            .unwrap_or("")
    }
}

impl fmt::Display for QemuBuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.version)
    }
}

/// A bare name is looked up as the shell does.
fn found(qemu: &Path) -> std::path::PathBuf {
    let is_bare = qemu.components().count() == 1 && qemu.is_relative();
    let search = std::env::var_os("PATH").filter(|_| is_bare).unwrap_or_default();
    std::env::split_paths(&search)
        .map(|folder| folder.join(qemu))
        .find(|path| path.is_file())
        .unwrap_or_else(|| qemu.to_owned())
}

fn hash(program: &Path) -> io::Result<Digest32> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(program)?, &mut hash)?;
    Ok(Digest32(hash.finalize().into()))
}

fn version(qemu: &Path) -> io::Result<String> {
    let (mut ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(VERSION_LIMIT))?;
    let mut child = Command::new(qemu)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::null())
        .spawn()?;
    let mut said = Vec::new();
    let read = ours.by_ref().take(VERSION_BYTES_MAX).read_to_end(&mut said);
    // Both fail only if it has ended already.
    let _ = child.kill();
    let _ = child.wait();
    read?;
    let text = String::from_utf8(said).map_err(io::Error::other)?;
    match text.lines().next() {
        Some(line) if line.starts_with("QEMU emulator version ") => Ok(line.to_owned()),
        _ => Err(io::Error::other("it is not a QEMU emulator")),
    }
}
