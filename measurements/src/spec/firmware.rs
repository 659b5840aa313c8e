//! `[firmware]`: how the firmware measures, which its file does not say.

use serde::{Deserialize, Serialize};

/// `[firmware]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirmwareSpec {
    /// Which events there are, and in which register; `"a2"` if left out.
    #[serde(default)]
    pub layout: EventLayout,
    /// What the firmware says about Secure Boot; `"absent"` if left out.
    #[serde(default)]
    pub secure_boot: SecureBoot,
    /// Where the firmware names the initrd on the command line. Left out: after it for layouts a0 to a2; not
    /// pinned for b, and a prediction with an initrd then names a value for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_argument: Option<InitrdArgument>,
    /// Whether the firmware takes the kernel from QEMU's item `etc/boot/kernel` (QEMU 10.0 and later), whose
    /// setup header is as in the file: from edk2-stable202502 on. Left out: no for layouts a0 and a1, yes for b,
    /// not pinned for a2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named_kernel: Option<bool>,
}

/// The generations of edk2's TDX measurement, by the events of a directly booted kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventLayout {
    /// The oldest: boot variables in RTMR1.
    A0,
    /// Boot variables in RTMR0, and the separator before the kernel is there too.
    A1,
    /// From edk2 efaf8931bbfa, first in edk2-stable202411, to edk2-stable202502: that separator is in RTMR1.
    #[default]
    A2,
    /// From edk2-stable202505: QEMU's configuration items and SMBIOS are measured as well, and there are two
    /// boot options.
    B,
}

impl EventLayout {
    /// All layouts, oldest first.
    pub const ALL: [Self; 4] = [Self::A0, Self::A1, Self::A2, Self::B];

    /// The name in a LaunchSpec.
    pub fn name(self) -> &'static str {
        match self {
            Self::A0 => "a0",
            Self::A1 => "a1",
            Self::A2 => "a2",
            Self::B => "b",
        }
    }
}

/// The variable SecureBoot, which the firmware makes itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecureBoot {
    /// The firmware was built without Secure Boot: there is no such variable, and the configuration volume is
    /// measured but not read, so no keys either.
    #[default]
    Absent,
    /// Built with it, but it is off. The keys, if any, are those of the configuration volume.
    Off,
    /// On, with the keys of the configuration volume.
    On,
}

impl SecureBoot {
    /// The name in a LaunchSpec.
    pub fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Off => "off",
            Self::On => "on",
        }
    }
}

/// Where the firmware puts `initrd=initrd` on the command line that the kernel measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InitrdArgument {
    /// Before the rest: from edk2 a2ac0fea49, first in edk2-stable202508, on.
    Prefix,
    /// After the rest.
    Suffix,
}

impl InitrdArgument {
    /// Both places.
    pub const ALL: [Self; 2] = [Self::Prefix, Self::Suffix];

    /// The name in a LaunchSpec.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::Suffix => "suffix",
        }
    }
}
