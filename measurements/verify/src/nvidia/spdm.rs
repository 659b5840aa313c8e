//! The report of an NVIDIA device: an SPDM GET_MEASUREMENTS request, the MEASUREMENTS response to it and the
//! device's signature over both, one after the other.
//!
//! Layout: DMTF DSP0274 1.1.0, section 10.11 (tables "GET_MEASUREMENTS request message format" and "Successful
//! MEASUREMENTS response message format") and 10.11.1 (measurement block). Integers are little-endian. Every byte
//! of the request and the response is signed, and nothing follows the signature; so the parser takes exactly the
//! form that NVIDIA's devices send and refuses any other, with the offset at which it differs.

use std::collections::BTreeMap;

use super::opaque::OpaqueData;

/// Most bytes of a report: 254 measurement blocks and the opaque data that DSP0274 allows are below 16 KiB.
pub const REPORT_BYTES_MAX: usize = 16 << 10;

/// Bytes of a nonce, the requester's and the device's.
pub const NONCE_BYTES: usize = 32;

/// Bytes of one measurement: SHA-384.
pub const MEASUREMENT_BYTES: usize = 48;

/// Bytes of the signature: r and s of ECDSA P-384, 48 bytes each.
const SIGNATURE_BYTES: usize = 96;

const SPDM_VERSION_1_1: u8 = 0x11;
const GET_MEASUREMENTS: u8 = 0xe0;
const MEASUREMENTS: u8 = 0x60;
/// Request attributes: bit 0 asks for a signature; the others are reserved.
const WITH_SIGNATURE: u8 = 0x01;
/// Measurement operation: all measurements.
const ALL_MEASUREMENTS: u8 = 0xff;
/// Of the certificate chains that a device may hold, NVIDIA's is in the first slot.
const SLOT: u8 = 0;
/// Measurement specification, bit 0: the block has DMTF's format.
const DMTF_SPECIFICATION: u8 = 0x01;
/// Type and length of a DMTF measurement come before its value.
const DMTF_HEADER_BYTES: u16 = 3;
/// DSP0274 1.1 defines types 0 to 4; bit 7 would mark a value that is not a digest.
const MEASUREMENT_TYPE_MAX: u8 = 4;
/// Index 255 stands for all measurements in a request and names none.
const MEASUREMENT_INDEX_MAX: u8 = 254;
/// "OpaqueLength: the value should not be greater than 1024 bytes".
const OPAQUE_BYTES_MAX: usize = 1024;

/// Why bytes are not a report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// More than [`REPORT_BYTES_MAX`].
    #[error("{bytes} bytes, but a report has at most {REPORT_BYTES_MAX}")]
    TooLong {
        /// How many there are.
        bytes: usize,
    },
    /// The bytes end inside a field.
    #[error("ends at offset {end}, inside {field} (offset {offset}, {needed} bytes)")]
    Truncated {
        /// Which field.
        field: &'static str,
        /// Where it starts.
        offset: usize,
        /// How long it is.
        needed: usize,
        /// How many bytes there are.
        end: usize,
    },
    /// A field has a value that NVIDIA's devices never send.
    #[error("{field} at offset {offset} is {actual}, not {expected}")]
    Field {
        /// Which field.
        field: &'static str,
        /// Where it is.
        offset: usize,
        /// What it should be.
        expected: String,
        /// What it is.
        actual: u64,
    },
    /// Two measurement blocks or opaque fields with the same number.
    #[error("{field} {number} at offset {offset} is there for the second time")]
    Duplicate {
        /// Which field.
        field: &'static str,
        /// Its index or type.
        number: u16,
        /// Where the second one is.
        offset: usize,
    },
    /// A list does not fill the bytes that its length states.
    #[error("{field} ends at offset {end}, but its stated length ends at {stated}")]
    Length {
        /// Which field.
        field: &'static str,
        /// Where its last element ends.
        end: usize,
        /// Where it should.
        stated: usize,
    },
    /// Bytes after the signature, which nothing covers.
    #[error("{count} bytes follow the signature at offset {offset}")]
    Trailing {
        /// Where they start.
        offset: usize,
        /// How many they are.
        count: usize,
    },
}

/// A report that has the right form. Nothing in it is true until its signature is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report<'a> {
    /// The requester's nonce, which makes the report fresh.
    pub nonce: [u8; NONCE_BYTES],
    /// The device's own nonce.
    pub device_nonce: [u8; NONCE_BYTES],
    /// Measurements by SPDM index, from 1. NVIDIA's RIM files count from 0.
    pub measurements: BTreeMap<u8, [u8; MEASUREMENT_BYTES]>,
    /// NVIDIA's typed fields.
    pub opaque: OpaqueData,
    /// What the device signed: request and response without the signature.
    pub signed: &'a [u8],
    /// r and s, big-endian, 48 bytes each.
    pub signature: [u8; SIGNATURE_BYTES],
}

impl<'a> Report<'a> {
    /// Takes a whole report apart.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ReportError> {
        if bytes.len() > REPORT_BYTES_MAX {
            return Err(ReportError::TooLong { bytes: bytes.len() });
        }
        let mut reader = Reader::new(bytes);
        let nonce = read_request(&mut reader)?;
        let (blocks, record_bytes) = read_response_header(&mut reader)?;
        let measurements = read_measurements(&mut reader, blocks, record_bytes)?;
        let device_nonce = reader.array("device nonce")?;
        let opaque_bytes = reader.u16("opaque length")?;
        if usize::from(opaque_bytes) > OPAQUE_BYTES_MAX {
            let expected = format!("at most {OPAQUE_BYTES_MAX}");
            return Err(reader.field("opaque length", 2, expected, u64::from(opaque_bytes)));
        }
        let opaque = OpaqueData::read(&mut reader, usize::from(opaque_bytes))?;
        let signed = &bytes[..reader.offset];
        let signature = reader.array("signature")?;
        reader.end()?;
        Ok(Self {
            nonce,
            device_nonce,
            measurements,
            opaque,
            signed,
            signature,
        })
    }
}

