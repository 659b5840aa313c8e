//! LaunchSpec: the machine that a node boots. The predictor and the launcher read the same file, so that
//! what is launched is what was predicted.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The virtual machine, as TOML.
///
/// ```toml
/// platform = "simulated"
/// machine = "q35-1"
/// vcpus = 2
/// memory_mib = 1024
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchSpec {
    /// Who measures.
    pub platform: LaunchPlatform,
    /// Which fixed set of QEMU arguments.
    pub machine: MachineProfile,
    /// Virtual processors.
    pub vcpus: Vcpus,
    /// Memory of the guest.
    pub memory_mib: MemoryMib,
}

/// Who measures and signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LaunchPlatform {
    /// The launcher plays the TDX module and the quoting enclave: for machines without TDX, proves nothing.
    Simulated,
    /// Intel TDX.
    Tdx,
}

/// A fixed set of QEMU arguments. Anything that changes what a guest measures to is a new profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineProfile {
    /// q35 without default devices; on PCIe, in this order: the root disk (virtio-blk, read-only), the model
    /// disk (virtio-blk, read-only), vsock (virtio); one serial port in dev images; no network.
    #[serde(rename = "q35-1")]
    Q35V1,
}

impl MachineProfile {
    /// The name in a LaunchSpec.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q35V1 => "q35-1",
        }
    }
}

/// A number of virtual processors, 1 to 255: more need interrupt remapping, which no profile sets up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vcpus(u32);

/// Memory in MiB, 256 to 4,194,304 (4 TiB), a multiple of 2 so that it consists of whole large pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct MemoryMib(u32);

impl Vcpus {
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl MemoryMib {
    /// The number of MiB.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The same in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }
}

/// A number out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {found}, but has to be {rule}")]
pub struct RangeError {
    field: &'static str,
    found: u32,
    rule: &'static str,
}

impl TryFrom<u32> for Vcpus {
    type Error = RangeError;

    fn try_from(found: u32) -> Result<Self, RangeError> {
        if (1..=255).contains(&found) {
            return Ok(Self(found));
        }
        Err(RangeError {
            field: "vcpus",
            found,
            rule: "1 to 255",
        })
    }
}

impl TryFrom<u32> for MemoryMib {
    type Error = RangeError;

    fn try_from(found: u32) -> Result<Self, RangeError> {
        if (256..=4 << 20).contains(&found) && found.is_multiple_of(2) {
            return Ok(Self(found));
        }
        Err(RangeError {
            field: "memory_mib",
            found,
            rule: "an even number from 256 to 4194304",
        })
    }
}

impl From<Vcpus> for u32 {
    fn from(vcpus: Vcpus) -> Self {
        vcpus.0
    }
}

impl From<MemoryMib> for u32 {
    fn from(memory: MemoryMib) -> Self {
        memory.0
    }
}

/// Why a LaunchSpec cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file system refused.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not the TOML of [`LaunchSpec`].
    #[error("{} is not a LaunchSpec", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: toml::de::Error,
    },
}

impl LaunchSpec {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn load(path: &Path) -> Result<Self, SpecError> {
        let text = std::fs::read_to_string(path).map_err(|source| SpecError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|source| SpecError::Malformed {
            path: path.to_owned(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "platform = \"simulated\"\nmachine = \"q35-1\"\nvcpus = 2\nmemory_mib = 1024\n";

    #[test]
    fn reads_and_writes_the_same() {
        let spec: LaunchSpec = toml::from_str(TEXT).unwrap();
        assert_eq!(spec.vcpus.get(), 2);
        assert_eq!(spec.memory_mib.bytes(), 1 << 30);
        assert_eq!(toml::to_string(&spec).unwrap(), TEXT);
    }

    #[test]
    fn out_of_range_and_unknown_is_refused_by_name() {
        let check = |from: &str, to: &str, says: &str| {
            let error = toml::from_str::<LaunchSpec>(&TEXT.replace(from, to)).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        };
        check("vcpus = 2", "vcpus = 0", "vcpus is 0, but has to be 1 to 255");
        check("vcpus = 2", "vcpus = 256", "vcpus is 256");
        check("1024", "1023", "memory_mib is 1023");
        check("1024", "128", "memory_mib is 128");
        check("1024", "4294967295", "memory_mib is 4294967295");
        check("vcpus", "gpus", "unknown field `gpus`");
        check("simulated", "none", "unknown variant `none`");
    }
}
