//! The launch digest of an SEV-SNP guest, page by page.
//!
//! The secure processor extends the digest by one record for each page that the host gives it before the guest
//! runs: AMD 56860, "SEV Secure Nested Paging Firmware ABI Specification", SNP_LAUNCH_UPDATE, table "PAGE_INFO
//! Structure". In QEMU's order these are the firmware, the sections that its metadata names (memory to validate,
//! secrets, CPUID table, the hashes of kernel, initrd and command line) and each processor's save area.
//!
//! `sev` makes the save areas, whose content depends on processor, hypervisor and features; its own launch digest
//! (`snp_calc_launch_digest`) is what the tests compare this one with. It is not called here because it reads
//! files, trims the command line that QEMU hashes as it is, gives no events, and panics on firmware whose metadata
//! points outside of it.

mod firmware;
mod kernel_hashes;

use cocoon_evidence::Digest48;
use serde::Serialize;
use sev::measurement::{
    vcpu_types::CpuType,
    vmsa::{GuestFeatures, VMMType, VMSA},
};
use sha2::{Digest as _, Sha384};

pub use firmware::SnpFirmwareError;

use firmware::{Section, SectionKind, SnpFirmware};
use kernel_hashes::KernelHashes;

const PAGE_BYTES: usize = 4096;

/// The digest's position of every save area: the highest page, as the processor's tables record it.
const SAVE_AREA_GPA: u64 = 0xffff_ffff_f000;

/// More processors than QEMU's q35 has.
pub const SNP_VCPUS_MAX: u32 = 4096;

/// What decides an SEV-SNP guest's launch digest.
#[derive(Debug, Clone, Copy)]
pub struct SnpLaunchInputs<'a> {
    /// The firmware, whole or by digest and tail.
    pub firmware: SnpFirmwareInput<'a>,
    /// What is booted directly (`-kernel` with `kernel-hashes=on`); without it the firmware boots by itself.
    pub kernel: Option<SnpKernel<'a>>,
    /// Virtual processors.
    pub vcpus: u32,
    /// QEMU's name of the processor, such as `EPYC-v4`.
    pub vcpu_type: &'a str,
    /// SEV_FEATURES that the hypervisor enables: `0x1` is SNP alone.
    pub guest_features: u64,
    /// Who makes the save areas.
    pub vmm: SnpVmm,
}

/// The firmware.
#[derive(Debug, Clone, Copy)]
pub enum SnpFirmwareInput<'a> {
    /// The whole file.
    Whole(&'a [u8]),
    /// Its last pages, which hold the metadata, and the launch digest after all of its pages.
    Tail {
        /// At least the last page.
        bytes: &'a [u8],
        /// As an auditor computed it from the whole file.
        digest: Digest48,
    },
}

/// What QEMU boots, as it hashes it: the files as they are, and the command line with its terminating zero.
#[derive(Debug, Clone, Copy)]
pub struct SnpKernel<'a> {
    /// The kernel.
    pub kernel: &'a [u8],
    /// The initrd; empty without one.
    pub initrd: &'a [u8],
    /// The command line, exactly as QEMU's `-append` gets it.
    pub command_line: &'a str,
}

/// A hypervisor, whose initial processor state is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnpVmm {
    /// QEMU with KVM.
    Qemu,
    /// Amazon's, which also measures the CPUID page last.
    Ec2,
}

/// A launch digest and what makes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnpDigest {
    /// MEASUREMENT of an attestation report.
    pub digest: Digest48,
    /// In order.
    pub steps: Vec<SnpStep>,
}

/// Pages of one kind, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnpStep {
    /// What the pages are.
    pub name: String,
    /// Their type: `normal`, `vmsa`, `zero`, `secrets` or `cpuid`.
    pub page_type: &'static str,
    /// Where the first one is.
    pub gpa: String,
    /// How many.
    pub pages: usize,
    /// The launch digest afterwards.
    pub value: Digest48,
}

