//! `[[devices]]` and `[pci]`: what sits on PCIe. It decides the ACPI tables, and through them RTMR0.

use serde::{Deserialize, Serialize};

use super::RangeError;

/// One device on PCIe bus 0, in the next free slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// What it is.
    pub kind: DeviceKind,
}

impl DeviceSpec {
    /// A device with the defaults of its kind.
    pub fn new(kind: DeviceKind) -> Self {
        Self { kind }
    }
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// A disk, `virtio-blk-pci`.
    VirtioBlk,
    /// A network card, `virtio-net-pci`.
    VirtioNet,
    /// vsock through the host's kernel, `vhost-vsock-pci`, or the same device through a vhost-user backend.
    VhostVsock,
    /// A passed-through GPU, `vfio-pci` behind a root port of its own. The firmware maps its memory above
    /// 4 GiB, so `pci.hole64_gib` has to be stated.
    VfioGpu,
}

impl DeviceKind {
    /// The name in a LaunchSpec.
    pub fn name(self) -> &'static str {
        match self {
            Self::VirtioBlk => "virtio-blk",
            Self::VirtioNet => "virtio-net",
            Self::VhostVsock => "vhost-vsock",
            Self::VfioGpu => "vfio-gpu",
        }
    }
}

/// `[pci]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PciSpec {
    /// The window above 4 GiB for PCI memory (`q35-pcihost.pci-hole64-size`). Left out: QEMU's own, 32 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hole64_gib: Option<Hole64Gib>,
    /// Where the firmware lets that window begin, in GiB. Left out: where edk2 does for a processor with 46 or
    /// more address bits, 57344 (56 TiB); before edk2-stable202211 behind the memory. `docs/ACPI.md` says more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_gib: Option<WindowGib>,
}

/// A window of 1 GiB to 256 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Hole64Gib(u32);

impl Hole64Gib {
    /// The number of GiB.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Hole64Gib {
    type Error = RangeError;

    fn try_from(found: u32) -> Result<Self, RangeError> {
        if (1..=256 << 10).contains(&found) {
            return Ok(Self(found));
        }
        Err(RangeError {
            field: "hole64_gib",
            found,
            rule: "1 to 262144",
        })
    }
}

impl From<Hole64Gib> for u32 {
    fn from(hole: Hole64Gib) -> Self {
        hole.0
    }
}

/// An address of 4 GiB to 2^52, in GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct WindowGib(u32);

impl WindowGib {
    /// The number of GiB.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for WindowGib {
    type Error = RangeError;

    fn try_from(found: u32) -> Result<Self, RangeError> {
        if (4..1 << 22).contains(&found) {
            return Ok(Self(found));
        }
        Err(RangeError {
            field: "window_gib",
            found,
            rule: "4 to 4194303",
        })
    }
}

impl From<WindowGib> for u32 {
    fn from(window: WindowGib) -> Self {
        window.0
    }
}
