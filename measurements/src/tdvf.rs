//! TDX firmware: where its sections go, what MRTD they make, and the memory map it is handed.
//!
//! The firmware file may come from anybody; every offset in it is checked and the work it can ask for is
//! bounded. Sources: Intel TDX Virtual Firmware Design Guide (344991-004), chapter 11 (metadata) and
//! section 4.2 (TD HOB); QEMU `hw/i386/tdvf.c` and `tdvf-hob.c` for what the host does with them.

use cocoon_evidence::Digest48;
use sha2::{Digest as _, Sha384};

/// Longer firmware is refused; OVMF's largest build has 16 MiB.
pub const FIRMWARE_BYTES_MAX: usize = 16 * 1024 * 1024;

const PAGE_BYTES: u64 = 4096;
/// TDH.MR.EXTEND measures this much of a page at a time.
const CHUNK_BYTES: usize = 256;
const SECTIONS_MAX: u32 = 32;
/// All sections together; edk2's have 2.1 MiB.
const SECTION_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The firmware's last byte lies below this address.
const FOUR_GIB: u64 = 1 << 32;

/// Why firmware cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FirmwareError {
    /// Empty, over [`FIRMWARE_BYTES_MAX`], or not whole pages.
    #[error(
        "the firmware has {bytes} bytes; it has to be whole pages of 4096 bytes, at most {FIRMWARE_BYTES_MAX}"
    )]
    Size {
        /// Its length.
        bytes: usize,
    },
    /// There is a metadata entry, but it cannot be read.
    #[error("the firmware's TDVF metadata is damaged: {0}")]
    Metadata(&'static str),
    /// A section that no loader accepts, or whose measurement is not known.
    #[error("section {index} of the firmware's TDVF metadata {problem}")]
    Section {
        /// Position in the table, from 0.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// What a section is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SectionKind {
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
struct Section<'a> {
    kind: SectionKind,
    gpa: u64,
    bytes: u64,
    /// As long as `bytes`, or empty: then the memory is zero.
    content: &'a [u8],
    extend: bool,
    /// Added later by the guest (TDH.MEM.PAGE.AUG), so not part of MRTD.
    augmented: bool,
}

impl Section<'_> {
    fn end(&self) -> u64 {
        self.gpa + self.bytes
    }
}

/// Firmware taken apart.
#[derive(Debug)]
pub(crate) struct Firmware<'a> {
    sections: Vec<Section<'a>>,
    has_metadata: bool,
}

impl<'a> Firmware<'a> {
    /// Reads the metadata. Firmware without any becomes one measured section that ends at 4 GiB, where QEMU
    /// maps it; see [`Self::has_metadata`].
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, FirmwareError> {
        if bytes.is_empty()
            || bytes.len() > FIRMWARE_BYTES_MAX
            || !(bytes.len() as u64).is_multiple_of(PAGE_BYTES)
        {
            return Err(FirmwareError::Size { bytes: bytes.len() });
        }
        let Some(descriptor) = find_descriptor(bytes)? else {
            return Ok(Self {
                sections: vec![whole_image(bytes)],
                has_metadata: false,
            });
        };
        Ok(Self {
            sections: read_sections(bytes, descriptor)?,
            has_metadata: true,
        })
    }

    /// Whether the firmware says what a TDX module would measure.
    pub(crate) fn has_metadata(&self) -> bool {
        self.has_metadata
    }

    /// MRTD as QEMU 9 and later with upstream KVM build it: for each page in table order TDH.MEM.PAGE.ADD,
    /// then its TDH.MR.EXTENDs (Intel TDX Module Base Architecture Specification 1.5, "MRTD: Build-Time
    /// Measurement Register").
    pub(crate) fn mrtd(&self) -> Digest48 {
        self.mrtd_in(PageOrder::ExtendAfterEachPage)
    }

