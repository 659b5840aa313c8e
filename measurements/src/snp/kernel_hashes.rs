//! The page in which QEMU tells the firmware what it may boot: QEMU `target/i386/sev.c`
//! (`sev_add_kernel_loader_hashes`), edk2 `OvmfPkg/AmdSev/BlobVerifierLibSevHashes`.

use cocoon_evidence::Digest32;

use super::{PAGE_BYTES, SnpKernel, firmware::guid};

const TABLE: [u8; 16] = guid(0x9438_d606_4f22_4cc9_b479_a793_d411_fd21);
const COMMAND_LINE: [u8; 16] = guid(0x97d0_2dd8_bd20_4c94_aa78_e771_4d36_ab2a);
const INITRD: [u8; 16] = guid(0x44ba_f731_3a2f_4bd7_9af1_41e2_9169_781d);
const KERNEL: [u8; 16] = guid(0x4de7_9437_abd2_427f_b835_d5b1_72d2_045b);

/// GUID, length, SHA-256.
const ENTRY_BYTES: u16 = 16 + 2 + 32;
/// GUID, length, three entries.
pub(super) const TABLE_BYTES: usize = 16 + 2 + 3 * ENTRY_BYTES as usize;

/// SHA-256 of what is booted.
#[derive(Debug)]
pub(super) struct KernelHashes {
    command_line: Digest32,
    initrd: Digest32,
    kernel: Digest32,
}

impl KernelHashes {
    pub(super) fn of(kernel: &SnpKernel) -> Self {
        Self {
            command_line: Digest32::of_parts([kernel.command_line.as_bytes(), &[0]]),
            initrd: Digest32::of(kernel.initrd),
            kernel: Digest32::of(kernel.kernel),
        }
    }

    /// The page with the table at `offset`, for which the firmware's parser made sure that there is room.
    pub(super) fn page(&self, offset: usize) -> Vec<u8> {
        let mut page = vec![0; offset];
        page.extend(TABLE);
        page.extend((TABLE_BYTES as u16).to_le_bytes());
        let entries = [
            (COMMAND_LINE, self.command_line),
            (INITRD, self.initrd),
            (KERNEL, self.kernel),
        ];
        for (guid, digest) in entries {
            page.extend(guid);
            page.extend(ENTRY_BYTES.to_le_bytes());
            page.extend(digest.as_bytes());
        }
        page.resize(PAGE_BYTES, 0);
        page
    }
}