/// Version, code, attributes, operation, nonce, slot: 37 bytes.
fn read_request(reader: &mut Reader<'_>) -> Result<[u8; NONCE_BYTES], ReportError> {
    reader.constant("request SPDM version", SPDM_VERSION_1_1)?;
    reader.constant("request code", GET_MEASUREMENTS)?;
    reader.constant("request attributes", WITH_SIGNATURE)?;
    reader.constant("measurement operation", ALL_MEASUREMENTS)?;
    let nonce = reader.array("request nonce")?;
    reader.constant("request slot", SLOT)?;
    Ok(nonce)
}

/// Version, code, two parameters, number of blocks, length of the measurement record: 8 bytes.
fn read_response_header(reader: &mut Reader<'_>) -> Result<(u8, usize), ReportError> {
    reader.constant("response SPDM version", SPDM_VERSION_1_1)?;
    reader.constant("response code", MEASUREMENTS)?;
    reader.constant("response parameter 1", 0)?;
    reader.constant("response slot", SLOT)?;
    let blocks = reader.u8("number of blocks")?;
    let [low, middle, high] = reader.array("measurement record length")?;
    Ok((
        blocks,
        usize::from(low) | usize::from(middle) << 8 | usize::from(high) << 16,
    ))
}

fn read_measurements(
    reader: &mut Reader<'_>,
    blocks: u8,
    record_bytes: usize,
) -> Result<BTreeMap<u8, [u8; MEASUREMENT_BYTES]>, ReportError> {
    let stated = reader.offset + record_bytes;
    let mut measurements = BTreeMap::new();
    for _ in 0..blocks {
        let offset = reader.offset;
        let (index, value) = read_block(reader)?;
        if measurements.insert(index, value).is_some() {
            let number = u16::from(index);
            return Err(ReportError::Duplicate {
                field: "measurement",
                number,
                offset,
            });
        }
    }
    reader.at("measurement record", stated)?;
    Ok(measurements)
}

/// Index, specification, size, then DMTF's type, length and value.
fn read_block(reader: &mut Reader<'_>) -> Result<(u8, [u8; MEASUREMENT_BYTES]), ReportError> {
    let value_bytes = MEASUREMENT_BYTES as u16;
    let index = reader.u8("measurement index")?;
    if index == 0 || index > MEASUREMENT_INDEX_MAX {
        let expected = format!("1 to {MEASUREMENT_INDEX_MAX}");
        return Err(reader.field("measurement index", 1, expected, u64::from(index)));
    }
    reader.constant("measurement specification", DMTF_SPECIFICATION)?;
    reader.constant_u16("measurement size", DMTF_HEADER_BYTES + value_bytes)?;
    let kind = reader.u8("measurement type")?;
    if kind > MEASUREMENT_TYPE_MAX {
        let expected = format!("a digest of type 0 to {MEASUREMENT_TYPE_MAX}");
        return Err(reader.field("measurement type", 1, expected, u64::from(kind)));
    }
    reader.constant_u16("measurement value size", value_bytes)?;
    Ok((index, reader.array("measurement value")?))
}

/// Reads fields one after the other and knows where it is.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    pub(super) offset: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    pub(super) fn take(&mut self, field: &'static str, needed: usize) -> Result<&'a [u8], ReportError> {
        let (offset, end) = (self.offset, self.bytes.len());
        let taken = self.bytes[offset..].get(..needed);
        self.offset += needed;
        taken.ok_or(ReportError::Truncated {
            field,
            offset,
            needed,
            end,
        })
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], ReportError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N)?);
        Ok(array)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, ReportError> {
        self.array(field).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, ReportError> {
        self.array(field).map(u16::from_le_bytes)
    }

    fn constant(&mut self, field: &'static str, expected: u8) -> Result<(), ReportError> {
        match self.u8(field)? {
            actual if actual == expected => Ok(()),
            actual => Err(self.field(field, 1, format!("{expected}"), u64::from(actual))),
        }
    }

    fn constant_u16(&mut self, field: &'static str, expected: u16) -> Result<(), ReportError> {
        match self.u16(field)? {
            actual if actual == expected => Ok(()),
            actual => Err(self.field(field, 2, format!("{expected}"), u64::from(actual))),
        }
    }

    /// The error about the field of `size` bytes that was just read.
    pub(super) fn field(
        &self,
        field: &'static str,
        size: usize,
        expected: String,
        actual: u64,
    ) -> ReportError {
        let offset = self.offset - size;
        ReportError::Field {
            field,
            offset,
            expected,
            actual,
        }
    }

    pub(super) fn at(&self, field: &'static str, stated: usize) -> Result<(), ReportError> {
        let end = self.offset;
        (end == stated)
            .then_some(())
            .ok_or(ReportError::Length { field, end, stated })
    }

    fn end(&self) -> Result<(), ReportError> {
        let (offset, count) = (self.offset, self.bytes.len() - self.offset);
        (count == 0)
            .then_some(())
            .ok_or(ReportError::Trailing { offset, count })
    }
}