    fn mrtd_in(&self, order: PageOrder) -> Digest48 {
        let mut hash = Sha384::new();
        for section in &self.sections {
            let pages = || (0..section.bytes).step_by(PAGE_BYTES as usize);
            match order {
                PageOrder::ExtendAfterEachPage => pages().for_each(|offset| {
                    add_page(&mut hash, section, offset);
                    extend_page(&mut hash, section, offset);
                }),
                #[cfg(test)]
                PageOrder::ExtendAfterSection => {
                    pages().for_each(|offset| add_page(&mut hash, section, offset));
                    pages().for_each(|offset| extend_page(&mut hash, section, offset));
                }
            }
        }
        Digest48(hash.finalize().into())
    }

    /// The variables that the image comes with: added to the TD, but measured by the firmware into RTMR0.
    pub(crate) fn configuration_volume(&self) -> Option<&'a [u8]> {
        let cfv = self
            .sections
            .iter()
            .find(|section| section.kind == SectionKind::Cfv)?;
        Some(cfv.content)
    }

    /// The TD hand-off block that QEMU writes for this much memory, without its end marker, which the
    /// firmware does not measure. `None` if the firmware has no place for one.
    pub(crate) fn hand_off_block(&self, memory_bytes: u64) -> Result<Option<Vec<u8>>, FirmwareError> {
        let Some(hob) = self
            .sections
            .iter()
            .find(|section| section.kind == SectionKind::TdHob)
        else {
            return Ok(None);
        };
        let mut block = [1u16.to_le_bytes(), 56u16.to_le_bytes()].concat();
        block.extend([0u32, 9, 0].iter().flat_map(|word| word.to_le_bytes()));
        block.resize(56, 0);
        for range in self.memory_map(memory_bytes)? {
            block.extend([3u16.to_le_bytes(), 48u16.to_le_bytes()].concat());
            block.extend([0; 4 + 16]);
            block.extend(range.resource_type().to_le_bytes());
            block.extend(RESOURCE_ATTRIBUTES.to_le_bytes());
            block.extend(range.start.to_le_bytes());
            block.extend((range.end - range.start).to_le_bytes());
        }
        let end_of_list = hob.gpa + block.len() as u64 + END_HOB_BYTES;
        block[48..56].copy_from_slice(&end_of_list.to_le_bytes());
        Ok(Some(block))
    }

    /// RAM in address order: what the sections occupy is there from the start, the rest is not accepted yet.
    fn memory_map(&self, memory_bytes: u64) -> Result<Vec<MemoryRange>, FirmwareError> {
        let low_bytes = if memory_bytes >= LOW_MEMORY_LIMIT {
            LOW_MEMORY_SPLIT
        } else {
            memory_bytes
        };
        let mut occupied: Vec<_> = self.sections.iter().enumerate().collect();
        occupied.retain(|(_, section)| matches!(section.kind, SectionKind::TdHob | SectionKind::TempMem));
        occupied.sort_by_key(|(_, section)| section.gpa);

        let mut map = Vec::new();
        let mut next = 0;
        for (index, section) in occupied {
            if section.end() > low_bytes {
                let problem = "does not lie in the guest's memory";
                return Err(FirmwareError::Section { index, problem });
            }
            map.push(MemoryRange::unaccepted(next, section.gpa));
            map.push(MemoryRange {
                start: section.gpa,
                end: section.end(),
                accepted: true,
            });
            next = section.end();
        }
        map.push(MemoryRange::unaccepted(next, low_bytes));
        map.push(MemoryRange::unaccepted(
            FOUR_GIB,
            FOUR_GIB + (memory_bytes - low_bytes),
        ));
        map.retain(|range| range.start < range.end);
        Ok(map)
    }
}

/// When QEMU's q35 gets at least this much memory, the part above [`LOW_MEMORY_SPLIT`] moves above 4 GiB.
const LOW_MEMORY_LIMIT: u64 = 0xB000_0000;
const LOW_MEMORY_SPLIT: u64 = 0x8000_0000;
/// Present, initialized, tested (UEFI PI 1.8, volume 3, section 5.5).
const RESOURCE_ATTRIBUTES: u32 = 7;
const END_HOB_BYTES: u64 = 8;

