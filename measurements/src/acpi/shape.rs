//! A machine as far as QEMU's tables depend on it. Two LaunchSpecs with the same shape have the same tables;
//! `docs/ACPI.md` lists what is in it and what is not, and `tests/acpi_shapes.rs` holds that list.

use std::path::Path;

use cocoon_evidence::Digest32;
use serde::{Deserialize, Serialize};

use super::{
    FIRMWARE_STAND_IN, KERNEL_STAND_IN,
    window::{EDK2_CONFIG_WINDOW_MIB, EDK2_WINDOW_GIB, classic_window_gib},
};
use crate::{DeviceKind, EventLayout, LaunchPlatform, LaunchSpec, MachineProfile};

/// What decides QEMU's tables, with all defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineShape {
    /// QEMU's machine type.
    pub machine: MachineType,
    /// Virtual processors, in one socket.
    pub vcpus: u32,
    /// Memory.
    pub memory_mib: u32,
    /// System management mode: the SMI port in FADT.
    pub smm: bool,
    /// The two 8259 interrupt controllers: a flag in MADT.
    pub pic: bool,
    /// The table HPET.
    pub hpet: bool,
    /// One ISA serial port, in DSDT.
    pub serial: bool,
    /// What sits on PCIe bus 0 from slot 1 on.
    pub slots: Vec<Slot>,
    /// The length of the window for 64-bit PCI memory (`q35-pcihost.pci-hole64-size`).
    pub hole64_gib: u32,
    /// Where the firmware lets that window begin.
    pub window_gib: u32,
    /// Where the firmware puts PCIe's configuration space (PCIEXBAR), in MiB.
    pub config_window_mib: u32,
}

/// QEMU's machine type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineType {
    /// The newest q35 of the QEMU that starts it.
    Q35,
}

/// What is in a slot. All endpoints look alike in the tables: no table names a device, its class or its memory.
/// VGA cards and bridges are the exceptions, and neither is an endpoint here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slot {
    /// A device.
    Endpoint,
    /// A root port with a device behind it.
    RootPort,
}

/// Why a machine has no shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// The tables would depend on where the firmware puts each GPU's memory.
    #[error(
        "a vfio-gpu needs `hole64_gib` in [pci]: without it the ACPI tables depend on the length and the place of \
         every GPU's memory, which nobody can predict"
    )]
    HoleNotStated,
    /// SNP measures no tables.
    #[error("platform = \"snp\" measures no ACPI tables: there is nothing to generate")]
    NotMeasured,
}

/// Q35_PCI_HOST_HOLE64_SIZE_DEFAULT.
const QEMU_HOLE64_GIB: u32 = 32;

impl MachineShape {
    /// The shape of the machine that the launcher starts for `spec`.
    ///
    /// # Errors
    /// See [`ShapeError`].
    pub fn of(spec: &LaunchSpec) -> Result<Self, ShapeError> {
        let MachineProfile::Q35V1 = spec.machine;
        // As `machine_options` says, and QEMU's own defaults where it says nothing.
        let bare = match spec.platform {
            LaunchPlatform::Tdx => true,
            LaunchPlatform::Simulated => false,
            LaunchPlatform::Snp => return Err(ShapeError::NotMeasured),
        };
        let slots = slots(spec);
        if slots.contains(&Slot::RootPort) && spec.pci.hole64_gib.is_none() {
            return Err(ShapeError::HoleNotStated);
        }
        Ok(Self {
            machine: MachineType::Q35,
            vcpus: spec.vcpus.get(),
            memory_mib: spec.memory_mib.get(),
            smm: !bare,
            pic: !bare,
            hpet: !bare,
            // The launcher gives each machine one, whether the image writes to it or not.
            serial: true,
            slots,
            hole64_gib: spec.pci.hole64_gib.map_or(QEMU_HOLE64_GIB, |hole| hole.get()),
            window_gib: window_gib(spec),
            config_window_mib: EDK2_CONFIG_WINDOW_MIB,
        })
    }

