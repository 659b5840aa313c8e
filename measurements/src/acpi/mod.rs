//! QEMU's ACPI and SMBIOS tables without TDX: a stock QEMU builds the machine, emulated and never run, and this
//! module does over qtest what firmware does before it reads them.
//!
//! RTMR0 holds the digests of tables that QEMU makes. They are taken from a QEMU of the auditor's choice, or from
//! a [`TablesFile`] that somebody published and the auditor can make again; never from a guest's own report,
//! which would let a host choose the tables and have them expected.
//!
//! [`MachineShape`] is what the tables depend on, [`generate`] makes them, [`TableCache`] keeps them.
//! `docs/ACPI.md` says what was checked against tables that real firmware measured, and what could not be.

mod build;
mod cache;
mod fw_cfg;
mod pci;
mod qtest;
mod shape;
mod smbios;
mod tables_file;
mod window;

#[cfg(test)]
mod real_firmware;

use std::{io, path::Path, time::Duration};

pub use build::{QemuBuild, QemuBuildError};
pub use cache::{CacheError, Freshness, TableCache};
pub use fw_cfg::ReadMethod;
pub use qtest::QtestError;
pub use shape::{MachineShape, MachineType, ShapeError, Slot, machine_options};
pub use smbios::{BiosInformation, ProcessorId, SmbiosError, SmbiosInputs, measured_smbios};
pub use tables_file::{FindError, MachineTables, TABLES_FILE_BYTES_MAX, TablesFile, TablesFileError};
pub use window::{EDK2_CONFIG_WINDOW_MIB, EDK2_WINDOW_GIB, classic_window_gib, dynamic_window_gib};

use crate::{FwCfgError, FwCfgFiles};

/// The files of fw_cfg that some generation of edk2 measures in a TDX guest, and SMBIOS's anchor, which says
/// which version the tables have. A machine has those of them that its configuration makes.
pub const MEASURED_FILES: [&str; 10] = [
    FwCfgFiles::TABLE_LOADER,
    FwCfgFiles::ACPI_RSDP,
    FwCfgFiles::ACPI_TABLES,
    FwCfgFiles::SMBIOS_TABLES,
    SMBIOS_ANCHOR,
    "etc/extra-pci-roots",
    "etc/boot-menu-wait",
    "etc/reserved-memory-end",
    "opt/ovmf/X-PciMmio64Mb",
    "bootorder",
];

/// SMBIOS's entry point.
pub const SMBIOS_ANCHOR: &str = "etc/smbios/smbios-anchor";

/// Without these no machine boots.
const REQUIRED_FILES: [&str; 3] = [
    FwCfgFiles::TABLE_LOADER,
    FwCfgFiles::ACPI_RSDP,
    FwCfgFiles::ACPI_TABLES,
];

/// Why QEMU gave no tables.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// QEMU did not start, ended or does not speak qtest.
    #[error("cannot drive QEMU")]
    Qtest(#[from] QtestError),
    /// The device that holds the tables.
    #[error("QEMU's fw_cfg device cannot be read: {0}")]
    FwCfg(&'static str),
    /// The machine's devices.
    #[error("PCI of the machine cannot be set up: {0}")]
    Pci(&'static str),
    /// A file that every machine has.
    #[error("QEMU has no {0}: is it a q35 machine of QEMU 7.2 or later?")]
    Missing(&'static str),
    /// An item that cannot be kept.
    #[error("QEMU has an item that cannot be kept")]
    Item(#[from] FwCfgError),
    /// The file system refused the stand-ins for firmware and kernel.
    #[error("cannot write temporary files")]
    Temporary(#[source] io::Error),
}

/// Starts `qemu` with the machine of `shape`, sets it up as firmware does, and reads [`MEASURED_FILES`]. QEMU has
/// ended when this returns, at the latest after `limit`.
///
/// # Errors
/// See [`GenerateError`].
pub fn generate(
    qemu: &Path,
    shape: &MachineShape,
    method: ReadMethod,
    limit: Duration,
) -> Result<FwCfgFiles, GenerateError> {
    let folder = stand_ins().map_err(GenerateError::Temporary)?;
    let mut qtest = qtest::Qtest::start(qemu, &shape.arguments(folder.path()), limit)?;
    pci::set_up_chipset(&mut qtest, shape.config_window_mib)?;
    pci::assign_memory(&mut qtest, u64::from(shape.window_gib) << 30)?;
    read_files(&mut qtest, method)
}

fn read_files(qtest: &mut qtest::Qtest, method: ReadMethod) -> Result<FwCfgFiles, GenerateError> {
    let mut device = fw_cfg::FwCfg::open(qtest, method)?;
    let mut files = FwCfgFiles::default();
    for entry in device.directory()? {
        if MEASURED_FILES.contains(&entry.name.as_str()) {
            let bytes = device.read(entry.key, entry.bytes)?;
            files.insert(entry.name, bytes)?;
        }
    }
    files.insert(FwCfgFiles::BOOT_MENU, device.read(fw_cfg::KEY_BOOT_MENU, 2)?)?;
    match REQUIRED_FILES.into_iter().find(|name| files.get(name).is_none()) {
        Some(name) => Err(GenerateError::Missing(name)),
        None => Ok(files),
    }
}

const FIRMWARE_STAND_IN: &str = "firmware";
const KERNEL_STAND_IN: &str = "kernel";

/// QEMU wants a firmware, and makes a boot order because there is a kernel. Neither runs, and no table depends
/// on what is in them.
fn stand_ins() -> io::Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join(FIRMWARE_STAND_IN), vec![0; 64 * 1024])?;
    std::fs::write(folder.path().join(KERNEL_STAND_IN), kernel_stand_in())?;
    Ok(folder)
}

/// Linux, `Documentation/arch/x86/boot.rst`: one setup sector, a magic number, protocol 2.15, loaded high.
fn kernel_stand_in() -> Vec<u8> {
    let mut image = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    image
}
