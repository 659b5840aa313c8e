//! What a manifest says beyond the artifacts: the source they were built from, and what they measure to on the
//! machines of `measurements/profiles`.
//!
//! Both parts are absent from manifests of older builders, and may be: nothing that boots or verifies a guest reads
//! them. They are for an auditor, who computes them again.

use std::collections::BTreeMap;

use cocoon_evidence::{Digest32, Digest48};
use serde::{Deserialize, Serialize};

use super::ManifestError;

/// `measurements/profiles` has a handful; a manifest with more says nothing of use.
const LAUNCHES_MAX: usize = 64;
/// A register has as many values as a LaunchSpec leaves open: two page orders, two kernel headers.
const VALUES_MAX: usize = 8;
const NAME_BYTES_MAX: usize = 64;
/// Lengths of git's commit names in hexadecimal: SHA-1 and SHA-256.
const COMMIT_DIGITS: [usize; 2] = [40, 64];

/// Where an image was built from. Two origins can give the same artifacts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// SHA-256 of `image.lock`, which names every fetched input.
    pub image_lock: Digest32,
    /// SHA-256 of `Cargo.lock`, which names every crate.
    pub cargo_lock: Digest32,
    /// The commit; none if the source was no git repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<Commit>,
    /// Digest of the builder root that everything was compiled in; none if it was this machine's compilers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builder_root: Option<Digest32>,
}

/// A commit, and whether the source was what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// Its name in hexadecimal.
    pub id: String,
    /// Whether no file differed from the commit and none was added.
    pub clean: bool,
}

/// What the image measures to on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedLaunch {
    /// The LaunchSpec's name in `measurements/profiles`, without `.toml`.
    pub launch_spec: String,
    /// Of the LaunchSpec's file.
    pub launch_spec_sha256: Digest32,
    /// The legitimate values of each register; RTMR0 is absent, because it follows from the QEMU of whoever launches.
    pub registers: BTreeMap<RegisterName, Vec<Digest48>>,
}

/// A register that a launch fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RegisterName {
    /// Firmware.
    Mrtd,
    /// Firmware configuration and virtual hardware.
    Rtmr0,
    /// The kernel.
    Rtmr1,
    /// The command line.
    Rtmr2,
    /// On SEV-SNP, all of it: MEASUREMENT of a report.
    #[serde(rename = "launch_digest")]
    LaunchDigest,
}

impl Origin {
    pub(super) fn check(&self) -> Result<(), ManifestError> {
        let Some(Commit { id, .. }) = &self.commit else {
            return Ok(());
        };
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if COMMIT_DIGITS.contains(&id.len()) && id.bytes().all(is_digit) {
            return Ok(());
        }
        Err(refuse("origin", "commit has to be 40 or 64 hexadecimal digits"))
    }
}

pub(super) fn check_launches(launches: &[ExpectedLaunch]) -> Result<(), ManifestError> {
    if launches.len() > LAUNCHES_MAX {
        return Err(refuse("expected", "has more than 64 launches"));
    }
    for (index, launch) in launches.iter().enumerate() {
        let name = &launch.launch_spec;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
            return Err(refuse("expected", "has a launch_spec that is no plain name"));
        }
        if launches[..index].iter().any(|other| other.launch_spec == *name) {
            return Err(refuse("expected", "has a launch_spec twice"));
        }
        let counts = launch.registers.values().map(Vec::len);
        if counts.into_iter().any(|count| count == 0 || count > VALUES_MAX) {
            return Err(refuse("expected", "has a register with no value or more than 8"));
        }
    }
    Ok(())
}

fn refuse(field: &'static str, problem: &str) -> ManifestError {
    ManifestError::Value {
        field,
        problem: problem.to_owned(),
    }
}
