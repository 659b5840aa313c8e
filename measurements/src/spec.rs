//! LaunchSpec: the machine that a node boots. The predictor and the launcher read the same file, so that
//! what is launched is what was predicted.

mod devices;
mod firmware;
mod numbers;
mod qemu;
mod snp;
mod td;

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use devices::{DeviceKind, DeviceSpec, Hole64Gib, PciSpec, WindowGib};
pub use firmware::{EventLayout, FirmwareSpec, InitrdArgument, SecureBoot};
pub use numbers::{MemoryMib, RangeError, Vcpus};
pub use qemu::{PageOrder, ParseQemuVersionError, QemuSpec, QemuVersion};
pub use snp::{GuestFeatures, SnpSpec};
pub use td::{
    PredictedTd, SIMULATED_TD_ATTRIBUTES, SIMULATED_XFAM, TD_ATTRIBUTES_DEFAULT, TdSource, TdSpec,
    TdSpecError,
};

use crate::acpi::{BiosInformation, ProcessorId};

/// A longer LaunchSpec is refused before it is parsed: a full one has less than 4 KiB.
const SPEC_BYTES_MAX: u64 = 64 * 1024;

/// A list of devices is bounded by what fits on PCIe bus 0.
const DEVICES_MAX: usize = 28;

/// The virtual machine, as TOML. The first four keys are required; every other has a default, and an unknown
/// key is an error.
///
/// ```toml
/// platform = "tdx"             # simulated, tdx or snp
/// machine = "q35-1"
/// vcpus = 4
/// memory_mib = 8192
///
/// [qemu]                       # see QemuSpec
/// version = "10.1.0"
///
/// [firmware]                   # see FirmwareSpec
/// layout = "a2"
/// secure_boot = "absent"
///
/// [[devices]]                  # see DeviceSpec; absent: those of the machine profile
/// kind = "virtio-blk"
///
/// [pci]                        # see PciSpec
/// hole64_gib = 1024
///
/// [smbios.processor]           # see SmbiosSpec
/// signature = 0x000806f8
/// features = 0x1f8bfbff
///
/// [td]                         # see TdSpec
/// xfam = "0x00000000000618e7"
///
/// [snp]                        # see SnpSpec
/// vcpu_type = "EPYC-v4"
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
    /// Which QEMU boots it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub qemu: QemuSpec,
    /// How the firmware measures.
    #[serde(default, skip_serializing_if = "is_default")]
    pub firmware: FirmwareSpec,
    /// The devices on PCIe, in order; empty means those of the machine profile.
    #[serde(default, skip_serializing_if = "is_default")]
    pub devices: Vec<DeviceSpec>,
    /// The PCI host bridge.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pci: PciSpec,
    /// What firmware of layout B measures of SMBIOS and QEMU's tables do not hold.
    #[serde(default, skip_serializing_if = "is_default")]
    pub smbios: SmbiosSpec,
    /// How the TDX module makes the TD.
    #[serde(default, skip_serializing_if = "is_default")]
    pub td: TdSpec,
    /// What only SEV-SNP measures.
    #[serde(default, skip_serializing_if = "is_default")]
    pub snp: SnpSpec,
}

/// `[smbios]`. Needed for `layout = "b"` only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmbiosSpec {
    /// What the firmware was built to say about itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bios: Option<BiosInformation>,
    /// What CPUID leaf 1 says in the guest; with `-cpu host` that is the host's processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<ProcessorId>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Who measures and signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LaunchPlatform {
    /// The launcher plays the TDX module and the quoting enclave: for machines without TDX, proves nothing.
    Simulated,
    /// Intel TDX.
    Tdx,
    /// AMD SEV-SNP.
    Snp,
}

/// A fixed set of QEMU arguments. Anything that changes what a guest measures to is a new profile or a key of
/// the LaunchSpec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineProfile {
    /// q35 without default devices; on PCIe, in this order: the root disk (virtio-blk, read-only), the model
    /// disk (virtio-blk, read-only), vsock (virtio); one serial port; no network.
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

    /// The devices of the profile, in order.
    pub fn devices(self) -> Vec<DeviceSpec> {
        match self {
            Self::Q35V1 => [
                DeviceKind::VirtioBlk,
                DeviceKind::VirtioBlk,
                DeviceKind::VhostVsock,
            ]
            .map(DeviceSpec::new)
            .to_vec(),
        }
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
        source: io::Error,
    },
    /// Over 64 KiB.
    #[error("{} is longer than {SPEC_BYTES_MAX} bytes: this is no LaunchSpec", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// Not the TOML of [`LaunchSpec`].
    #[error("{} is not a LaunchSpec", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: toml::de::Error,
    },
    /// More devices than PCIe bus 0 has free slots.
    #[error("{} lists {found} devices, at most {DEVICES_MAX} fit on PCIe bus 0", path.display())]
    TooManyDevices {
        /// Which file.
        path: PathBuf,
        /// How many.
        found: usize,
    },
}

impl LaunchSpec {
    /// A machine with the defaults of every optional key.
    pub fn new(
        platform: LaunchPlatform,
        machine: MachineProfile,
        vcpus: Vcpus,
        memory_mib: MemoryMib,
    ) -> Self {
        Self {
            platform,
            machine,
            vcpus,
            memory_mib,
            qemu: QemuSpec::default(),
            firmware: FirmwareSpec::default(),
            devices: Vec::new(),
            pci: PciSpec::default(),
            smbios: SmbiosSpec::default(),
            td: TdSpec::default(),
            snp: SnpSpec::default(),
        }
    }

