//! The opaque data of a report: NVIDIA's typed fields, which say which board, firmware and driver it is from.
//!
//! A field is a type and a length of two bytes each, little-endian, and its value. The types are those that
//! NVIDIA's attestation SDK names; a report with another one is refused, as the SDK does, because nobody here
//! knows what it says. GPUs and NVSwitches share the types up to 22.

use std::collections::BTreeMap;

use super::spdm::{MEASUREMENT_BYTES, Reader, ReportError};

/// Types of fields that are used by name.
mod field {
    pub(super) const DRIVER_VERSION: u16 = 3;
    pub(super) const VBIOS_VERSION: u16 = 6;
    pub(super) const NVDEC0_STATUS: u16 = 11;
    pub(super) const MEASUREMENT_COUNTS: u16 = 12;
    pub(super) const CHIP_SKU: u16 = 15;
    pub(super) const PROJECT: u16 = 17;
    pub(super) const PROJECT_SKU: u16 = 18;
    pub(super) const FWID: u16 = 20;
    pub(super) const PROTECTED_PCIE_STATUS: u16 = 21;
    pub(super) const PDIS: u16 = 22;
    pub(super) const SWITCH_GPU_PDIS: u16 = 26;
    pub(super) const OPAQUE_DATA_VERSION: u16 = 34;
    pub(super) const CHIP_INFO: u16 = 35;
    pub(super) const FEATURE_FLAG: u16 = 36;
}

/// Every type that the SDK names.
const KNOWN: [std::ops::RangeInclusive<u16>; 2] = [1..=27, 32..=36];
/// Bytes of a public device identifier, by which GPUs and switches name each other.
const PDI_BYTES: usize = 8;
/// The newest version of the opaque data whose fields are known.
const OPAQUE_DATA_VERSION_MAX: u64 = 1;
/// Status bytes: a state and its complement, so that a zero means neither.
const ENABLED: u8 = 0xaa;
const DISABLED: u8 = 0x55;

/// How GPUs are joined, as the feature flag says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpuMode {
    /// Several GPUs in one guest, links between them encrypted (multi-GPU passthrough).
    MultiGpu,
    /// One GPU in one guest (single-GPU passthrough).
    SingleGpu,
    /// Protected PCIe: only the bus is encrypted, links between GPUs are not.
    ProtectedPcie,
    /// Opaque data older than the flag: the driver does not say.
    Unreported,
}

impl GpuMode {
    /// The name in policies and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::MultiGpu => "multi-gpu",
            Self::SingleGpu => "single-gpu",
            Self::ProtectedPcie => "protected-pcie",
            Self::Unreported => "unreported",
        }
    }
}

/// Whether a unit of the device is there, as its status byte says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitStatus {
    /// 0xaa.
    Enabled,
    /// 0x55.
    Disabled,
}

/// Fields by type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpaqueData(BTreeMap<u16, Vec<u8>>);

impl OpaqueData {
    pub(super) fn read(reader: &mut Reader<'_>, bytes: usize) -> Result<Self, ReportError> {
        let stated = reader.offset + bytes;
        let mut fields = BTreeMap::new();
        while reader.offset < stated {
            let offset = reader.offset;
            let number = reader.u16("opaque field type")?;
            if !KNOWN.iter().any(|known| known.contains(&number)) {
                let expected = "one that NVIDIA's SDK names".to_owned();
                return Err(reader.field("opaque field type", 2, expected, u64::from(number)));
            }
            let length = usize::from(reader.u16("opaque field length")?);
            let value = reader.take("opaque field", length)?;
            check_length(number, value, offset)?;
            if fields.insert(number, value.to_vec()).is_some() {
                return Err(ReportError::Duplicate {
                    field: "opaque field",
                    number,
                    offset,
                });
            }
        }
        reader.at("opaque data", stated)?;
        Ok(Self(fields))
    }

    /// Types and values, in order of the types.
    pub fn fields(&self) -> impl Iterator<Item = (u16, &[u8])> {
        self.0.iter().map(|(number, value)| (*number, value.as_slice()))
    }

    /// The driver's version, for example `550.90.07`; NVSwitches have none.
    pub fn driver_version(&self) -> Option<String> {
        self.text(field::DRIVER_VERSION)
    }

    /// The firmware's version in the form of the RIM files, for example `96.00.9F.00.01`.
    ///
    /// A GPU gives eight bytes, the number in reverse order: `01` is byte 4, `96.00.9F.00` are bytes 3 to 0. A
    /// switch gives the text.
    pub fn firmware_version(&self) -> Option<String> {
        let value = self.0.get(&field::VBIOS_VERSION)?;
        let Ok([last, third, second, first, minor, 0, 0, 0]) = <[u8; 8]>::try_from(value.as_slice()) else {
            return printable(value);
        };
        Some(format!(
            "{first:02X}.{second:02X}.{third:02X}.{last:02X}.{minor:02X}"
        ))
    }

    /// Project, project SKU and chip SKU, which with the firmware's version name its RIM file.
    pub fn board(&self) -> Option<[String; 3]> {
        let [project, project_sku, chip_sku] =
            [field::PROJECT, field::PROJECT_SKU, field::CHIP_SKU].map(|number| self.text(number));
        Some([project?, project_sku?, chip_sku?])
    }

