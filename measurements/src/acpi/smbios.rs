//! The SMBIOS structures as edk2 measures them from edk2-stable202505 on (layout B).
//!
//! QEMU makes the structures, edk2 puts them into its own table (MdeModulePkg/Universal/SmbiosDxe), OVMF adds a
//! BIOS structure if QEMU has none (OvmfPkg/SmbiosPlatformDxe), and a driver hashes the table without what names
//! a single machine (MdeModulePkg/Universal/SmbiosMeasurementDxe, after TCG PC Client Platform Firmware Profile
//! 1.06, section 3.3.4.2: serial numbers, asset tags and the like are left out). [`measured_smbios`] gives the
//! hashed bytes; digests in the event logs of booted machines agree with it.
//!
//! Two of its inputs are in neither QEMU's tables nor the machine's shape: what the firmware says about itself,
//! and the processor's identification, which `-cpu host` takes from the host. Without them there is an error,
//! never a guess.

use serde::{Deserialize, Serialize};

/// What the firmware was built to say about itself in structure type 0: PcdFirmwareVendor,
/// PcdFirmwareVersionString and PcdFirmwareReleaseDateString.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BiosInformation {
    /// Like "Debian distribution of EDK II".
    pub vendor: String,
    /// Like "2026.08+ds-2".
    pub version: String,
    /// Month, day and year, like "09/26/2026".
    pub date: String,
}

/// What CPUID leaf 1 says to the guest, in structure type 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessorId {
    /// EAX: family, model and stepping.
    pub signature: u32,
    /// EDX: features.
    pub features: u32,
}

/// What the measured structures are made of.
#[derive(Debug, Clone, Copy)]
pub struct SmbiosInputs<'a> {
    /// fw_cfg's `etc/smbios/smbios-tables`.
    pub tables: &'a [u8],
    /// Needed unless QEMU has a structure of type 0 (`-smbios type=0`).
    pub bios: Option<&'a BiosInformation>,
    /// Needed if there is a structure of type 4, as QEMU always makes one.
    pub processor: Option<ProcessorId>,
}

/// Why the structures cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SmbiosError {
    /// Not a list of structures.
    #[error("the SMBIOS structures are damaged at offset {offset}: {problem}")]
    Malformed {
        /// Where the structure begins.
        offset: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// Only the firmware's build knows it.
    #[error(
        "the firmware's own SMBIOS structure is not known: state vendor, version and date as the firmware's build \
         has them"
    )]
    BiosNotStated,
    /// Not something that firmware can have been built with.
    #[error("the firmware's {0} has to be 3 to 63 printable ASCII characters")]
    BiosText(&'static str),
    /// `-cpu host` takes it from the host.
    #[error(
        "the processor's identification is not known: state the signature and the features that CPUID leaf 1 has in \
         the guest (EAX and EDX)"
    )]
    ProcessorNotStated,
}

/// More is refused; 4 TiB of memory make 256 structures.
const STRUCTURES_MAX: usize = 4096;

const TYPE_BIOS: u8 = 0;
const TYPE_PROCESSOR: u8 = 4;
const TYPE_END: u8 = 127;
const TYPE_OEM: u8 = 128;

const HEADER_BYTES: usize = 4;

/// The bytes whose SHA-384 the event EV_EFI_HANDOFF_TABLES has.
///
/// # Errors
/// See [`SmbiosError`].
pub fn measured_smbios(inputs: SmbiosInputs<'_>) -> Result<Vec<u8>, SmbiosError> {
    let mut structures = parse(inputs.tables)?;
    for structure in &mut structures {
        if structure.kind() == TYPE_PROCESSOR {
            let processor = inputs.processor.ok_or(SmbiosError::ProcessorNotStated)?;
            structure.identify(processor)?;
        }
    }
    if structures.iter().all(|structure| structure.kind() != TYPE_BIOS) {
        let bios = inputs.bios.ok_or(SmbiosError::BiosNotStated)?;
        let handle = first_free_handle(&structures);
        structures.push(bios_structure(bios, handle)?);
    }
    for structure in &mut structures {
        structure.filter()?;
    }
    let mut measured: Vec<u8> = structures
        .into_iter()
        .flat_map(|structure| structure.bytes)
        .collect();
    measured.extend(END_OF_TABLE);
    Ok(measured)
}

