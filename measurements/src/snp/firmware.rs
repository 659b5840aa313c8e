//! What OVMF tells the host about itself: the table of GUIDed entries at its end, and the SEV metadata that one of
//! them points to. edk2 `OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm` and `X64/OvmfSevMetadata.asm`; QEMU
//! `hw/i386/pc_sysfw_ovmf.c` and `target/i386/sev.c` read it.
//!
//! The file may come from anybody: each offset is checked, and the pages that the sections ask for are bounded.

use super::{PAGE_BYTES, SnpVmm, kernel_hashes::TABLE_BYTES};
use crate::FIRMWARE_BYTES_MAX;

/// GUIDs in the order of their bytes.
const FOOTER: [u8; 16] = guid(0x96b5_82de_1fb2_45f7_baea_a366_c55a_082d);
const HASH_TABLE: [u8; 16] = guid(0x7255_371f_3a3b_4b04_927b_1da6_efa8_d454);
const RESET_BLOCK: [u8; 16] = guid(0x00f7_71de_1a7e_4fcb_890e_68c7_7e2f_b44e);
const METADATA: [u8; 16] = guid(0xdc88_6566_984a_4798_a75e_5585_a7bf_67cc);

/// The footer ends this far before the end of the file.
const FOOTER_END: usize = 32;
/// Length and GUID, at the end of an entry.
const ENTRY_HEADER: usize = 18;
/// `ASEV`, length, version, number of sections.
const METADATA_HEADER: usize = 16;
/// Address, length, kind.
const SECTION_BYTES: usize = 12;
const SECTIONS_MAX: u32 = 64;
/// All sections together; OVMF's have less than 100.
const PAGES_MAX: usize = 1 << 16;

/// Firmware that no SEV-SNP guest can start with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnpFirmwareError {
    /// Not whole pages, or absurdly long.
    #[error("{found} bytes, which is not a number of whole pages up to {FIRMWARE_BYTES_MAX} bytes")]
    Length {
        /// Bytes given.
        found: usize,
    },
    /// Not OVMF.
    #[error("offset {offset:#x}: no table of GUIDs ends here")]
    NoTable {
        /// Where the footer should be.
        offset: usize,
    },
    /// An entry that reaches out of its table.
    #[error("offset {offset:#x}: an entry of {found} bytes does not fit in the table")]
    Entry {
        /// Where its header is.
        offset: usize,
        /// Its length.
        found: usize,
    },
    /// An entry that SEV-SNP needs.
    #[error("the table has no {0}")]
    Missing(&'static str),
    /// An entry or the metadata with another content than it can have.
    #[error("{what}: {reason}")]
    Malformed {
        /// Which.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

/// What a section is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SectionKind {
    Memory,
    Secrets,
    Cpuid,
    CallingArea,
    KernelHashes,
}

/// Pages that the firmware wants before it starts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section {
    pub(super) kind: SectionKind,
    pub(super) gpa: u64,
    pub(super) pages: usize,
}

/// What the launch digest needs of a firmware.
#[derive(Debug)]
pub(super) struct SnpFirmware {
    sections: Vec<Section>,
    reset_eip: u32,
    /// Offset of the table of hashes in its page.
    hashes_at: Option<usize>,
}

impl SnpFirmware {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, SnpFirmwareError> {
        let whole_pages = bytes.len().is_multiple_of(PAGE_BYTES);
        if bytes.is_empty() || !whole_pages || bytes.len() > FIRMWARE_BYTES_MAX {
            return Err(SnpFirmwareError::Length { found: bytes.len() });
        }
        let table = Table::find(bytes)?;
        let reset_eip = table.u32(&RESET_BLOCK, "SEV-ES reset block")?;
        if reset_eip == 0 {
            return Err(malformed(
                "SEV-ES reset block",
                "the other processors have nowhere to start",
            ));
        }
        let from_end = table.u32(&METADATA, "SEV metadata")?;
        let sections = sections(bytes, from_end)?;
        let firmware = Self {
            hashes_at: hashes_at(&table, &sections)?,
            sections,
            reset_eip,
        };
        Ok(firmware)
    }

    /// In the order in which the hypervisor hands them over.
    pub(super) fn sections(&self, vmm: SnpVmm) -> impl Iterator<Item = &Section> {
        let is_last = move |section: &&Section| vmm == SnpVmm::Ec2 && section.kind == SectionKind::Cpuid;
        let first = self.sections.iter().filter(move |section| !is_last(section));
        first.chain(self.sections.iter().filter(is_last))
    }

    pub(super) fn has_kernel_hashes(&self) -> bool {
        self.hashes_at.is_some()
    }

    pub(super) fn hashes_at(&self) -> usize {
        self.hashes_at.unwrap_or(0)
    }

    pub(super) fn reset_eip(&self) -> u32 {
        self.reset_eip
    }
}

/// The entries before the footer, last one first.
struct Table<'a>(Vec<(&'a [u8], &'a [u8])>);

impl<'a> Table<'a> {
    fn find(bytes: &'a [u8]) -> Result<Self, SnpFirmwareError> {
        // At least a page, so that this cannot be negative.
        let footer = bytes.len() - FOOTER_END - ENTRY_HEADER;
        let no_table = SnpFirmwareError::NoTable { offset: footer };
        if bytes[footer + 2..footer + ENTRY_HEADER] != FOOTER {
            return Err(no_table);
        }
        let length = usize::from(u16::from_le_bytes([bytes[footer], bytes[footer + 1]]));
        let start = (footer + ENTRY_HEADER).checked_sub(length).ok_or(no_table)?;
        let mut entries = Vec::new();
        let mut end = footer;
        while end.saturating_sub(start) >= ENTRY_HEADER {
            let header = end - ENTRY_HEADER;
            let found = usize::from(u16::from_le_bytes([bytes[header], bytes[header + 1]]));
            let entry = end
                .checked_sub(found)
                .filter(|entry| *entry >= start && *entry <= header);
            let Some(entry) = entry else {
                return Err(SnpFirmwareError::Entry {
                    offset: header,
                    found,
                });
            };
            entries.push((&bytes[header + 2..end], &bytes[entry..header]));
            end = entry;
        }
        Ok(Self(entries))
    }