    /// The chip in the name of a Blackwell driver's RIM file; older drivers do not say and mean `GB100`.
    pub fn chip_info(&self) -> Option<String> {
        self.text(field::CHIP_INFO)
    }

    /// Digest of the firmware that holds the attestation key, which the leaf certificate states too.
    pub fn fwid(&self) -> Option<&[u8]> {
        self.0.get(&field::FWID).map(Vec::as_slice)
    }

    /// Whether the first video decoder is there; measurement 35 of the RIM is only meaningful if it is.
    pub fn nvdec0(&self) -> Option<UnitStatus> {
        self.status(field::NVDEC0_STATUS)
    }

    /// Whether the GPU is in protected-PCIe mode.
    pub fn protected_pcie(&self) -> Option<UnitStatus> {
        self.status(field::PROTECTED_PCIE_STATUS)
    }

    /// A GPU's links: the identifiers of its switches, which it gives in reverse order of their bytes.
    pub fn switch_pdis(&self) -> Vec<String> {
        self.identifiers(field::PDIS, |pdi| pdi.iter().rev().copied().collect())
    }

    /// A switch's own identifier.
    pub fn device_pdis(&self) -> Vec<String> {
        self.identifiers(field::PDIS, <[u8]>::to_vec)
    }

    /// A switch's links: the identifiers of its GPUs.
    pub fn gpu_pdis(&self) -> Vec<String> {
        self.identifiers(field::SWITCH_GPU_PDIS, <[u8]>::to_vec)
    }

    /// The mode flag, or the number that is none. Only version 1 of the opaque data has it.
    pub fn mode(&self) -> Result<GpuMode, u64> {
        if self.number(field::OPAQUE_DATA_VERSION).unwrap_or(0) == 0 {
            return Ok(GpuMode::Unreported);
        }
        match self.number(field::FEATURE_FLAG) {
            None => Ok(GpuMode::Unreported),
            Some(0) => Ok(GpuMode::MultiGpu),
            Some(1) => Ok(GpuMode::SingleGpu),
            Some(2) => Ok(GpuMode::ProtectedPcie),
            Some(unknown) => Err(unknown),
        }
    }

    fn text(&self, number: u16) -> Option<String> {
        printable(self.0.get(&number)?)
    }

    fn status(&self, number: u16) -> Option<UnitStatus> {
        match self.0.get(&number)?.as_slice() {
            [ENABLED] => Some(UnitStatus::Enabled),
            [DISABLED] => Some(UnitStatus::Disabled),
            _ => None,
        }
    }

    fn number(&self, number: u16) -> Option<u64> {
        self.0.get(&number).map(|value| little_endian(value))
    }

    fn identifiers(&self, number: u16, order: fn(&[u8]) -> Vec<u8>) -> Vec<String> {
        let value = self.0.get(&number).map_or(&[][..], Vec::as_slice);
        let mut identifiers: Vec<_> = value
            .chunks_exact(PDI_BYTES)
            .map(|pdi| hex::encode(order(pdi)))
            .collect();
        identifiers.sort_unstable();
        identifiers.dedup();
        identifiers
    }
}

/// Lengths that the accessors rely on, and the version above which a known type may mean something else.
fn check_length(number: u16, value: &[u8], offset: usize) -> Result<(), ReportError> {
    let length = value.len();
    let (fits, expected) = match number {
        field::NVDEC0_STATUS | field::PROTECTED_PCIE_STATUS => (length == 1, "1".to_owned()),
        field::FWID => (length == MEASUREMENT_BYTES, MEASUREMENT_BYTES.to_string()),
        field::MEASUREMENT_COUNTS => (length.is_multiple_of(4), "a multiple of 4".to_owned()),
        field::PDIS | field::SWITCH_GPU_PDIS => (
            length.is_multiple_of(PDI_BYTES),
            format!("a multiple of {PDI_BYTES}"),
        ),
        field::OPAQUE_DATA_VERSION | field::FEATURE_FLAG => (length <= 8, "at most 8".to_owned()),
        _ => (true, String::new()),
    };
    if !fits {
        let (field, offset, actual) = ("opaque field length", offset + 2, length as u64);
        return Err(ReportError::Field {
            field,
            offset,
            expected,
            actual,
        });
    }
    if number == field::OPAQUE_DATA_VERSION && little_endian(value) > OPAQUE_DATA_VERSION_MAX {
        let (field, offset, actual) = ("opaque data version", offset + 4, little_endian(value));
        let expected = format!("at most {OPAQUE_DATA_VERSION_MAX}");
        return Err(ReportError::Field {
            field,
            offset,
            expected,
            actual,
        });
    }
    Ok(())
}

fn little_endian(value: &[u8]) -> u64 {
    value
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Text without the zeros that pad it; `None` unless it is printable ASCII.
fn printable(value: &[u8]) -> Option<String> {
    let length = value
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    let text = &value[..length];
    let fits = !text.is_empty() && text.iter().all(u8::is_ascii_graphic);
    fits.then(|| text.iter().map(|byte| char::from(*byte)).collect())
}
