//! The layout of a quote: Intel TDX DCAP Quote Generation Library and Quote Verification Library, appendix A.3
//! ("version 4 quote format") and A.4 ("version 5"), and Intel SGX ECDSA QuoteLibReference, appendix A.4 (version 3).
//!
//! Every byte is accounted for: nested lengths must add up, and nothing may follow. The one exception that
//! [`Quote::parse`] knows is named: [`QUOTING_PADDING_BYTES`].

use super::report::{BodyKind, ENCLAVE_REPORT_BYTES, EnclaveReport, TdReport};

/// A longer quote is refused before it is parsed. Real ones have 5 to 8 KiB.
pub const QUOTE_BYTES_MAX: usize = 16 * 1024;

/// Intel's quoting service sizes its answer for a TD report 1.5; a version 4 quote, whose body is 70 bytes
/// (648 + 6 - 584) shorter, comes with exactly so many zero bytes after it. [`Quote::parse`] accepts these or none,
/// [`Quote::parse_unpadded`] only none.
pub const QUOTING_PADDING_BYTES: usize = 70;

const HEADER_BYTES: usize = 48;
const KEY_TYPE_ECDSA_P256: u16 = 2;
const TEE_TYPE_SGX: u32 = 0;
const TEE_TYPE_TDX: u32 = 0x81;
const INTEL_QE_VENDOR_ID: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];
const CERT_DATA_PCK_CHAIN: u16 = 5;
const CERT_DATA_QE_REPORT: u16 = 6;

/// Why bytes are not a quote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// Over the limit.
    #[error("{0} bytes, at most {QUOTE_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// It ends too early.
    #[error("byte {offset}: {what} needs {needed} bytes, {left} are left")]
    Truncated {
        /// Where the field begins.
        offset: usize,
        /// Which field.
        what: &'static str,
        /// Its length.
        needed: usize,
        /// What there is.
        left: usize,
    },
    /// A field has a value that no supported quote has.
    #[error("byte {offset}: {what} is {found}, expected {expected}")]
    Value {
        /// Where the field is.
        offset: usize,
        /// Which field.
        what: &'static str,
        /// What it has.
        found: String,
        /// What it has to have.
        expected: &'static str,
    },
    /// A length does not agree with what it contains.
    #[error("byte {offset}: {what} says {found} bytes, its contents have {expected}")]
    Extent {
        /// Where the length is.
        offset: usize,
        /// Whose length.
        what: &'static str,
        /// What it says.
        found: usize,
        /// What it has to say.
        expected: usize,
    },
    /// Something follows that no signature covers.
    #[error("byte {offset}: {bytes} bytes follow the quote")]
    Trailing {
        /// Where the quote ends.
        offset: usize,
        /// How many.
        bytes: usize,
    },
}

/// A quote that is well formed; nothing in it is authentic yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quote<'a> {
    version: u16,
    qe_id: &'a [u8; 16],
    kind: BodyKind,
    body: &'a [u8],
    signed: &'a [u8],
    signature: &'a [u8; 64],
    attestation_key: &'a [u8; 64],
    qe_report: EnclaveReport<'a>,
    qe_report_signature: &'a [u8; 64],
    qe_authentication: &'a [u8],
    pck_chain: &'a [u8],
    padding_bytes: usize,
}