struct MemoryRange {
    start: u64,
    end: u64,
    accepted: bool,
}

impl MemoryRange {
    fn unaccepted(start: u64, end: u64) -> Self {
        Self {
            start,
            end,
            accepted: false,
        }
    }

    /// EFI_RESOURCE_SYSTEM_MEMORY or EFI_RESOURCE_MEMORY_UNACCEPTED.
    fn resource_type(&self) -> u32 {
        if self.accepted { 0 } else { 7 }
    }
}

/// In which order the host adds and measures pages; decides the value of MRTD.
#[derive(Debug, Clone, Copy)]
enum PageOrder {
    ExtendAfterEachPage,
    /// QEMU 8 with the KVM patches of its time. Only to check the parser against a second value.
    #[cfg(test)]
    ExtendAfterSection,
}

fn add_page(hash: &mut Sha384, section: &Section<'_>, offset: u64) {
    if !section.augmented {
        hash.update(record(b"MEM.PAGE.ADD", section.gpa + offset));
    }
}

fn extend_page(hash: &mut Sha384, section: &Section<'_>, offset: u64) {
    if !section.extend {
        return;
    }
    let start = offset as usize;
    let page = &section.content[start..start + PAGE_BYTES as usize];
    let mut gpa = section.gpa + offset;
    for chunk in page.chunks_exact(CHUNK_BYTES) {
        hash.update(record(b"MR.EXTEND", gpa));
        hash.update(chunk);
        gpa += CHUNK_BYTES as u64;
    }
}

fn record(operation: &[u8], gpa: u64) -> [u8; 128] {
    let mut record = [0; 128];
    record[..operation.len()].copy_from_slice(operation);
    record[16..24].copy_from_slice(&gpa.to_le_bytes());
    record
}

fn whole_image(bytes: &[u8]) -> Section<'_> {
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
const TABLE_FOOTER: [u8; 16] = [
    0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d,
];
/// e47a6535-984a-4798-865e-4685a7bf8ec2: its entry holds the descriptor's distance from the image's end.
const METADATA_OFFSET: [u8; 16] = [
    0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2,
];
const TABLE_END_DISTANCE: usize = 32;
/// A u16 length, then a GUID; the entry's data lies before them.
const ENTRY_TAIL_BYTES: usize = 18;