/// SmbiosDxe writes its own end, with the highest handle that it gives out.
const END_OF_TABLE: [u8; 6] = [TYPE_END, 4, 0xff, 0xfe, 0, 0];

/// DMTF DSP0134 3.6, section 6.1: {type u8, length u8, handle u16, fields}, strings, two NULs.
struct Structure {
    offset: usize,
    bytes: Vec<u8>,
}

fn parse(tables: &[u8]) -> Result<Vec<Structure>, SmbiosError> {
    let mut structures = Vec::new();
    let mut offset = 0;
    loop {
        let damaged = |problem| SmbiosError::Malformed { offset, problem };
        let rest = &tables[offset..];
        let &[kind, length, ..] = rest else {
            return Err(damaged("the end of the table is missing"));
        };
        if kind == TYPE_END {
            return Ok(structures);
        }
        let length = usize::from(length);
        if length < HEADER_BYTES {
            return Err(damaged("a structure is shorter than its header"));
        }
        let strings = rest.get(length..).ok_or(damaged("a structure is cut off"))?;
        let end = strings
            .windows(2)
            .position(|pair| pair == [0, 0])
            .ok_or(damaged("the strings of a structure do not end"))?;
        if structures.len() == STRUCTURES_MAX {
            return Err(damaged("there are more than 4096 structures"));
        }
        let total = length + end + 2;
        structures.push(Structure {
            offset,
            bytes: rest[..total].to_vec(),
        });
        offset += total;
    }
}

/// SmbiosDxe, `GetAvailableSmbiosHandle`.
fn first_free_handle(structures: &[Structure]) -> u16 {
    let taken = |handle: &u16| structures.iter().any(|structure| structure.handle() == *handle);
    (0..=u16::MAX)
        .find(|handle| !taken(handle))
        .expect("there are at most STRUCTURES_MAX structures")
}

/// SmbiosPlatformDxe.c, `mOvmfDefaultType0`.
fn bios_structure(bios: &BiosInformation, handle: u16) -> Result<Structure, SmbiosError> {
    let mut bytes = vec![TYPE_BIOS, 26];
    bytes.extend(handle.to_le_bytes());
    // Vendor and version are strings 1 and 2, the segment is 0xe800, the date is string 3, size 0.
    bytes.extend([1, 2, 0x00, 0xe8, 3, 0]);
    // No characteristics; virtual machine, UEFI; no release numbers; no extended size.
    bytes.extend([0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0x1c, 0, 0, 0xff, 0xff, 0, 0]);
    let texts = [
        ("vendor", &bios.vendor),
        ("version", &bios.version),
        ("date", &bios.date),
    ];
    for (name, text) in texts {
        // OVMF replaces what is shorter than three characters by a word of its own.
        let is_printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !is_printable || !(3..64).contains(&text.len()) {
            return Err(SmbiosError::BiosText(name));
        }
        bytes.extend(text.bytes().chain([0]));
    }
    bytes.push(0);
    Ok(Structure { offset: 0, bytes })
}

/// A field that is not measured.
#[derive(Clone, Copy)]
enum Field {
    /// At an offset, so many bytes.
    Bytes(usize, usize),
    /// The number of a string, at an offset.
    Text(usize),
}

/// `mSmbiosFilterStandardTableBlackList`; `None`: nothing but the header is measured.
fn unmeasured(kind: u8) -> Option<&'static [Field]> {
    use Field::{Bytes, Text};
    Some(match kind {
        1 => &[Text(0x07), Bytes(0x08, 16), Bytes(0x18, 1)],
        2 => &[Text(0x07), Text(0x0a)],
        3 => &[Text(0x07), Text(0x08)],
        TYPE_PROCESSOR => &[
            Text(0x20),
            Text(0x21),
            Text(0x22),
            Bytes(0x23, 1),
            Bytes(0x24, 1),
            Bytes(0x25, 1),
            Bytes(0x2a, 2),
            Bytes(0x2c, 2),
            Bytes(0x2e, 2),
            Bytes(0x11, 1),
            Bytes(0x16, 2),
        ],
        11 | 15 | 18 | 31 | 33 | TYPE_OEM.. => return None,
        17 => &[Text(0x18), Text(0x19), Text(0x1a)],
        22 => &[Text(0x07), Bytes(0x10, 2), Bytes(0x12, 2)],
        23 => &[Bytes(0x05, 2)],
        27 => &[Bytes(0x0c, 2)],
        39 => &[Text(0x08), Text(0x09), Text(0x0a)],
        _ => &[],
    })
}

