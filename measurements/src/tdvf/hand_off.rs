//! The TD hand-off block: the memory map that QEMU gives the firmware (`hw/i386/tdvf-hob.c`; UEFI PI 1.8,
//! volume 3, section 5).

use super::{FOUR_GIB, Firmware, FirmwareError, metadata::SectionKind};

impl Firmware<'_> {
    /// The TD hand-off block that QEMU writes for this much memory, without its end marker, which the
    /// firmware does not measure. `None` if the firmware has no place for one.
    ///
    /// # Errors
    /// [`FirmwareError::Section`]: a section lies outside the guest's memory.
    pub fn hand_off_block(&self, memory_bytes: u64) -> Result<Option<Vec<u8>>, FirmwareError> {
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
        let low_bytes = low_memory_bytes(memory_bytes);
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

/// How much memory lies below 4 GiB.
pub(crate) fn low_memory_bytes(memory_bytes: u64) -> u64 {
    if memory_bytes >= LOW_MEMORY_LIMIT {
        LOW_MEMORY_SPLIT
    } else {
        memory_bytes
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