/// Why there is no launch digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnpError {
    /// The firmware's metadata.
    #[error("firmware: {0}")]
    Firmware(#[from] SnpFirmwareError),
    /// A kernel to boot, but nowhere for the firmware to find its hash: anything could be booted.
    #[error(
        "the firmware has no place for the hashes of kernel, initrd and command line: it needs the AmdSev build"
    )]
    NoKernelHashes,
    /// A name that `sev` does not know.
    #[error("vcpu_type {0:?} is not a processor with SEV-SNP, such as EPYC-v4, EPYC-Milan or EPYC-Genoa")]
    VcpuType(String),
    /// Too many or none.
    #[error("{0} processors, where 1 to {SNP_VCPUS_MAX} are possible")]
    Vcpus(u32),
    /// Without this bit the guest is no SNP guest.
    #[error("guest_features {0:#x} leaves out bit 0, SNP itself")]
    GuestFeatures(u64),
    /// The command line would be cut at it.
    #[error("the command line has a zero byte at {0}")]
    CommandLine(usize),
    /// `sev` could not make a save area.
    #[error("save area: {0}")]
    SaveArea(String),
}

/// Computes the launch digest.
pub fn snp_launch_digest(inputs: &SnpLaunchInputs) -> Result<SnpDigest, SnpError> {
    let vcpu_type = check(inputs)?;
    let bytes = match inputs.firmware {
        SnpFirmwareInput::Whole(bytes) | SnpFirmwareInput::Tail { bytes, .. } => bytes,
    };
    let firmware = SnpFirmware::parse(bytes)?;
    let mut context = match inputs.firmware {
        SnpFirmwareInput::Whole(bytes) => {
            let mut context = Context::default();
            context.measure_firmware(bytes);
            context
        }
        SnpFirmwareInput::Tail { digest, .. } => Context {
            digest,
            steps: Vec::new(),
        },
    };
    let hashes = inputs.kernel.map(|kernel| KernelHashes::of(&kernel));
    if hashes.is_some() && !firmware.has_kernel_hashes() {
        return Err(SnpError::NoKernelHashes);
    }
    for section in firmware.sections(inputs.vmm) {
        context.measure_section(section, &firmware, hashes.as_ref());
    }
    context.measure_save_areas(inputs, vcpu_type, firmware.reset_eip())?;
    Ok(SnpDigest {
        digest: context.digest,
        steps: context.steps,
    })
}

fn check(inputs: &SnpLaunchInputs) -> Result<CpuType, SnpError> {
    if !(1..=SNP_VCPUS_MAX).contains(&inputs.vcpus) {
        return Err(SnpError::Vcpus(inputs.vcpus));
    }
    if inputs.guest_features & 1 == 0 {
        return Err(SnpError::GuestFeatures(inputs.guest_features));
    }
    let line = inputs.kernel.map_or("", |kernel| kernel.command_line);
    if let Some(at) = line.bytes().position(|byte| byte == 0) {
        return Err(SnpError::CommandLine(at));
    }
    CpuType::try_from(inputs.vcpu_type).map_err(|_| SnpError::VcpuType(inputs.vcpu_type.to_owned()))
}

/// PAGE_TYPE of SNP_LAUNCH_UPDATE.
#[derive(Debug, Clone, Copy)]
enum PageType {
    Normal = 1,
    Vmsa = 2,
    Zero = 3,
    Secrets = 5,
    Cpuid = 6,
}

impl PageType {
    fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Vmsa => "vmsa",
            Self::Zero => "zero",
            Self::Secrets => "secrets",
            Self::Cpuid => "cpuid",
        }
    }
}

/// The guest context, as far as the digest goes.
#[derive(Debug)]
struct Context {
    digest: Digest48,
    steps: Vec<SnpStep>,
}

impl Default for Context {
    fn default() -> Self {
        Self {
            digest: Digest48::ZERO,
            steps: Vec::new(),
        }
    }
}

