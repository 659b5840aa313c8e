//! From the bytes that QEMU is given to the registers that they make.
//!
//! The predictor calls [`measure`] over the artifacts of a manifest; on the simulated platform the launcher
//! calls it over the very files it hands to QEMU, so that a changed kernel, command line or firmware changes
//! the simulated registers. It does no I/O.
//!
//! # What is covered
//! | register | `platform = "tdx"` | `platform = "simulated"` |
//! |---|---|---|
//! | MRTD | the sections of the firmware's TDVF metadata, added and measured page by page, in one pass or two | one pass; firmware without metadata is measured whole ([`crate::FirmwareLayout`]) |
//! | RTMR0 | all events of the layouts a0, a1, a2 and b, over QEMU's own tables | TD hand-off block, configuration volume, and a made-up event for the machine |
//! | RTMR1 | the kernel as firmware gets it from this QEMU, and the actions around it | the same, over the kernel's file as it is |
//! | RTMR2 | command line and initrd, as the kernel's EFI stub measures them | the same |
//!
//! Where nobody can know a value, [`measure`] refuses and says what would make it known: a wrong prediction is
//! worse than none.

mod boot_variables;
mod command_line;
mod configuration;
mod kernel;
mod secure_boot;
mod simulated;

use cocoon_evidence::Digest48;

use crate::{
    COMMAND_LINE_BYTES_MAX, DeviceKind, Firmware, FirmwareError, FwCfgFiles, KernelError, KernelHeaderError,
    LaunchPlatform, LaunchSpec, PageOrder, Prediction, VariableStoreError,
    prediction::{Alternative, FirmwareLayout, PredictedEvent, PredictedRegister, PredictedRegisters},
    tdvf::MeasuredSection,
};

/// What decides the registers of a launch.
#[derive(Debug, Clone, Copy)]
pub struct LaunchInputs<'a> {
    /// The whole firmware file.
    pub firmware: &'a [u8],
    /// The whole kernel file.
    pub kernel: &'a [u8],
    /// The initrd; Cocoon's own images have none.
    pub initrd: Option<Initrd>,
    /// The kernel command line, as QEMU's `-append` gets it.
    pub command_line: &'a str,
    /// The machine.
    pub spec: &'a LaunchSpec,
    /// What QEMU hands the firmware; only TDX needs it.
    pub tables: Option<&'a FwCfgFiles>,
    /// SHA-384 of the SMBIOS structures that the firmware measures; only layout b needs it.
    pub smbios: Option<Digest48>,
}

/// An initrd, of which only length and digest matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    /// Its length.
    pub bytes: u64,
    /// SHA-384 of the file.
    pub digest: Digest48,
}

impl Initrd {
    /// Of a whole file.
    pub fn of(file: &[u8]) -> Self {
        Self {
            bytes: file.len() as u64,
            digest: Digest48::of(file),
        }
    }
}

/// A longer initrd is not read: below 4 GiB a kernel has little more room for one.
pub const INITRD_BYTES_MAX: usize = 2 << 30;

/// Why a launch cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// The firmware file.
    #[error("cannot measure the firmware")]
    Firmware(#[from] FirmwareError),
    /// The firmware's variables.
    #[error("cannot read the Secure Boot keys of the firmware")]
    Variables(#[from] VariableStoreError),
    /// The kernel file.
    #[error("cannot measure the kernel")]
    Kernel(#[from] KernelError),
    /// What QEMU makes of the kernel file.
    #[error("QEMU would not boot this kernel")]
    KernelHeader(#[from] KernelHeaderError),
    /// The kernel would cut it off, or firmware would turn it into something else.
    #[error(
        "the command line has {bytes} bytes; it has to be printable ASCII of at most \
         {COMMAND_LINE_BYTES_MAX} bytes"
    )]
    CommandLine {
        /// Its length.
        bytes: usize,
    },
    /// A value that does not follow from what was given.
    #[error("{register} cannot be predicted: {reason}; {remedy}")]
    Unpredictable {
        /// Which register.
        register: &'static str,
        /// What is missing.
        reason: String,
        /// What to do about it.
        remedy: &'static str,
    },
}

impl MeasureError {
    fn unpredictable(register: &'static str, reason: impl Into<String>, remedy: &'static str) -> Self {
        Self::Unpredictable {
            register,
            reason: reason.into(),
            remedy,
        }
    }
}

/// Computes what a launch measures to.
///
/// # Errors
/// See [`MeasureError`].
pub fn measure(inputs: LaunchInputs<'_>) -> Result<Prediction, MeasureError> {
    check_command_line(inputs.command_line)?;
    let firmware = Firmware::parse(inputs.firmware)?;
    let (firmware_layout, registers) = match inputs.spec.platform {
        LaunchPlatform::Simulated => simulated::registers(&firmware, &inputs)?,
        LaunchPlatform::Tdx => (FirmwareLayout::TdvfMetadata, tdx_registers(&firmware, &inputs)?),
        LaunchPlatform::Snp => {
            return Err(MeasureError::unpredictable(
                "the SNP launch digest",
                "SEV-SNP has no TDX registers",
                "predict the launch digest instead",
            ));
        }
    };
    Ok(Prediction {
        platform: inputs.spec.platform,
        firmware_layout,
        registers,
    })
}

/// What of a TDX launch follows from the image and the LaunchSpec, without QEMU's tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRegisters {
    /// Firmware.
    pub mrtd: PredictedRegister,
    /// The kernel.
    pub rtmr1: PredictedRegister,
    /// The command line.
    pub rtmr2: PredictedRegister,
}