    /// The devices on PCIe, in order: the listed ones, or those of the profile.
    pub fn pcie_devices(&self) -> Vec<DeviceSpec> {
        if self.devices.is_empty() {
            self.machine.devices()
        } else {
            self.devices.clone()
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn load(path: &Path) -> Result<Self, SpecError> {
        let read = |source| SpecError::Read {
            path: path.to_owned(),
            source,
        };
        let mut text = String::new();
        File::open(path)
            .map_err(read)?
            .take(SPEC_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(read)?;
        let path = path.to_owned();
        if text.len() as u64 > SPEC_BYTES_MAX {
            return Err(SpecError::TooLarge { path });
        }
        let spec: Self = match toml::from_str(&text) {
            Ok(spec) => spec,
            Err(source) => return Err(SpecError::Malformed { path, source }),
        };
        match spec.devices.len() {
            0..=DEVICES_MAX => Ok(spec),
            found => Err(SpecError::TooManyDevices { path, found }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "platform = \"simulated\"\nmachine = \"q35-1\"\nvcpus = 2\nmemory_mib = 1024\n";

    const FULL: &str = r#"platform = "tdx"
machine = "q35-1"
vcpus = 4
memory_mib = 2097152

[qemu]
version = "10.1.2"
page_order = "two-pass"

[firmware]
layout = "b"
secure_boot = "on"
initrd_argument = "prefix"
named_kernel = true

[[devices]]
kind = "virtio-blk"

[[devices]]
kind = "vfio-gpu"

[pci]
hole64_gib = 1024

[td]
attributes = "0x0000000050000000"
xfam = "0x00000000000618e7"

[snp]
vcpu_type = "EPYC-v4"
guest_features = "0x21"
"#;

    #[test]
    fn reads_and_writes_the_same() {
        let spec: LaunchSpec = toml::from_str(TEXT).unwrap();
        assert_eq!(spec.vcpus.get(), 2);
        assert_eq!(spec.memory_mib.bytes(), 1 << 30);
        assert_eq!(toml::to_string(&spec).unwrap(), TEXT);
        assert_eq!(
            spec,
            LaunchSpec::new(spec.platform, spec.machine, spec.vcpus, spec.memory_mib)
        );
    }

    #[test]
    fn every_key_reads_and_writes_the_same() {
        let spec: LaunchSpec = toml::from_str(FULL).unwrap();
        assert_eq!(toml::to_string(&spec).unwrap(), FULL);
        assert_eq!(spec.memory_mib.bytes(), 2 << 40);
        assert_eq!(spec.pcie_devices(), spec.devices);
        assert_eq!(spec.devices[1].kind, DeviceKind::VfioGpu);
        assert_eq!(spec.snp.guest_features, GuestFeatures(0x21));
    }

    #[test]
    fn without_a_list_the_devices_are_those_of_the_profile() {
        let spec: LaunchSpec = toml::from_str(TEXT).unwrap();
        let kinds: Vec<_> = spec.pcie_devices().iter().map(|device| device.kind).collect();
        let (disk, vsock) = (DeviceKind::VirtioBlk, DeviceKind::VhostVsock);
        assert_eq!(kinds, [disk, disk, vsock]);
    }

    #[test]
    fn out_of_range_and_unknown_is_refused_by_name() {
        let check = |text: &str, from: &str, to: &str, says: &str| {
            let error = toml::from_str::<LaunchSpec>(&text.replacen(from, to, 1)).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        };
        check(
            TEXT,
            "vcpus = 2",
            "vcpus = 0",
            "vcpus is 0, but has to be 1 to 4096",
        );
        check(TEXT, "vcpus = 2", "vcpus = 4097", "vcpus is 4097");
        check(TEXT, "1024", "1023", "memory_mib is 1023");
        check(TEXT, "1024", "128", "memory_mib is 128");
        check(TEXT, "1024", "4294967295", "memory_mib is 4294967295");
        check(TEXT, "vcpus", "gpus", "unknown field `gpus`");
        check(TEXT, "simulated", "none", "unknown variant `none`");
        check(FULL, "page_order", "pages", "unknown field `pages`");
        check(FULL, "10.1.2", "7.2.0", "QEMU 7.2.0 is not supported");
        check(FULL, "\"b\"", "\"c\"", "unknown variant `c`");
        check(FULL, "\"on\"", "true", "secure_boot = true");
        check(FULL, "vfio-gpu", "floppy", "unknown variant `floppy`");
        check(FULL, "= 1024", "= 0", "hole64_gib");
        check(FULL, "hole64_gib", "hole", "unknown field `hole`");
        check(FULL, "618e7", "618", "is not 0x and 16 hexadecimal digits");
        check(FULL, "xfam", "xcr0", "unknown field `xcr0`");
        check(FULL, "0x21", "21", "is not 0x and 1 to 16 hexadecimal digits");
    }

    #[test]
    fn a_giant_file_and_a_giant_list_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("launch.toml");
        let load = |text: String| {
            std::fs::write(&path, text).unwrap();
            LaunchSpec::load(&path)
        };
        assert!(load(TEXT.to_owned()).is_ok());
        let giant = TEXT.to_owned() + &"#".repeat(SPEC_BYTES_MAX as usize);
        assert!(matches!(load(giant), Err(SpecError::TooLarge { .. })));
        let devices = TEXT.to_owned() + &"[[devices]]\nkind = \"virtio-blk\"\n".repeat(29);
        let error = load(devices).unwrap_err();
        assert!(
            matches!(error, SpecError::TooManyDevices { found: 29, .. }),
            "{error}"
        );
    }
}