impl Context {
    /// The whole image, ending at 4 GiB.
    fn measure_firmware(&mut self, bytes: &[u8]) {
        let start = (1 << 32) - bytes.len() as u64;
        for (page, gpa) in bytes.chunks(PAGE_BYTES).zip((start..).step_by(PAGE_BYTES)) {
            self.extend(PageType::Normal, gpa, &sha384(page));
        }
        self.step("firmware", PageType::Normal, start, bytes.len() / PAGE_BYTES);
    }

    fn measure_section(&mut self, section: &Section, firmware: &SnpFirmware, hashes: Option<&KernelHashes>) {
        let (page_type, name) = match (section.kind, hashes) {
            (SectionKind::Memory, _) => (PageType::Zero, "memory for the firmware"),
            (SectionKind::CallingArea, _) => (PageType::Zero, "calling area of an SVSM"),
            (SectionKind::Secrets, _) => (PageType::Secrets, "secrets"),
            (SectionKind::Cpuid, _) => (PageType::Cpuid, "CPUID table"),
            (SectionKind::KernelHashes, None) => (PageType::Zero, "no kernel hashes"),
            (SectionKind::KernelHashes, Some(hashes)) => {
                let page = hashes.page(firmware.hashes_at());
                self.extend(PageType::Normal, section.gpa, &sha384(&page));
                return self.step("kernel hashes", PageType::Normal, section.gpa, 1);
            }
        };
        // The content of pages that are zero, or that the secure processor fills, is not hashed.
        for gpa in (section.gpa..).step_by(PAGE_BYTES).take(section.pages) {
            self.extend(page_type, gpa, &Digest48::ZERO);
        }
        self.step(name, page_type, section.gpa, section.pages);
    }

    fn measure_save_areas(
        &mut self,
        inputs: &SnpLaunchInputs,
        vcpu_type: CpuType,
        reset_eip: u32,
    ) -> Result<(), SnpError> {
        let vmm = match inputs.vmm {
            SnpVmm::Qemu => VMMType::QEMU,
            SnpVmm::Ec2 => VMMType::EC2,
        };
        let features = GuestFeatures(inputs.guest_features);
        let save_areas = VMSA::new(
            reset_eip.into(),
            vcpu_type,
            vmm,
            Some(inputs.vcpus.into()),
            features,
        );
        // The first processor's, and one that stands for all others.
        let pages = save_areas
            .pages(inputs.vcpus.min(2) as usize)
            .map_err(|error| SnpError::SaveArea(error.to_string()))?;
        let counts = [1, inputs.vcpus as usize - 1];
        let names = [
            "save area of the first processor",
            "save areas of the other processors",
        ];
        for ((page, count), name) in pages.iter().zip(counts).zip(names) {
            let digest = sha384(page);
            for _ in 0..count {
                self.extend(PageType::Vmsa, SAVE_AREA_GPA, &digest);
            }
            self.step(name, PageType::Vmsa, SAVE_AREA_GPA, count);
        }
        Ok(())
    }

    /// PAGE_INFO: DIGEST_CUR, CONTENTS, LENGTH (0x70), PAGE_TYPE, IMI_PAGE and the permissions of VMPL3 to VMPL1
    /// (all zero), a reserved byte, GPA.
    fn extend(&mut self, page_type: PageType, gpa: u64, contents: &Digest48) {
        let mut hash = Sha384::new();
        hash.update(self.digest.as_bytes());
        hash.update(contents.as_bytes());
        hash.update([0x70, 0, page_type as u8, 0, 0, 0, 0, 0]);
        hash.update(gpa.to_le_bytes());
        self.digest = Digest48(hash.finalize().into());
    }

    fn step(&mut self, name: &str, page_type: PageType, gpa: u64, pages: usize) {
        self.steps.push(SnpStep {
            name: name.to_owned(),
            page_type: page_type.name(),
            gpa: format!("{gpa:#x}"),
            pages,
            value: self.digest,
        });
    }
}

fn sha384(bytes: &[u8]) -> Digest48 {
    Digest48::of(bytes)
}
