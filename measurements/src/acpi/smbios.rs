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
mod tests;
