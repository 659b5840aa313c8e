//! Processors and memory, in the range that QEMU's q35 machine has.

use serde::{Deserialize, Serialize};

/// A number of virtual processors, 1 to 4096: what the newest q35 machine type takes. Older ones take 288
/// (QEMU 8) or 1024, and say so themselves.
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
    pub(super) field: &'static str,
    pub(super) found: u32,
    pub(super) rule: &'static str,
}

impl TryFrom<u32> for Vcpus {
    type Error = RangeError;

    fn try_from(found: u32) -> Result<Self, RangeError> {
        if (1..=4096).contains(&found) {
            return Ok(Self(found));
        }
        Err(RangeError {
            field: "vcpus",
            found,
            rule: "1 to 4096",
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
