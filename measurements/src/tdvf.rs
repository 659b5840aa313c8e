//! TDX firmware: where its sections go, what MRTD they make, and the memory map it is handed.
//!
//! The firmware file may come from anybody; every offset in it is checked and the work it can ask for is
//! bounded. Sources: Intel TDX Virtual Firmware Design Guide (344991-004), chapter 11 (metadata) and
//! section 4.2 (TD HOB); QEMU `hw/i386/tdvf.c` and `tdvf-hob.c` for what the host does with them.

mod hand_off;
mod metadata;
mod mrtd;

pub(crate) use hand_off::low_memory_bytes;
use metadata::{Section, SectionKind};
pub(crate) use mrtd::MeasuredSection;

/// Longer firmware is refused; OVMF's largest build has 16 MiB.
pub const FIRMWARE_BYTES_MAX: usize = 16 * 1024 * 1024;

const PAGE_BYTES: u64 = 4096;
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

/// Firmware taken apart.
#[derive(Debug)]
pub struct Firmware<'a> {
    sections: Vec<Section<'a>>,
    has_metadata: bool,
}

impl<'a> Firmware<'a> {
    /// Reads the metadata. Firmware without any becomes one measured section that ends at 4 GiB, where QEMU
    /// maps it; see [`Self::has_metadata`].
    ///
    /// # Errors
    /// See [`FirmwareError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FirmwareError> {
        if bytes.is_empty()
            || bytes.len() > FIRMWARE_BYTES_MAX
            || !(bytes.len() as u64).is_multiple_of(PAGE_BYTES)
        {
            return Err(FirmwareError::Size { bytes: bytes.len() });
        }
        let Some(descriptor) = metadata::find_descriptor(bytes)? else {
            return Ok(Self {
                sections: vec![metadata::whole_image(bytes)],
                has_metadata: false,
            });
        };
        Ok(Self {
            sections: metadata::read_sections(bytes, descriptor)?,
            has_metadata: true,
        })
    }

    /// Whether the firmware says what a TDX module would measure.
    pub fn has_metadata(&self) -> bool {
        self.has_metadata
    }

    /// The variables that the image comes with: added to the TD, but measured by the firmware into RTMR0.
    pub fn configuration_volume(&self) -> Option<&'a [u8]> {
        let cfv = self
            .sections
            .iter()
            .find(|section| section.kind == SectionKind::Cfv)?;
        Some(cfv.content)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::{
        metadata::{ENTRY_TAIL_BYTES, METADATA_OFFSET, TABLE_END_DISTANCE, TABLE_FOOTER},
        *,
    };
    use crate::PageOrder::{SinglePass, TwoPass};
    use cocoon_evidence::Digest48;

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
            firmware.mrtd(SinglePass).to_string(),
            "88c63708f207ab01a46b4d9424ea92ab11f8826be30d208afbb58f174f2a19cdcfafb2b12a6a2c98be0740b808894d55"
        );
        assert_eq!(
            firmware.mrtd(TwoPass).to_string(),
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
    const HAND_OFF_BLOCKS: [(&str, u64, u64, &str); 5] = [
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
        (
            "Dstack-TEE/dstack quote-report.json",
            0x81_0000,
            65536,
            "8ae1e425351df7992c444586eff99d35af3b779aa2b0e981cb4b73bc5b279f2ade19b6a62a203fc3c3bbdaae80af596d",
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
        assert_ne!(
            Firmware::parse(&other).unwrap().mrtd(SinglePass),
            firmware.mrtd(SinglePass)
        );
    }

    #[test]
    fn every_byte_of_code_changes_mrtd_and_variables_do_not() {
        let image = firmware();
        let mrtd = Firmware::parse(&image).unwrap().mrtd(SinglePass);
        for at in (0x1000..0x4000).step_by(97) {
            let mut other = image.clone();
            other[at] ^= 1;
            assert_ne!(
                Firmware::parse(&other).unwrap().mrtd(SinglePass),
                mrtd,
                "byte {at:#x}"
            );
        }
        let mut other = image;
        other[0] ^= 1;
        assert_eq!(Firmware::parse(&other).unwrap().mrtd(SinglePass), mrtd);
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
                firmware.mrtd(TwoPass);
                firmware.measured_sections(SinglePass, &firmware.section_contents());
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
                firmware.mrtd(SinglePass);
            }
        }
    }
}
