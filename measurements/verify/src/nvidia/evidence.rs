//! The forms in which evidence of NVIDIA devices comes: the bytes of one report, their hexadecimal text, or the
//! JSON of NVIDIA's tools with the report and the certificate chain of each device.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::certificate::{CertificateError, read_certificates};
use super::spdm::{NONCE_BYTES, REPORT_BYTES_MAX};

/// Most bytes of evidence: a few KiB for each device.
pub const EVIDENCE_BYTES_MAX: usize = 2 << 20;
/// Most devices: more than the GPUs and switches of the largest machine.
pub const DEVICES_MAX: usize = 64;

/// Why bytes are not evidence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// More than [`EVIDENCE_BYTES_MAX`].
    #[error("{bytes} bytes, but evidence has at most {EVIDENCE_BYTES_MAX}")]
    TooLong {
        /// How many there are.
        bytes: usize,
    },
    /// Nothing but white space.
    #[error("is empty")]
    Empty,
    /// Not hexadecimal digits.
    #[error("offset {offset} is not a hexadecimal digit")]
    Hex {
        /// Where.
        offset: usize,
    },
    /// An odd number of hexadecimal digits.
    #[error("ends in the middle of a byte: {digits} hexadecimal digits")]
    OddHex {
        /// How many there are.
        digits: usize,
    },
    /// Not the JSON of NVIDIA's tools.
    #[error("is not evidence in JSON: {0}")]
    Json(String),
    /// No device, or too many.
    #[error("has {0} devices, not 1 to {DEVICES_MAX}")]
    Devices(usize),
    /// A field of a device does not decode.
    #[error("device {device}: {field} is not {expected}")]
    Field {
        /// Which device, from 0.
        device: usize,
        /// Which field.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// The certificates of a device.
    #[error("device {device}: certificate: {error}")]
    Certificates {
        /// Which device, from 0.
        device: usize,
        /// Why.
        error: CertificateError,
    },
}

/// What one device presented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceEvidence {
    /// Its report, see [`super::Report`].
    pub report: Vec<u8>,
    /// Its certificate chain, leaf first, DER; only JSON has one.
    pub certificates: Option<Vec<Vec<u8>>>,
    /// The architecture that the JSON names.
    pub architecture: Option<String>,
    /// The nonce that the JSON names.
    pub nonce: Option<[u8; NONCE_BYTES]>,
}

/// Reads evidence in any of its forms.
///
/// A report starts with the byte 0x11, hexadecimal text with a digit, JSON with a bracket; none can be mistaken
/// for another.
pub fn read_evidence(bytes: &[u8]) -> Result<Vec<DeviceEvidence>, EvidenceError> {
    if bytes.len() > EVIDENCE_BYTES_MAX {
        return Err(EvidenceError::TooLong { bytes: bytes.len() });
    }
    let report_alone = |report| {
        vec![DeviceEvidence {
            report,
            certificates: None,
            architecture: None,
            nonce: None,
        }]
    };
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => Err(EvidenceError::Empty),
        Some(first @ (b'[' | b'{')) => read_json(bytes, *first == b'['),
        Some(first) if first.is_ascii_hexdigit() => read_hex(bytes).map(report_alone),
        Some(_) => Ok(report_alone(bytes.to_vec())),
    }
}

fn read_hex(bytes: &[u8]) -> Result<Vec<u8>, EvidenceError> {
    let is_foreign = |byte: &u8| !byte.is_ascii_hexdigit() && !byte.is_ascii_whitespace();
    if let Some(offset) = bytes.iter().position(is_foreign) {
        return Err(EvidenceError::Hex { offset });
    }
    let digits: Vec<_> = bytes.iter().copied().filter(u8::is_ascii_hexdigit).collect();
    hex::decode(&digits).map_err(|_| EvidenceError::OddHex { digits: digits.len() })
}

/// One device as NVIDIA's attestation SDK serialises it; other keys are not evidence and are not read.
#[derive(Deserialize)]
struct JsonDevice {
    arch: String,
    nonce: String,
    evidence: String,
    certificate: String,
}

/// What `nvattest collect-evidence` prints.
#[derive(Deserialize)]
struct JsonCollected {
    evidences: Vec<JsonDevice>,
}

fn read_json(bytes: &[u8], is_list: bool) -> Result<Vec<DeviceEvidence>, EvidenceError> {
    let parsed = if is_list {
        serde_json::from_slice(bytes)
    } else {
        serde_json::from_slice(bytes)
            .map(|JsonCollected { evidences }| evidences)
            .or_else(|_| serde_json::from_slice(bytes).map(|device| vec![device]))
    };
    let devices: Vec<JsonDevice> = parsed.map_err(|error| EvidenceError::Json(error.to_string()))?;
    match devices.len() {
        1..=DEVICES_MAX => devices
            .iter()
            .enumerate()
            .map(|(index, device)| read_device(index, device))
            .collect(),
        count => Err(EvidenceError::Devices(count)),
    }
}

fn read_device(device: usize, json: &JsonDevice) -> Result<DeviceEvidence, EvidenceError> {
    let field = |field, expected| EvidenceError::Field {
        device,
        field,
        expected,
    };
    let report = STANDARD
        .decode(&json.evidence)
        .map_err(|_| field("evidence", "base64"))?;
    if report.len() > REPORT_BYTES_MAX {
        return Err(field("evidence", "at most 16 KiB"));
    }
    let certificates = STANDARD
        .decode(&json.certificate)
        .map_err(|_| field("certificate", "base64"))?;
    let certificates =
        read_certificates(&certificates).map_err(|error| EvidenceError::Certificates { device, error })?;
    let mut nonce = [0; NONCE_BYTES];
    hex::decode_to_slice(&json.nonce, &mut nonce).map_err(|_| field("nonce", "32 bytes in hexadecimal"))?;
    Ok(DeviceEvidence {
        report,
        certificates: Some(certificates),
        architecture: Some(json.arch.clone()),
        nonce: Some(nonce),
    })
}