/// Computes the registers of a TDX launch for which no tables are needed: all but RTMR0, as [`measure`] does.
///
/// # Errors
/// See [`MeasureError`].
pub fn measure_image(inputs: LaunchInputs<'_>) -> Result<ImageRegisters, MeasureError> {
    check_command_line(inputs.command_line)?;
    image_registers(&Firmware::parse(inputs.firmware)?, &inputs)
}

fn image_registers(
    firmware: &Firmware<'_>,
    inputs: &LaunchInputs<'_>,
) -> Result<ImageRegisters, MeasureError> {
    if !firmware.has_metadata() {
        return Err(MeasureError::unpredictable(
            "MRTD",
            "the firmware has no TDVF metadata, so it boots on no TDX machine",
            "use a build of edk2's OvmfPkg/IntelTdx or OvmfPkgX64",
        ));
    }
    Ok(ImageRegisters {
        mrtd: mrtd(firmware, inputs.spec.qemu.page_order),
        rtmr1: kernel::rtmr1(inputs)?,
        rtmr2: command_line::rtmr2(inputs),
    })
}

fn tdx_registers(
    firmware: &Firmware<'_>,
    inputs: &LaunchInputs<'_>,
) -> Result<PredictedRegisters, MeasureError> {
    let ImageRegisters { mrtd, rtmr1, rtmr2 } = image_registers(firmware, inputs)?;
    check_devices(inputs.spec)?;
    Ok(PredictedRegisters {
        mrtd,
        rtmr0: configuration::rtmr0(firmware, inputs)?,
        rtmr1,
        rtmr2,
    })
}

fn check_command_line(line: &str) -> Result<(), MeasureError> {
    if line.len() > COMMAND_LINE_BYTES_MAX || line.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
        return Err(MeasureError::CommandLine { bytes: line.len() });
    }
    Ok(())
}

/// The 64-bit window that ACPI names follows from where the firmware puts a GPU's memory, unless it is stated.
fn check_devices(spec: &LaunchSpec) -> Result<(), MeasureError> {
    let devices = spec.pcie_devices();
    let gpu = devices.iter().any(|device| device.kind == DeviceKind::VfioGpu);
    if gpu && spec.pci.hole64_gib.is_none() {
        return Err(MeasureError::unpredictable(
            "RTMR0",
            "with a passed-through GPU and no stated PCI window, the ACPI tables depend on where the firmware \
             puts the GPU's memory",
            "state hole64_gib in [pci], at least twice the memory of all GPUs",
        ));
    }
    Ok(())
}

/// The orders that the LaunchSpec leaves open, each with its value.
fn mrtd(firmware: &Firmware<'_>, pinned: Option<PageOrder>) -> PredictedRegister {
    let contents = firmware.section_contents();
    let orders = PageOrder::ALL
        .into_iter()
        .filter(|order| pinned.is_none_or(|pinned| pinned == *order));
    PredictedRegister::of(orders.map(|order| {
        let when = match order {
            PageOrder::SinglePass => "each page is measured as it is added: QEMU 9 and later, upstream KVM",
            PageOrder::TwoPass => "a section's pages are added, then measured: QEMU 8, early KVM patches",
        };
        let sections = firmware.measured_sections(order, &contents);
        Alternative::new(order.name(), when, sections.iter().map(section_event).collect())
    }))
}

fn section_event(section: &MeasuredSection) -> PredictedEvent {
    let MeasuredSection {
        kind,
        gpa,
        pages_added,
        pages_measured,
        content,
        value,
    } = *section;
    PredictedEvent {
        type_name: kind,
        type_number: None,
        name: format!("at {gpa:#x}: {pages_added} pages added, {pages_measured} measured"),
        digest: content,
        value,
    }
}

#[cfg(test)]
pub(crate) mod tests;