/// The descriptor's offset in the image; `None` without a table or without the entry.
fn find_descriptor(bytes: &[u8]) -> Result<Option<usize>, FirmwareError> {
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

fn read_sections(bytes: &[u8], descriptor: usize) -> Result<Vec<Section<'_>>, FirmwareError> {
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

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// {data offset, raw, gpa, memory, type, attributes}
    type Row = (u32, u32, u64, u64, u32, u32);

    /// The table of an edk2 build with 2 MiB, shrunk to 4 pages of code and one of variables.
    const ROWS: [Row; 6] = [
        (0x1000, 0x4000, 0xffff_c000, 0x4000, 0, 1),
        (0, 0x1000, 0xffff_b000, 0x1000, 1, 0),
        (0, 0, 0x81_0000, 0x1_0000, 3, 0),
        (0, 0, 0x80_b000, 0x2000, 3, 0),
        (0, 0, 0x80_9000, 0x2000, 2, 0),
        (0, 0, 0x80_0000, 0x6000, 3, 0),
    ];

    /// Five pages of firmware with this metadata.
    pub(crate) fn firmware_with(rows: &[Row]) -> Vec<u8> {
        let mut image: Vec<u8> = (0..0x5000u32).map(|at| (at >> 8) as u8).collect();
        let mut descriptor = b"TDVF".to_vec();
        let words = [16 + 32 * rows.len() as u32, 1, rows.len() as u32];
        descriptor.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        for (offset, raw, gpa, memory, kind, attributes) in rows {
            descriptor.extend([offset.to_le_bytes(), raw.to_le_bytes()].concat());
            descriptor.extend([gpa.to_le_bytes(), memory.to_le_bytes()].concat());
            descriptor.extend([kind.to_le_bytes(), attributes.to_le_bytes()].concat());
        }
        let at = 0x4000;
        image[at..at + descriptor.len()].copy_from_slice(&descriptor);
        let distance = (image.len() - at) as u32;
        let mut table = distance.to_le_bytes().to_vec();
        table.extend(22u16.to_le_bytes());
        table.extend(METADATA_OFFSET);
        let total = (table.len() + ENTRY_TAIL_BYTES) as u16;
        table.extend(total.to_le_bytes());
        table.extend(TABLE_FOOTER);
        let end = image.len() - TABLE_END_DISTANCE;
        image[end - table.len()..end].copy_from_slice(&table);
        image
    }

    pub(crate) fn firmware() -> Vec<u8> {
        firmware_with(&ROWS)
    }

    fn vector(name: &str) -> Option<Vec<u8>> {
        let Some(folder) = std::env::var_os("COCOON_VECTORS") else {
            eprintln!("skipped: COCOON_VECTORS does not name the folder with public test vectors");
            return None;
        };
        Some(std::fs::read(std::path::Path::new(&folder).join(name)).unwrap())
    }

    #[test]
    fn mrtd_of_a_real_edk2_build() {
        // Nobody publishes this firmware's MRTD: both values were computed by an independent script.
        let Some(image) = vector("firmware/OVMF.inteltdx.fd") else {
            return;
        };
        let firmware = Firmware::parse(&image).unwrap();
        assert_eq!(
            firmware.mrtd().to_string(),
            "88c63708f207ab01a46b4d9424ea92ab11f8826be30d208afbb58f174f2a19cdcfafb2b12a6a2c98be0740b808894d55"
        );
        assert_eq!(
            firmware.mrtd_in(PageOrder::ExtendAfterSection).to_string(),
            "307c9a6831bdd6e6f56d9305f9598d238d42e864a9144f11c0a46ee42e62ed81eb9845511a80fa77b200743d85d977e3"
        );
    }

    #[test]
    fn the_hand_off_block_equals_public_event_logs() {
        let older = [(0x81_1000, 0xf000), (0x80_b000, 0x2000), (0x80_0000, 0x6000)];
        let newer = [(0x81_0000, 0x1_0000), (0x80_b000, 0x2000), (0x80_0000, 0x6000)];
        for (name, temp_mem, memory_mib, expected) in HAND_OFF_BLOCKS {
            let temp_mem = if temp_mem == 0x81_1000 { older } else { newer };
            let mut rows = vec![ROWS[0], ROWS[4]];
            rows.extend(temp_mem.map(|(gpa, memory)| (0, 0, gpa, memory, 3, 0)));
            let image = firmware_with(&rows);
            let block = Firmware::parse(&image)
                .unwrap()
                .hand_off_block(memory_mib << 20)
                .unwrap()
                .unwrap();
            assert_eq!(Digest48::of(&block).to_string(), expected, "{name}");
        }
    }

    /// Event log, gpa of the first TEMP_MEM section, memory in MiB, digest of its EV_EFI_HANDOFF_TABLES2 event.
    const HAND_OFF_BLOCKS: [(&str, u64, u64, &str); 4] = [
        (
            "Dstack-TEE/dstack ccel_1024MB.bin",
            0x81_1000,
            1024,
            "2b630fa1d8fa9b6e8c6507d2256803ed227888f7d1f62ca5cfbddfe495338b1c6a0fc339ea64700f0835c0897a662789",
        ),
        (
            "confidential-containers/trustee CCEL_data_ovmf",
            0x81_0000,
            2048,
            "0b8772e5b0b41b83e6044a68397e02f49fb47066b4fbe4917ea2c45c64f323fdacbb37948f821ebaf8bc9c938ba8a749",
        ),
        (
            "google/go-eventlog CCEL_unpadded.data.bin",
            0x81_0000,
            8192,
            "2e070cda358b5aa00f27cca25c47381bb564f4be3a84d059805a73cbbde764ed8341f7e09915b5e7b370f9c08a743fbd",
        ),
        (
            "confidential-containers/trustee CCEL_data_grub",
            0x81_0000,
            10240,
            "05dc148f05a035080b22372d049c35ef80260050516606b4d9d4eaa2e4d1e06c556374b00217496a235235d1e3d0e026",
        ),
    ];

    #[test]
    fn firmware_without_metadata_is_measured_whole() {
        let image = vec![0x90; 0x3000];
        let firmware = Firmware::parse(&image).unwrap();
        assert!(!firmware.has_metadata());
        assert!(firmware.configuration_volume().is_none());
        assert_eq!(firmware.hand_off_block(1 << 30).unwrap(), None);
        let mut other = image.clone();
        other[0x1234] ^= 1;
        assert_ne!(Firmware::parse(&other).unwrap().mrtd(), firmware.mrtd());
    }

    #[test]
    fn every_byte_of_code_changes_mrtd_and_variables_do_not() {
        let image = firmware();
        let mrtd = Firmware::parse(&image).unwrap().mrtd();
        for at in (0x1000..0x4000).step_by(97) {
            let mut other = image.clone();
            other[at] ^= 1;
            assert_ne!(Firmware::parse(&other).unwrap().mrtd(), mrtd, "byte {at:#x}");
        }
        let mut other = image;
        other[0] ^= 1;
        assert_eq!(Firmware::parse(&other).unwrap().mrtd(), mrtd);
    }

    #[test]
    fn sections_that_no_loader_accepts_are_refused() {
        let check = |index: usize, change: fn(&mut Row), says: &str| {
            let mut rows = ROWS;
            change(&mut rows[index]);
            let error = Firmware::parse(&firmware_with(&rows)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        check(
            0,
            |row| row.0 = 0x2000,
            "section 0 of the firmware's TDVF metadata reaches outside",
        );
        check(0, |row| row.0 = u32::MAX, "reaches outside");
        check(0, |row| row.3 = 0x3000, "another length");
        check(2, |row| row.2 = u64::MAX - 0xfff, "below 4 GiB");
        check(2, |row| row.3 = u64::MAX - 0xfff, "too long");
        check(2, |row| row.3 = 0, "whole pages");
        check(2, |row| row.2 += 1, "whole pages");
        check(2, |row| row.5 = 1, "content to load or to measure");
        check(2, |row| row.5 = 4, "unknown attributes");
        check(2, |row| row.4 = 5, "type that QEMU does not load");
        check(2, |row| row.4 = 2, "second of its type");
        check(3, |row| row.2 = 0x80_f000, "overlaps another");
        check(0, |row| (row.4, row.5) = (1, 0), "second of its type");
    }

    #[test]
    fn memory_that_does_not_reach_the_sections_is_refused() {
        let image = firmware();
        let error = Firmware::parse(&image)
            .unwrap()
            .hand_off_block(8 << 20)
            .unwrap_err();
        assert!(error.to_string().contains("guest's memory"), "{error}");
    }

    proptest! {
        #[test]
        fn hostile_firmware_never_panics(
            changes in prop::collection::vec((0x4000usize..0x5000, any::<u8>()), 0..40),
            table in prop::collection::vec((0x4fa0usize..0x5000, any::<u8>()), 0..8),
        ) {
            let mut image = firmware();
            for (at, byte) in changes.into_iter().chain(table) {
                image[at] = byte;
            }
            if let Ok(firmware) = Firmware::parse(&image) {
                firmware.mrtd();
                let _ = firmware.hand_off_block(1 << 30);
            }
        }

        #[test]
        fn hostile_section_tables_never_panic(
            rows in prop::collection::vec(
                (any::<u32>(), any::<u32>(), any::<u64>(), any::<u64>(), 0..5u32, 0..4u32), 0..33),
        ) {
            let rows = &rows[..rows.len().min(30)];
            if let Ok(firmware) = Firmware::parse(&firmware_with(rows)) {
                firmware.mrtd();
            }
        }
    }
}