    /// QEMU's arguments for the machine with nothing behind its devices. `stand_ins` holds a firmware and a
    /// kernel that never run.
    pub(super) fn arguments(&self, stand_ins: &Path) -> Vec<String> {
        let flag = |on: bool| if on { "on" } else { "off" };
        let MachineType::Q35 = self.machine;
        let machine = format!(
            "q35,accel=tcg,memory-backend=mem0,smm={},pic={},hpet={}",
            flag(self.smm),
            flag(self.pic),
            flag(self.hpet)
        );
        // The memory is never touched, so that a machine of 2 TiB starts anywhere.
        let memory = format!("memory-backend-ram,id=mem0,size={}M,reserve=off", self.memory_mib);
        let hole = format!("q35-pcihost.pci-hole64-size={}G", self.hole64_gib);
        let file = |name: &str| stand_ins.join(name).display().to_string();
        let mut arguments: Vec<String> = [
            ["-machine", &machine],
            ["-cpu", STAND_IN_CPU],
            ["-smp", &self.vcpus.to_string()],
            ["-m", &format!("{}M", self.memory_mib)],
            ["-object", &memory],
            ["-global", &hole],
            ["-display", "none"],
            ["-bios", &file(FIRMWARE_STAND_IN)],
            ["-kernel", &file(KERNEL_STAND_IN)],
            ["-serial", if self.serial { "null" } else { "none" }],
        ]
        .into_iter()
        .flatten()
        .map(str::to_owned)
        .collect();
        arguments.extend(["-nodefaults", "-no-user-config", NEVER_RUN].map(str::to_owned));
        for (index, slot) in self.slots.iter().enumerate() {
            arguments.extend(slot.arguments(index));
        }
        arguments
    }

    /// SHA-256 of the shape's JSON: what a cache is keyed by.
    pub fn digest(&self) -> Digest32 {
        let json = serde_json::to_vec(self).expect("numbers, flags and names are JSON");
        Digest32::of(&json)
    }
}

/// What the launcher says after `-machine q35`, so that what is launched is what was predicted: QEMU's defaults
/// for these depend on the accelerator and on the host's KVM.
pub fn machine_options(platform: LaunchPlatform) -> &'static str {
    match platform {
        LaunchPlatform::Tdx => ",smm=off,pic=off,hpet=off",
        LaunchPlatform::Simulated | LaunchPlatform::Snp => "",
    }
}

/// No ACPI table depends on the processor's model, but QEMU checks the memory's size against its address bits,
/// and moves memory of an AMD machine with 1 TiB or more to make room for AMD's own reserved range.
const STAND_IN_CPU: &str = "qemu64,vendor=GenuineIntel,phys-bits=52";

/// The processors stay stopped: what firmware does is done over qtest.
pub(super) const NEVER_RUN: &str = "-S";

impl Slot {
    fn arguments(self, index: usize) -> Vec<String> {
        let device = match self {
            // A virtio device has one 64-bit region, whatever it does.
            Self::Endpoint => return vec!["-device".to_owned(), "virtio-rng-pci".to_owned()],
            Self::RootPort => format!("pcie-root-port,id=port{index},chassis={index},slot={index}"),
        };
        let behind = format!("pci-testdev,bus=port{index}");
        ["-device", &device, "-device", &behind]
            .map(str::to_owned)
            .to_vec()
    }
}

fn slots(spec: &LaunchSpec) -> Vec<Slot> {
    let slot = |kind| match kind {
        DeviceKind::VirtioBlk | DeviceKind::VirtioNet | DeviceKind::VhostVsock => Slot::Endpoint,
        DeviceKind::VfioGpu => Slot::RootPort,
    };
    let devices = spec.pcie_devices();
    devices.iter().map(|device| slot(device.kind)).collect()
}

fn window_gib(spec: &LaunchSpec) -> u32 {
    match (spec.pci.window_gib, spec.firmware.layout) {
        (Some(stated), _) => stated.get(),
        // These firmwares are older than edk2-stable202211.
        (None, EventLayout::A0 | EventLayout::A1) => classic_window_gib(spec.memory_mib.get()),
        (None, EventLayout::A2 | EventLayout::B) => EDK2_WINDOW_GIB,
    }
}