impl Structure {
    fn kind(&self) -> u8 {
        self.bytes[0]
    }

    fn length(&self) -> usize {
        usize::from(self.bytes[1])
    }

    fn handle(&self) -> u16 {
        u16::from_le_bytes([self.bytes[2], self.bytes[3]])
    }

    /// Type 4, offset 8: CPUID leaf 1, EAX and EDX.
    fn identify(&mut self, processor: ProcessorId) -> Result<(), SmbiosError> {
        if self.length() < 16 {
            return Err(self.damaged("a processor has no identification"));
        }
        self.bytes[8..12].copy_from_slice(&processor.signature.to_le_bytes());
        self.bytes[12..16].copy_from_slice(&processor.features.to_le_bytes());
        Ok(())
    }

    /// `FilterSmbiosEntry`: a string is overwritten with spaces, a field with zeros.
    fn filter(&mut self) -> Result<(), SmbiosError> {
        let Some(fields) = unmeasured(self.kind()) else {
            self.bytes[HEADER_BYTES..].fill(0);
            return Ok(());
        };
        for field in fields {
            let (at, bytes) = match *field {
                Field::Bytes(at, bytes) => (at, bytes),
                Field::Text(at) => (at, 1),
            };
            // Older SMBIOS versions have shorter structures.
            if self.length() < at + bytes {
                continue;
            }
            if let Field::Text(at) = *field
                && self.bytes[at] != 0
            {
                self.blank_text(self.bytes[at])?;
            }
            self.bytes[at..at + bytes].fill(0);
        }
        Ok(())
    }

    fn blank_text(&mut self, number: u8) -> Result<(), SmbiosError> {
        let mut start = self.length();
        for _ in 1..number {
            start += self.text_bytes(start) + 1;
        }
        match self.text_bytes(start) {
            0 => Err(self.damaged("a structure has fewer strings than it says")),
            bytes => {
                self.bytes[start..start + bytes].fill(b' ');
                Ok(())
            }
        }
    }

    fn text_bytes(&self, start: usize) -> usize {
        let rest = self.bytes.get(start..).unwrap_or_default();
        rest.iter().take_while(|byte| **byte != 0).count()
    }