impl<'a> Quote<'a> {
    /// Reads a quote as a platform hands it out: nothing follows it, or the padding of Intel's quoting service.
    ///
    /// # Errors
    /// Says what is wrong at which offset.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, QuoteError> {
        let (quote, rest) = Self::parse_front(bytes)?;
        let padded = quote.version == 4
            && quote.kind == BodyKind::Td10
            && rest.len() == QUOTING_PADDING_BYTES
            && rest.iter().all(|byte| *byte == 0);
        let padding_bytes = rest.len();
        if rest.is_empty() || padded {
            Ok(Self {
                padding_bytes,
                ..quote
            })
        } else {
            Err(trailing(bytes, rest))
        }
    }

    /// Reads a quote that nothing at all follows.
    ///
    /// # Errors
    /// Says what is wrong at which offset.
    pub fn parse_unpadded(bytes: &'a [u8]) -> Result<Self, QuoteError> {
        match Self::parse_front(bytes)? {
            (quote, []) => Ok(quote),
            (_, rest) => Err(trailing(bytes, rest)),
        }
    }

    fn parse_front(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), QuoteError> {
        if bytes.len() > QUOTE_BYTES_MAX {
            return Err(QuoteError::TooLarge(bytes.len()));
        }
        let mut reader = Reader { bytes, offset: 0 };
        let header = Header::read(&mut reader)?;
        let kind = body_kind(&mut reader, &header)?;
        let body = reader.take(kind.bytes(), kind.name())?;
        let signed = &bytes[..reader.offset];
        let length = reader.length_u32("the authentication data's length")?;
        let signature = reader.array("the quote's signature")?;
        let attestation_key = reader.array("the attestation key")?;
        let certification = match header.version {
            3 => None,
            _ => {
                reader.cert_data(CERT_DATA_QE_REPORT, "6 (QE report)")?;
                Some(reader.length_u32("the certification data's length")?)
            }
        };
        let qe_report = EnclaveReport(reader.array("the QE report")?);
        let qe_report_signature = reader.array("the QE report's signature")?;
        let authentication_bytes = u16::from_le_bytes(*reader.array("the QE authentication data's length")?);
        let qe_authentication =
            reader.take(usize::from(authentication_bytes), "the QE authentication data")?;
        reader.cert_data(CERT_DATA_PCK_CHAIN, "5 (PCK certificate chain)")?;
        let chain = reader.length_u32("the PCK certificate chain's length")?;
        let pck_chain = reader.take(chain.value, "the PCK certificate chain")?;
        for length in certification.iter().chain([&length]) {
            length.check(reader.offset)?;
        }
        let quote = Self {
            version: header.version,
            qe_id: header.qe_id,
            kind,
            body,
            signed,
            signature,
            attestation_key,
            qe_report,
            qe_report_signature,
            qe_authentication,
            pck_chain,
            padding_bytes: 0,
        };
        Ok((quote, &bytes[reader.offset..]))
    }

    /// 3, 4 or 5.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// What it is about.
    pub fn kind(&self) -> BodyKind {
        self.kind
    }

    /// Which quoting enclave on which platform: the first 16 bytes of the header's user data.
    pub fn qe_id(&self) -> &'a [u8; 16] {
        self.qe_id
    }

    /// The TD report; `None` in an SGX quote.
    pub fn td_report(&self) -> Option<TdReport<'a>> {
        TdReport::new(self.kind, self.body)
    }

    /// The enclave's report of an SGX quote.
    pub fn enclave_report(&self) -> Option<EnclaveReport<'a>> {
        let report: &[u8; ENCLAVE_REPORT_BYTES] = self.body.try_into().ok()?;
        (self.kind == BodyKind::SgxEnclave).then_some(EnclaveReport(report))
    }

    /// What the attestation key signs: header and body.
    pub fn signed(&self) -> &'a [u8] {
        self.signed
    }

    /// Over [`Self::signed`]: r and s.
    pub fn signature(&self) -> &'a [u8; 64] {
        self.signature
    }

    /// P-256: x and y.
    pub fn attestation_key(&self) -> &'a [u8; 64] {
        self.attestation_key
    }

    /// The quoting enclave's report, which vouches for the attestation key.
    pub fn qe_report(&self) -> EnclaveReport<'a> {
        self.qe_report
    }

    /// By the PCK, over the QE report: r and s.
    pub fn qe_report_signature(&self) -> &'a [u8; 64] {
        self.qe_report_signature
    }

    /// What the QE report binds beside the attestation key.
    pub fn qe_authentication(&self) -> &'a [u8] {
        self.qe_authentication
    }

    /// The certificates as they stand in the quote.
    pub fn pck_chain(&self) -> &'a [u8] {
        self.pck_chain
    }

    /// 0 or [`QUOTING_PADDING_BYTES`].
    pub fn padding_bytes(&self) -> usize {
        self.padding_bytes
    }
}

fn trailing(bytes: &[u8], rest: &[u8]) -> QuoteError {
    QuoteError::Trailing {
        offset: bytes.len() - rest.len(),
        bytes: rest.len(),
    }
}

struct Header<'a> {
    version: u16,
    tee_type: u32,
    qe_id: &'a [u8; 16],
}

