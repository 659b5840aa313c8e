//! The table of sections in the firmware file, and what no loader would accept of it.

use super::{FOUR_GIB, FirmwareError, PAGE_BYTES};

const SECTIONS_MAX: u32 = 32;
/// All sections together; edk2's have 2.1 MiB.
const SECTION_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What a section is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SectionKind {
    /// Boot firmware volume: the code.
    Bfv,
    /// Configuration firmware volume: the UEFI variables.
    Cfv,
    /// Where the host writes the TD hand-off block.
    TdHob,
    /// Memory that exists from the start.
    TempMem,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Section<'a> {
    pub(super) kind: SectionKind,
    pub(super) gpa: u64,
    pub(super) bytes: u64,
    /// As long as `bytes`, or empty: then the memory is zero.
    pub(super) content: &'a [u8],
    pub(super) extend: bool,
    /// Added later by the guest (TDH.MEM.PAGE.AUG), so not part of MRTD.
    pub(super) augmented: bool,
}

impl SectionKind {
    /// The design guide's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bfv => "BFV",
            Self::Cfv => "CFV",
            Self::TdHob => "TD_HOB",
            Self::TempMem => "TEMP_MEM",
        }
    }
}

impl Section<'_> {
    pub(super) fn end(&self) -> u64 {
        self.gpa + self.bytes
    }
}

pub(super) fn whole_image(bytes: &[u8]) -> Section<'_> {
    Section {
        kind: SectionKind::Bfv,
        gpa: FOUR_GIB - bytes.len() as u64,
        bytes: bytes.len() as u64,
        content: bytes,
        extend: true,
        augmented: false,
    }
}

/// 96b582de-1fb2-45f7-baea-a366c55a082d, little endian: the footer of OVMF's table of GUIDed entries, which
/// ends 32 bytes before the end of the image.
pub(super) const TABLE_FOOTER: [u8; 16] = [
    0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d,
];
/// e47a6535-984a-4798-865e-4685a7bf8ec2: its entry holds the descriptor's distance from the image's end.
pub(super) const METADATA_OFFSET: [u8; 16] = [
    0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2,
];
pub(super) const TABLE_END_DISTANCE: usize = 32;
/// A u16 length, then a GUID; the entry's data lies before them.
pub(super) const ENTRY_TAIL_BYTES: usize = 18;

/// The descriptor's offset in the image; `None` without a table or without the entry.
pub(super) fn find_descriptor(bytes: &[u8]) -> Result<Option<usize>, FirmwareError> {
    let damaged = FirmwareError::Metadata;
    let Some(table_end) = bytes.len().checked_sub(TABLE_END_DISTANCE) else {
        return Ok(None);
    };
    let Some((total, guid)) = entry_tail(&bytes[..table_end]) else {
        return Ok(None);
    };
    if guid != TABLE_FOOTER {
        return Ok(None);
    }
    let entries = total
        .checked_sub(ENTRY_TAIL_BYTES)
        .ok_or(damaged("the table is shorter than its footer"))?;
    let entries_end = table_end - ENTRY_TAIL_BYTES;
    let entries_start = entries_end
        .checked_sub(entries)
        .ok_or(damaged("the table is longer than the image"))?;

    let mut rest = &bytes[entries_start..entries_end];
    while let Some((length, guid)) = entry_tail(rest) {
        let start = rest
            .len()
            .checked_sub(length.max(ENTRY_TAIL_BYTES))
            .ok_or(damaged("an entry is longer than the table"))?;
        if guid == METADATA_OFFSET {
            let data = &rest[start..rest.len() - ENTRY_TAIL_BYTES];
            let distance = read_u32(data, 0).ok_or(damaged("the offset's entry is too short"))?;
            let offset = usize::try_from(distance)
                .ok()
                .and_then(|distance| bytes.len().checked_sub(distance));
            return offset
                .map(Some)
                .ok_or(damaged("the offset lies outside the image"));
        }
        rest = &rest[..start];
    }
    Ok(None)
}

fn entry_tail(bytes: &[u8]) -> Option<(usize, [u8; 16])> {
    let (_, tail) = bytes.split_at_checked(bytes.len().checked_sub(ENTRY_TAIL_BYTES)?)?;
    let (length, guid) = tail.split_first_chunk::<2>()?;
    Some((usize::from(u16::from_le_bytes(*length)), guid.try_into().ok()?))
}

const DESCRIPTOR_HEAD_BYTES: usize = 16;
const SECTION_BYTES: usize = 32;