    fn damaged(&self, problem: &'static str) -> SmbiosError {
        SmbiosError::Malformed {
            offset: self.offset,
            problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use cocoon_evidence::Digest48;
    use proptest::prelude::*;

    use super::*;

    fn bios() -> BiosInformation {
        BiosInformation {
            vendor: "Vendor".into(),
            version: "1.0".into(),
            date: "01/02/2026".into(),
        }
    }

    const PROCESSOR: ProcessorId = ProcessorId {
        signature: 0x000c_06f2,
        features: 0x1f8b_fbff,
    };

    fn measured(tables: &[u8]) -> Result<Vec<u8>, SmbiosError> {
        measured_smbios(SmbiosInputs {
            tables,
            bios: Some(&bios()),
            processor: Some(PROCESSOR),
        })
    }

    fn structure(kind: u8, handle: u8, fields: &[u8], strings: &[&str]) -> Vec<u8> {
        let mut bytes = vec![kind, (HEADER_BYTES + fields.len()) as u8, handle, 1];
        bytes.extend(fields);
        bytes.extend(strings.iter().flat_map(|text| text.bytes().chain([0])));
        bytes.extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
        bytes
    }

    const END: [u8; 6] = [TYPE_END, 4, 0, 0x7f, 0, 0];

    fn system(uuid: u8, serial: &str) -> Vec<u8> {
        let mut fields = vec![1, 2, 3, 4];
        fields.extend([uuid; 16]);
        fields.extend([6, 0, 0]);
        let strings = ["QEMU", "Standard PC", "pc-q35", serial];
        [structure(1, 0, &fields, &strings), END.to_vec()].concat()
    }

    /// What a TPM recorded for booted machines (1 vCPU, 512 MiB, `-cpu max`; OVMF 2026.08+ds-2 of Debian, swtpm
    /// 0.10.2): QEMU's structures, and the digest of EV_EFI_HANDOFF_TABLES in the event log.
    const RECORDED: [(&str, ProcessorId, &str, &str); 2] = [
        (
            "QEMU 11.1.3",
            ProcessorId {
                signature: 0x0000_0663,
                features: 0x0fcb_fbfd,
            },
            "\
            011b0001010203000000000000000000000000000000000006000051454d55005374616e6461726420504320\
             28513335202b20494348392c2032303039290070632d7133352d31312e310000031600030101020000030303\
             0200000000000000000051454d550070632d7133352d31312e310000042a00040103fe0263060000fdfbcb0f\
             03000000d007d0074101ffffffffffff0000000101010200010043505520300051454d550070632d7133352d\
             31312e3100001017001001030600000800feff010000000000000000000000112800110010feffffffffff00\
             02090001000702000000020000000000000000000000000000000044494d4d20300051454d550000131f0013\
             00000000ffff0700001001000000000000000000000000000000000000200b00200000000000000000007f04\
             007f0000",
            "f2bc6e8de8927ccb609ecd18758a5e28ef369477bd8de9264ed707004c911ccf07ff0fcae9a709ff5436454a1ffd74fe",
        ),
        (
            "QEMU 7.2.22",
            ProcessorId {
                signature: 0x0006_0fb1,
                features: 0x0fcb_fbfd,
            },
            "\
            011b0001010203000000000000000000000000000000000006000051454d55005374616e6461726420504320\
             28513335202b20494348392c2032303039290070632d7133352d372e32000003160003010102000003030302\
             00000000000000000051454d550070632d7133352d372e320000042a000401030102b10f0600fdfbcb0f0300\
             0000d007d0074101ffffffffffff0000000101010200010043505520300051454d550070632d7133352d372e\
             3200001017001001030600000800feff010000000000000000000000112800110010feffffffffff00020900\
             01000702000000020000000000000000000000000000000044494d4d20300051454d550000131f0013000000\
             00ffff0700001001000000000000000000000000000000000000200b00200000000000000000007f04007f00\
             00",
            "968e040146b474a412f0a15f235579949b8f9219567aac5f702502ee1bf1d50a05c81c23afba78a2e3640b832e97349a",
        ),
    ];

    #[test]
    fn digests_are_those_that_a_tpm_recorded() {
        let bios = BiosInformation {
            vendor: "Debian distribution of EDK II".into(),
            version: "2026.08+ds-2".into(),
            date: "09/26/2026".into(),
        };
        for (name, processor, structures, recorded) in RECORDED {
            let tables = hex::decode(structures).unwrap();
            let inputs = SmbiosInputs {
                tables: &tables,
                bios: Some(&bios),
                processor: Some(processor),
            };
            let measured = measured_smbios(inputs).unwrap();
            assert_eq!(Digest48::of(&measured).to_string(), recorded, "{name}");
        }
    }

    #[test]
    fn what_names_one_machine_is_not_measured() {
        assert_eq!(measured(&system(1, "serial-a")), measured(&system(2, "serial-b")));
        assert_ne!(measured(&system(1, "short")), measured(&system(1, "longer")));
    }

    #[test]
    fn a_blanked_string_keeps_its_length() {
        let bytes = measured(&system(1, "ab")).unwrap();
        assert!(
            bytes
                .windows(12)
                .any(|part| part == b"pc-q35\0  \0\0\0".as_slice() || part == b"pc-q35\0  \0\0\x1a")
        );
    }

    #[test]
    fn the_firmware_adds_itself_at_the_end_with_a_free_handle() {
        let mut one_at_zero = structure(3, 0, &[1; 4], &["x"]);
        one_at_zero[2..4].fill(0);
        one_at_zero.extend(END);
        let bytes = measured(&one_at_zero).unwrap();
        let text = b"Vendor\x001.0\x0001/02/2026\0\0";
        let at = bytes.len() - END_OF_TABLE.len() - text.len() - 26;
        assert_eq!(bytes[at..at + 4], [0, 26, 1, 0]);
        assert_eq!(&bytes[at + 26..bytes.len() - END_OF_TABLE.len()], text);
        assert!(bytes.ends_with(&END_OF_TABLE));
    }

    #[test]
    fn a_bios_structure_of_qemu_is_kept() {
        let tables = [structure(0, 0, &[1; 20], &["of QEMU"]), END.to_vec()].concat();
        let bytes = measured(&tables).unwrap();
        assert_eq!(
            bytes[..tables.len() - END.len()],
            tables[..tables.len() - END.len()]
        );
        assert_eq!(bytes.len(), tables.len());
    }

    #[test]
    fn the_processor_is_the_guests_and_not_the_emulators() {
        let tables = [structure(4, 0, &[7; 0x2c], &["CPU 0"; 7]), END.to_vec()].concat();
        let bytes = measured(&tables).unwrap();
        assert_eq!(bytes[8..12], PROCESSOR.signature.to_le_bytes());
        assert_eq!(bytes[12..16], PROCESSOR.features.to_le_bytes());
        assert_eq!(bytes[0x11], 0);
    }

    #[test]
    fn structures_of_makers_are_measured_without_content() {
        let tables = |content| [structure(200, 0, &[content; 8], &["text"]), END.to_vec()].concat();
        assert_eq!(measured(&tables(1)), measured(&tables(2)));
    }

    #[test]
    fn what_is_not_known_is_refused_rather_than_guessed() {
        let tables = [structure(4, 0, &[0; 0x2c], &["CPU 0"]), END.to_vec()].concat();
        let inputs = SmbiosInputs {
            tables: &tables,
            bios: Some(&bios()),
            processor: None,
        };
        assert_eq!(measured_smbios(inputs), Err(SmbiosError::ProcessorNotStated));
        let inputs = SmbiosInputs {
            tables: &END,
            bios: None,
            processor: None,
        };
        assert_eq!(measured_smbios(inputs), Err(SmbiosError::BiosNotStated));
        for version in ["", "1\n2", "ab", &"x".repeat(64)] {
            let other = BiosInformation {
                version: version.to_owned(),
                ..bios()
            };
            let inputs = SmbiosInputs {
                tables: &END,
                bios: Some(&other),
                processor: None,
            };
            assert_eq!(measured_smbios(inputs), Err(SmbiosError::BiosText("version")));
        }
    }

    #[test]
    fn damaged_structures_are_refused_with_their_offset() {
        let check = |tables: &[u8], at: usize, says: &str| match measured(tables) {
            Err(SmbiosError::Malformed { offset, problem }) => {
                assert_eq!(offset, at);
                assert!(problem.contains(says), "{problem}");
            }
            other => panic!("{other:?}"),
        };
        let good = structure(3, 0, &[0; 4], &["x"]);
        check(&[], 0, "end of the table is missing");
        check(&good, good.len(), "end of the table is missing");
        check(&[3, 3, 0, 0, 0, 0], 0, "shorter than its header");
        check(&[3, 200, 0, 0, 0, 0], 0, "cut off");
        check(&[3, 4, 0, 0, 1, 0], 0, "do not end");
        let few = [structure(3, 0, &[1, 0, 0, 3, 0], &["x"]), END.to_vec()].concat();
        check(&few, 0, "fewer strings");
        let short = [structure(4, 0, &[0; 4], &[]), END.to_vec()].concat();
        check(&short, 0, "no identification");
    }

    proptest! {
        #[test]
        fn hostile_structures_never_panic(tables in prop::collection::vec(0u8..8, 0..300)) {
            let _ = measured(&tables);
        }

        #[test]
        fn hostile_fields_never_panic(
            kind in any::<u8>(),
            fields in prop::collection::vec(any::<u8>(), 0..60),
            text in "[a-z]{0,8}",
        ) {
            let tables = [structure(kind, 0, &fields, &[&text]), END.to_vec()].concat();
            let _ = measured(&tables);
        }
    }
}
