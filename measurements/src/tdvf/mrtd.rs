//! MRTD: the pages of the firmware as the host adds them to the TD and has them measured.
//!
//! Intel TDX Module Base Architecture Specification 1.5, "MRTD: Build-Time Measurement Register":
//! TDH.MEM.PAGE.ADD and TDH.MR.EXTEND each hash a record of 128 bytes, the latter with 256 bytes of the page.

use cocoon_evidence::Digest48;
use sha2::{Digest as _, Sha384};

use super::{Firmware, PAGE_BYTES, metadata::Section};
use crate::PageOrder;

/// TDH.MR.EXTEND measures this much of a page at a time.
const CHUNK_BYTES: usize = 256;
const RECORD_BYTES: usize = 128;
const CHUNKS_PER_PAGE: usize = PAGE_BYTES as usize / CHUNK_BYTES;

/// What one section of the firmware adds to MRTD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MeasuredSection {
    pub(crate) kind: &'static str,
    pub(crate) gpa: u64,
    pub(crate) pages_added: u64,
    pub(crate) pages_measured: u64,
    /// Of the content, if that is measured.
    pub(crate) content: Option<Digest48>,
    /// MRTD if this were the last section.
    pub(crate) value: Digest48,
}

impl Firmware<'_> {
    /// MRTD for this order of adding and measuring pages; the sections in the order of the table.
    pub fn mrtd(&self, order: PageOrder) -> Digest48 {
        let mut hash = Sha384::new();
        for section in &self.sections {
            add_section(&mut hash, section, order);
        }
        Digest48(hash.finalize().into())
    }

    /// SHA-384 of each section's content where it is measured, in the order of the table.
    pub(crate) fn section_contents(&self) -> Vec<Option<Digest48>> {
        let measured = |section: &Section<'_>| section.extend.then(|| Digest48::of(section.content));
        self.sections.iter().map(measured).collect()
    }

    /// [`Self::mrtd`], section by section. `contents` is from [`Self::section_contents`].
    pub(crate) fn measured_sections(
        &self,
        order: PageOrder,
        contents: &[Option<Digest48>],
    ) -> Vec<MeasuredSection> {
        let mut hash = Sha384::new();
        let measure = |(section, content): (&Section<'_>, &Option<Digest48>)| {
            add_section(&mut hash, section, order);
            let pages = section.bytes / PAGE_BYTES;
            MeasuredSection {
                kind: section.kind.name(),
                gpa: section.gpa,
                pages_added: if section.augmented { 0 } else { pages },
                pages_measured: if section.extend { pages } else { 0 },
                content: *content,
                value: Digest48(hash.clone().finalize().into()),
            }
        };
        self.sections.iter().zip(contents).map(measure).collect()
    }
}

fn add_section(hash: &mut Sha384, section: &Section<'_>, order: PageOrder) {
    let pages = || (0..section.bytes).step_by(PAGE_BYTES as usize);
    match order {
        PageOrder::SinglePass => pages().for_each(|offset| {
            add_page(hash, section, offset);
            extend_page(hash, section, offset);
        }),
        PageOrder::TwoPass => {
            pages().for_each(|offset| add_page(hash, section, offset));
            pages().for_each(|offset| extend_page(hash, section, offset));
        }
    }
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
    // One call for each page: the hash then runs over whole blocks without a pause.
    let mut records = [0; CHUNKS_PER_PAGE * (RECORD_BYTES + CHUNK_BYTES)];
    let mut gpa = section.gpa + offset;
    for (space, chunk) in records
        .chunks_exact_mut(RECORD_BYTES + CHUNK_BYTES)
        .zip(page.chunks_exact(CHUNK_BYTES))
    {
        space[..RECORD_BYTES].copy_from_slice(&record(b"MR.EXTEND", gpa));
        space[RECORD_BYTES..].copy_from_slice(chunk);
        gpa += CHUNK_BYTES as u64;
    }
    hash.update(records);
}

fn record(operation: &[u8], gpa: u64) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..operation.len()].copy_from_slice(operation);
    record[16..24].copy_from_slice(&gpa.to_le_bytes());
    record
}