    fn get(&self, guid: &[u8; 16]) -> Option<&'a [u8]> {
        let entry = self.0.iter().find(|(found, _)| found == guid);
        entry.map(|(_, data)| *data)
    }

    fn u32(&self, guid: &[u8; 16], what: &'static str) -> Result<u32, SnpFirmwareError> {
        let data = self.get(guid).ok_or(SnpFirmwareError::Missing(what))?;
        let first = data.first_chunk().copied().map(u32::from_le_bytes);
        first.ok_or_else(|| malformed(what, format!("{} bytes", data.len())))
    }
}

fn sections(bytes: &[u8], from_end: u32) -> Result<Vec<Section>, SnpFirmwareError> {
    let what = "SEV metadata";
    let metadata = bytes
        .len()
        .checked_sub(from_end as usize)
        .and_then(|start| bytes.get(start..))
        .filter(|metadata| metadata.len() >= METADATA_HEADER)
        .ok_or_else(|| {
            malformed(
                what,
                format!("{from_end:#x} bytes before the end is outside of the file"),
            )
        })?;
    let word =
        |at: usize| u32::from_le_bytes([metadata[at], metadata[at + 1], metadata[at + 2], metadata[at + 3]]);
    let (length, version, count) = (word(4) as usize, word(8), word(12));
    if &metadata[..4] != b"ASEV" || version != 1 {
        return Err(malformed(what, "not version 1 of ASEV"));
    }
    let needed = METADATA_HEADER + SECTION_BYTES * count.min(SECTIONS_MAX) as usize;
    if count > SECTIONS_MAX || length < needed || metadata.len() < needed {
        return Err(malformed(what, format!("{count} sections in {length} bytes")));
    }
    let sections = metadata[METADATA_HEADER..needed]
        .chunks(SECTION_BYTES)
        .enumerate();
    let sections = sections.map(|(index, bytes)| section(index, bytes));
    let sections = sections.collect::<Result<Vec<_>, _>>()?;
    let pages = sections.iter().map(|section| section.pages).sum::<usize>();
    if pages > PAGES_MAX {
        return Err(malformed(what, format!("{pages} pages, more than {PAGES_MAX}")));
    }
    Ok(sections)
}

fn section(index: usize, bytes: &[u8]) -> Result<Section, SnpFirmwareError> {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (gpa, length, kind) = (word(0), word(4) as usize, word(8));
    let wrong = |reason: String| malformed("SEV metadata", format!("section {index}: {reason}"));
    let kind = match kind {
        1 => SectionKind::Memory,
        2 => SectionKind::Secrets,
        3 => SectionKind::Cpuid,
        4 => SectionKind::CallingArea,
        0x10 => SectionKind::KernelHashes,
        other => return Err(wrong(format!("kind {other:#x} is not known"))),
    };
    let aligned = (gpa as usize).is_multiple_of(PAGE_BYTES) && length.is_multiple_of(PAGE_BYTES);
    if !aligned || length == 0 {
        return Err(wrong(format!(
            "{length:#x} bytes at {gpa:#x} are not whole pages"
        )));
    }
    let pages = length / PAGE_BYTES;
    let is_one_page = matches!(
        kind,
        SectionKind::Secrets | SectionKind::Cpuid | SectionKind::KernelHashes
    );
    if is_one_page && pages != 1 {
        return Err(wrong(format!("{pages} pages, where there is one")));
    }
    Ok(Section {
        kind,
        gpa: gpa.into(),
        pages,
    })
}

/// Where in its page the firmware looks for the table of hashes: only if there is a section for that page.
fn hashes_at(table: &Table, sections: &[Section]) -> Result<Option<usize>, SnpFirmwareError> {
    let what = "kernel hash table";
    let mut pages = sections
        .iter()
        .filter(|section| section.kind == SectionKind::KernelHashes);
    let Some(page) = pages.next() else {
        return Ok(None);
    };
    if pages.next().is_some() {
        return Err(malformed(what, "two sections for it"));
    }
    let gpa = u64::from(table.u32(&HASH_TABLE, what)?);
    let at = gpa.checked_sub(page.gpa).and_then(|at| usize::try_from(at).ok());
    match at.filter(|at| at + TABLE_BYTES <= PAGE_BYTES) {
        Some(at) => Ok(Some(at)),
        None => Err(malformed(
            what,
            format!("{gpa:#x} is not in its page {:#x}", page.gpa),
        )),
    }
}

fn malformed(what: &'static str, reason: impl Into<String>) -> SnpFirmwareError {
    SnpFirmwareError::Malformed {
        what,
        reason: reason.into(),
    }
}

/// The first three groups of a GUID's digits are stored little-endian.
pub(super) const fn guid(digits: u128) -> [u8; 16] {
    let mut bytes = digits.to_be_bytes();
    let swaps = [(0, 3), (1, 2), (4, 5), (6, 7)];
    let mut index = 0;
    while index < swaps.len() {
        let (left, right) = swaps[index];
        let byte = bytes[left];
        bytes[left] = bytes[right];
        bytes[right] = byte;
        index += 1;
    }
    bytes
}
