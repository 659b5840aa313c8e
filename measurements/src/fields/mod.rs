//! Evidence field by field: where each stands, what it holds and what its bits mean.
//!
//! This is for reading, not for judging: nothing is verified, a field may lie. Whether evidence is to be
//! believed is `cocoon-verify`'s work.

mod nvidia;
mod sgx;
mod snp;
mod tdx;

use cocoon_evidence::Digest48;
use serde::Serialize;

/// The version of the JSON form.
pub const QUOTE_SCHEMA: &str = "cocoon.quote/1";

/// Longer evidence is refused. Quotes have 5 to 8 KiB, GPU evidence with its certificates some 16 KiB.
pub const EVIDENCE_BYTES_MAX: usize = 1024 * 1024;

/// One field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Field {
    /// Where it starts, in bytes.
    pub offset: usize,
    /// Dotted: the structure it is part of, and its name there.
    pub name: String,
    /// Hexadecimal, in the order of the bytes.
    pub value: String,
    /// What it means; empty where there is nothing to add.
    pub meaning: String,
}

/// Evidence, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fields {
    /// [`QUOTE_SCHEMA`].
    pub schema: &'static str,
    /// `tdx-quote-v4`, `tdx-quote-v5`, `sgx-quote-v3`, `td-report`, `snp-report` or `nvidia-report`.
    pub format: &'static str,
    /// In the order of the bytes, without gaps.
    pub fields: Vec<Field>,
}

/// Why bytes are no evidence that is known here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldsError {
    /// Over [`EVIDENCE_BYTES_MAX`].
    #[error("the evidence has {bytes} bytes, at most {EVIDENCE_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// A field reaches over the end.
    #[error("the evidence ends inside {field} at offset {offset}: {needed} bytes needed, {left} left")]
    Truncated {
        /// Where the field starts.
        offset: usize,
        /// Which field.
        field: String,
        /// Its length.
        needed: usize,
        /// How many bytes there are.
        left: usize,
    },
    /// A field has a value that no known format has.
    #[error("the evidence is malformed at offset {offset}: {reason}")]
    Malformed {
        /// Where the field starts.
        offset: usize,
        /// What is wrong.
        reason: String,
    },
}

/// The measurements in a TDX quote or TD report. Claimed, not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimedRegisters {
    /// The firmware.
    pub mrtd: Digest48,
    /// RTMR0 to RTMR3.
    pub rtmrs: [Digest48; 4],
}

impl Fields {
    /// Takes evidence apart, after its first bytes have said what it is.
    ///
    /// # Errors
    /// See [`FieldsError`]; it names the offset.
    pub fn parse(bytes: &[u8]) -> Result<Self, FieldsError> {
        if bytes.len() > EVIDENCE_BYTES_MAX {
            return Err(FieldsError::TooLarge { bytes: bytes.len() });
        }
        let mut cursor = Cursor::new(bytes);
        let format = match bytes {
            [3..=5, 0, ..] if tdx::is_quote(bytes) => tdx::quote(&mut cursor)?,
            _ if snp::is_report(bytes) => snp::report(&mut cursor)?,
            _ if nvidia::is_report(bytes) => nvidia::report(&mut cursor)?,
            [0x81, ..] if bytes.len() == tdx::TD_REPORT_BYTES => tdx::td_report(&mut cursor)?,
            _ => {
                let reason = "neither a TDX or SGX quote, a TD report, an SNP report nor a GPU report".into();
                return Err(FieldsError::Malformed { offset: 0, reason });
            }
        };
        cursor.rest(
            "trailing",
            "not part of the structure: nothing covers these bytes",
        );
        Ok(Self {
            schema: QUOTE_SCHEMA,
            format,
            fields: cursor.fields,
        })
    }

    /// The measurements of a TDX quote or TD report; `None` for other evidence.
    pub fn registers(&self) -> Option<ClaimedRegisters> {
        let value = |name: &str| {
            let found = self
                .fields
                .iter()
                .find(|field| field.name.rsplit('.').next() == Some(name))?;
            found.value.parse().ok()
        };
        Some(ClaimedRegisters {
            mrtd: value("mrtd")?,
            rtmrs: [value("rtmr0")?, value("rtmr1")?, value("rtmr2")?, value("rtmr3")?],
        })
    }
}

/// One row of a table that describes a structure of fixed layout.
pub(crate) struct Row(
    /// The field's name.
    pub(crate) &'static str,
    /// Its length in bytes.
    pub(crate) usize,
    /// What its value means.
    pub(crate) fn(&[u8]) -> String,
);

/// Reads fields in turn.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    fields: Vec<Field>,
}

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            fields: Vec::new(),
        }
    }

    /// Reads one field.
    fn field(
        &mut self,
        name: String,
        needed: usize,
        meaning: impl FnOnce(&[u8]) -> String,
    ) -> Result<&'a [u8], FieldsError> {
        let offset = self.at;
        let left = self.bytes.len() - offset;
        let Some(value) = self.bytes[offset..].get(..needed) else {
            return Err(FieldsError::Truncated {
                offset,
                field: name,
                needed,
                left,
            });
        };
        self.fields.push(Field {
            offset,
            name,
            value: hex::encode(value),
            meaning: meaning(value),
        });
        self.at += needed;
        Ok(value)
    }

    /// Reads a structure of fixed layout.
    fn table(&mut self, structure: &str, rows: &[Row]) -> Result<(), FieldsError> {
        for Row(name, bytes, meaning) in rows {
            self.field(format!("{structure}.{name}"), *bytes, meaning)?;
        }
        Ok(())
    }

    /// Reads a little-endian number of `bytes` bytes that says how long or what the following is.
    fn number(&mut self, name: &str, bytes: usize) -> Result<usize, FieldsError> {
        let value = self.field(name.to_owned(), bytes, number)?;
        Ok(value
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// What is left, as one field; none if nothing is.
    fn rest(&mut self, name: &str, meaning: &str) {
        let left = self.bytes.len() - self.at;
        if left > 0 {
            let read = self.field(name.to_owned(), left, |_| meaning.to_owned());
            debug_assert!(read.is_ok());
        }
    }
}

/// No meaning beyond the bytes.
pub(crate) fn opaque(_: &[u8]) -> String {
    String::new()
}

/// A reserved field, which has to be zero.
pub(crate) fn reserved(value: &[u8]) -> String {
    match value.iter().all(|byte| *byte == 0) {
        true => "reserved".to_owned(),
        false => "reserved, but not zero".to_owned(),
    }
}

/// A little-endian number.
pub(crate) fn number(value: &[u8]) -> String {
    let number = value
        .iter()
        .rev()
        .take(16)
        .fold(0u128, |number, byte| number << 8 | u128::from(*byte));
    number.to_string()
}

/// Text if it is printable ASCII, with or without a NUL at the end.
pub(crate) fn text(value: &[u8]) -> String {
    let text = value.strip_suffix(b"\0").unwrap_or(value);
    if text.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        text.iter().map(|byte| char::from(*byte)).collect()
    } else {
        String::new()
    }
}

/// The names of the bits that are set.
pub(crate) fn bits(value: &[u8], names: &[(u32, &str)]) -> String {
    let number = value
        .iter()
        .rev()
        .fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let set = (0..64).filter(|bit| number >> bit & 1 == 1).map(|bit| {
        let name = names.iter().find(|(known, _)| *known == bit);
        name.map_or_else(|| format!("unknown bit {bit}"), |(_, name)| (*name).to_owned())
    });
    let set: Vec<_> = set.collect();
    if set.is_empty() {
        "no bit set".to_owned()
    } else {
        set.join(", ")
    }
}