impl<'a> Header<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, QuoteError> {
        let header: &'a [u8; HEADER_BYTES] = reader.array("the quote header")?;
        let value = |offset, what, found: String, expected| {
            Err(QuoteError::Value {
                offset,
                what,
                found,
                expected,
            })
        };
        let version = u16::from_le_bytes([header[0], header[1]]);
        if !(3..=5).contains(&version) {
            return value(0, "the quote version", version.to_string(), "3, 4 or 5");
        }
        let key_type = u16::from_le_bytes([header[2], header[3]]);
        if key_type != KEY_TYPE_ECDSA_P256 {
            return value(
                2,
                "the attestation key type",
                key_type.to_string(),
                "2 (ECDSA P-256)",
            );
        }
        let tee_type = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        match (version, tee_type) {
            (3, TEE_TYPE_SGX) | (4 | 5, TEE_TYPE_TDX) => {}
            (3, _) => return value(4, "the TEE type", format!("{tee_type:#x}"), "0x0 (SGX)"),
            _ => return value(4, "the TEE type", format!("{tee_type:#x}"), "0x81 (TDX)"),
        }
        // Version 3 has the security versions of QE and PCE here.
        if version != 3 && header[8..12] != [0; 4] {
            return value(8, "a reserved field", hex::encode(&header[8..12]), "zero");
        }
        if header[12..28] != INTEL_QE_VENDOR_ID {
            return value(12, "the QE vendor", hex::encode(&header[12..28]), "Intel's");
        }
        let qe_id = header[28..44].try_into().expect("16 bytes");
        Ok(Self {
            version,
            tee_type,
            qe_id,
        })
    }
}

/// Version 5 says which body follows, in 6 bytes.
fn body_kind(reader: &mut Reader<'_>, header: &Header<'_>) -> Result<BodyKind, QuoteError> {
    match header.version {
        3 => return Ok(BodyKind::SgxEnclave),
        4 => return Ok(BodyKind::Td10),
        _ => {}
    }
    let offset = reader.offset;
    let number = u16::from_le_bytes(*reader.array("the body type")?);
    let kind = BodyKind::of_type(number)
        .filter(|kind| (*kind == BodyKind::SgxEnclave) == (header.tee_type == TEE_TYPE_SGX));
    let kind = kind.ok_or_else(|| QuoteError::Value {
        offset,
        what: "the body type",
        found: number.to_string(),
        expected: "2, 3 or 4 (TD report 1.0, 1.5 or 1.5 ex)",
    })?;
    let length = reader.length_u32("the body's length")?;
    length.check(length.from + kind.bytes())?;
    Ok(kind)
}

/// A length that the quote states, and where that starts to count.
struct Length {
    offset: usize,
    from: usize,
    value: usize,
    what: &'static str,
}

impl Length {
    /// `end`: where the contents really end.
    fn check(&self, end: usize) -> Result<(), QuoteError> {
        let expected = end - self.from;
        if self.value == expected {
            return Ok(());
        }
        Err(QuoteError::Extent {
            offset: self.offset,
            what: self.what,
            found: self.value,
            expected,
        })
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], QuoteError> {
        let left = self.bytes.len() - self.offset;
        if length > left {
            return Err(QuoteError::Truncated {
                offset: self.offset,
                what,
                needed: length,
                left,
            });
        }
        let taken = &self.bytes[self.offset..self.offset + length];
        self.offset += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<&'a [u8; N], QuoteError> {
        let taken = self.take(N, what)?;
        Ok(taken
            .try_into()
            .expect("take() gives as many bytes as it is asked for"))
    }

    fn length_u32(&mut self, what: &'static str) -> Result<Length, QuoteError> {
        let offset = self.offset;
        let value = u32::from_le_bytes(*self.array(what)?);
        Ok(Length {
            offset,
            from: self.offset,
            // A length that this machine cannot count cannot be right either.
            value: usize::try_from(value).unwrap_or(usize::MAX),
            what,
        })
    }

    fn cert_data(&mut self, kind: u16, expected: &'static str) -> Result<(), QuoteError> {
        let offset = self.offset;
        let found = u16::from_le_bytes(*self.array("the certification data's type")?);
        if found == kind {
            return Ok(());
        }
        Err(QuoteError::Value {
            offset,
            what: "the certification data's type",
            found: found.to_string(),
            expected,
        })
    }
}
