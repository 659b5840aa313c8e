//! Predicts what a launch must measure to.

mod manifest;
mod spec;

pub use manifest::{
    Artifact, Artifacts, COMMAND_LINE_BYTES_MAX, FileEntry, FileMode, ImageProfile, MANIFEST_BYTES_MAX,
    Manifest, ManifestError, VerityTree,
};
pub use spec::{LaunchPlatform, LaunchSpec, MachineProfile, MemoryMib, RangeError, SpecError, Vcpus};