pub(super) fn read_sections(bytes: &[u8], descriptor: usize) -> Result<Vec<Section<'_>>, FirmwareError> {
    let damaged = FirmwareError::Metadata;
    let head = bytes
        .get(descriptor..)
        .and_then(|rest| rest.first_chunk::<DESCRIPTOR_HEAD_BYTES>())
        .ok_or(damaged("the descriptor is cut off"))?;
    if head[..4] != *b"TDVF" {
        return Err(damaged("the descriptor has no signature"));
    }
    if read_u32(head, 8) != Some(1) {
        return Err(damaged("the descriptor's version is not 1"));
    }
    let count = read_u32(head, 12)
        .filter(|count| (1..=SECTIONS_MAX).contains(count))
        .ok_or(damaged("the descriptor has no section or more than 32"))? as usize;
    let table = descriptor + DESCRIPTOR_HEAD_BYTES;
    let entries = bytes
        .get(table..table + count * SECTION_BYTES)
        .ok_or(damaged("the section table is cut off"))?;
    let sections = entries
        .chunks_exact(SECTION_BYTES)
        .enumerate()
        .map(|(index, entry)| {
            read_section(bytes, entry).map_err(|problem| FirmwareError::Section { index, problem })
        })
        .collect::<Result<Vec<_>, _>>()?;
    check_layout(&sections)?;
    Ok(sections)
}

/// {data offset u32, raw bytes u32, gpa u64, memory bytes u64, type u32, attributes u32}
fn read_section<'a>(bytes: &'a [u8], entry: &[u8]) -> Result<Section<'a>, &'static str> {
    let word = |at| read_u32(entry, at).ok_or("is cut off");
    let long = |at| Ok::<_, &'static str>(u64::from(word(at)?) | u64::from(word(at + 4)?) << 32);
    let (offset, raw, gpa, memory) = (word(0)? as usize, word(4)? as usize, long(8)?, long(16)?);
    let kind = match word(24)? {
        0 => SectionKind::Bfv,
        1 => SectionKind::Cfv,
        2 => SectionKind::TdHob,
        3 => SectionKind::TempMem,
        _ => return Err("has a type that QEMU does not load"),
    };
    let attributes = word(28)?;
    if attributes & !(ATTRIBUTE_EXTEND | ATTRIBUTE_AUGMENT) != 0 {
        return Err("has unknown attributes");
    }
    if !gpa.is_multiple_of(PAGE_BYTES) || !memory.is_multiple_of(PAGE_BYTES) || memory == 0 {
        return Err("is not made of whole pages");
    }
    if memory > SECTION_BYTES_MAX || gpa > FOUR_GIB - memory {
        return Err("does not lie below 4 GiB or is too long");
    }
    let content = offset
        .checked_add(raw)
        .and_then(|end| bytes.get(offset..end))
        .ok_or("reaches outside the image")?;
    let extend = attributes & ATTRIBUTE_EXTEND != 0;
    match kind {
        SectionKind::Bfv | SectionKind::Cfv if raw as u64 != memory => {
            return Err("has a content of another length than its memory");
        }
        SectionKind::TdHob | SectionKind::TempMem if raw != 0 || extend => {
            return Err("is memory, but has content to load or to measure");
        }
        _ => {}
    }
    Ok(Section {
        kind,
        gpa,
        bytes: memory,
        content,
        extend,
        augmented: attributes & ATTRIBUTE_AUGMENT != 0,
    })
}

const ATTRIBUTE_EXTEND: u32 = 1;
const ATTRIBUTE_AUGMENT: u32 = 2;

fn check_layout(sections: &[Section<'_>]) -> Result<(), FirmwareError> {
    let total: u64 = sections.iter().map(|section| section.bytes).sum();
    for (index, section) in sections.iter().enumerate() {
        let refuse = |problem| Err(FirmwareError::Section { index, problem });
        let earlier = &sections[..index];
        if earlier
            .iter()
            .any(|other| section.gpa < other.end() && other.gpa < section.end())
        {
            return refuse("overlaps another");
        }
        let once = matches!(section.kind, SectionKind::TdHob | SectionKind::Cfv);
        if once && earlier.iter().any(|other| other.kind == section.kind) {
            return refuse("is the second of its type");
        }
        if total > SECTION_BYTES_MAX {
            return refuse("and the others together are too long");
        }
    }
    if sections.iter().all(|section| section.kind != SectionKind::Bfv) {
        return Err(FirmwareError::Metadata("no section holds code"));
    }
    Ok(())
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*word))
}
