//! Predicts what a launch must measure to.
//!
//! The auditor's side: a [`Manifest`] says what the image consists of, a [`LaunchSpec`] which machine boots it,
//! [`measure`] computes the registers event by event, and [`build_policy`] turns them into the policy that a
//! client verifies against. On the simulated platform the launcher calls the same [`measure`] over the bytes it
//! gives to QEMU.
//!
//! Nothing here is trusted by being read: manifests, firmware and kernels may come from anybody, are bounded,
//! and are compared by hash. The library does no I/O except loading manifests, specs and
//! artifacts, starting QEMU in [`acpi`], and asking Intel's services in [`collateral`].

pub mod acpi;
mod alignment;
mod authenticode;
pub mod collateral;
pub mod diff;
pub mod eventlog;
pub mod explain;
pub mod fields;
mod fw_cfg;
mod kernel_header;
mod manifest;
mod measure;
mod policy;
mod prediction;
pub mod replay;
pub mod snp;
mod spec;
mod tdvf;
mod variable_store;

pub use authenticode::{KERNEL_BYTES_MAX, KernelError};
pub use fw_cfg::{FW_CFG_ITEM_BYTES_MAX, FwCfgError, FwCfgFiles};
pub use kernel_header::KernelHeaderError;
pub use manifest::{
    Artifact, Artifacts, COMMAND_LINE_BYTES_MAX, Commit, DebianPackage, ExpectedLaunch, FileEntry, FileMode,
    ImageProfile, MANIFEST_BYTES_MAX, Manifest, ManifestError, Origin, RegisterName, VerityTree,
};
pub use measure::{
    INITRD_BYTES_MAX, ImageRegisters, Initrd, LaunchInputs, MeasureError, measure, measure_image,
};
pub use policy::{
    BuildPolicyError, LAUNCH_DOCUMENT_BYTES_MAX, MODEL_DEVICE, PolicyInputs, build_policy, model_event,
};
pub use prediction::{
    Alternative, FirmwareLayout, PredictedEvent, PredictedRegister, PredictedRegisters, Prediction,
};
pub use spec::{
    DeviceKind, DeviceSpec, EventLayout, FirmwareSpec, GuestFeatures, Hole64Gib, InitrdArgument,
    LaunchPlatform, LaunchSpec, MachineProfile, MemoryMib, PageOrder, ParseQemuVersionError, PciSpec,
    PredictedTd, QemuSpec, QemuVersion, RangeError, SIMULATED_TD_ATTRIBUTES, SIMULATED_XFAM, SecureBoot,
    SmbiosSpec, SnpSpec, SpecError, TD_ATTRIBUTES_DEFAULT, TdSource, TdSpec, TdSpecError, Vcpus, WindowGib,
};
pub use tdvf::{FIRMWARE_BYTES_MAX, Firmware, FirmwareError};
pub use variable_store::VariableStoreError;
