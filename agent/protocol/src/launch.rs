//! The launch document: what the host asks the guest to run and at which prices. It comes from the host, is
//! measured byte by byte as the first RTMR3 event, and only then parsed.

use cocoon_evidence::Digest32;
use serde::{Deserialize, Serialize};

use crate::{AccountAddress, ContractCode, NetworkId, TokenCounts};

/// A longer document is refused before it is measured.
pub const LAUNCH_DOCUMENT_BYTES_MAX: usize = 8 * 1024;

const VERSION: u32 = 1;

/// The launch document, version 1, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchDocument {
    /// 1.
    pub version: u32,
    /// Which model, and how its volume is verified.
    pub model: ModelVolume,
    /// In which arithmetic it runs.
    pub numeric_profile: NumericProfile,
    /// What tokens cost.
    pub prices: Prices,
    /// What one request may ask for.
    pub limits: Limits,
    /// Where and how it is paid.
    pub settlement: Settlement,
}

/// A model volume: EROFS with its dm-verity tree behind it on the same disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelVolume {
    /// The model's name in OpenAI's API.
    pub name: String,
    /// How it is verified.
    pub verity: VerityVolume,
}

/// dm-verity parameters (format 1, SHA-256, data and hash blocks of 4096 bytes, no superblock).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerityVolume {
    /// Length of the data in blocks of 4096 bytes; the hash tree starts at this block of the same disk.
    pub data_blocks: u64,
    /// Hashed before every block.
    pub salt: Digest32,
    /// The root hash.
    pub root_hash: Digest32,
}

impl VerityVolume {
    /// Bytes in a data or hash block.
    pub const BLOCK_BYTES: u64 = 4096;

    /// The device-mapper target parameters for this volume on `device` (kernel documentation,
    /// admin-guide/device-mapper/verity.rst).
    pub fn table(&self, device: &str) -> String {
        let Self {
            data_blocks,
            salt,
            root_hash,
        } = self;
        format!("1 {device} {device} 4096 4096 {data_blocks} {data_blocks} sha256 {root_hash} {salt}")
    }

    /// Length of the verified device in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.data_blocks.saturating_mul(Self::BLOCK_BYTES / 512)
    }
}

/// The arithmetic of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NumericProfile {
    /// 32-bit floats; bf16 weights are widened.
    F32,
    /// Brain floats.
    Bf16,
}

/// Prices in nanoTON for 1000 tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// For 1000 prompt tokens.
    pub input_nano_per_kilotoken: u32,
    /// For 1000 generated tokens.
    pub output_nano_per_kilotoken: u32,
}

impl Prices {
    /// The price of `counts` in nanoTON, rounded down once over the sum; `None` on overflow. The contract
    /// computes the same: `(input * price_in + output * price_out) / 1000`.
    pub fn amount_nano(&self, counts: TokenCounts) -> Option<u64> {
        let input = u128::from(counts.input) * u128::from(self.input_nano_per_kilotoken);
        let output = u128::from(counts.output) * u128::from(self.output_nano_per_kilotoken);
        u64::try_from((input + output) / 1000).ok()
    }
}

/// Bounds on one request and on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Prompt and answer together, tokens.
    pub context_tokens_max: u32,
    /// One answer, tokens.
    pub output_tokens_max: u32,
    /// Requests admitted at the same time; more are answered 429.
    pub requests_max: u32,
}

/// Where and how the provider is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settlement {
    /// Which chain.
    pub network: NetworkId,
    /// The provider's account.
    pub payout_address: AccountAddress,
    /// The deposit contract that grants must live in.
    pub contract_code: ContractCode,
}

/// Why bytes are not a launch document.
#[derive(Debug, thiserror::Error)]
pub enum LaunchDocumentError {
    /// Over [`LAUNCH_DOCUMENT_BYTES_MAX`].
    #[error("the launch document has {bytes} bytes, at most {LAUNCH_DOCUMENT_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not the JSON of [`LaunchDocument`].
    #[error("the launch document is not valid")]
    Malformed(#[source] serde_json::Error),
    /// A value out of range.
    #[error("the launch document's {field} is {found}, but has to be {rule}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What it may hold.
        rule: &'static str,
    },
}

impl LaunchDocument {
    /// Parses and checks. The agent calls this only after the bytes are in RTMR3.
    ///
    /// # Errors
    /// See [`LaunchDocumentError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, LaunchDocumentError> {
        if bytes.len() > LAUNCH_DOCUMENT_BYTES_MAX {
            return Err(LaunchDocumentError::TooLarge { bytes: bytes.len() });
        }
        let document: Self = serde_json::from_slice(bytes).map_err(LaunchDocumentError::Malformed)?;
        document.check()?;
        Ok(document)
    }

    fn check(&self) -> Result<(), LaunchDocumentError> {
        let Limits {
            context_tokens_max,
            output_tokens_max,
            requests_max,
        } = self.limits;
        let name = &self.model.name;
        let name_ok = (1..=128).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
        let rules: [(bool, &'static str, String, &'static str); 6] = [
            (self.version == VERSION, "version", self.version.to_string(), "1"),
            (
                name_ok,
                "model.name",
                format!("{name:?}"),
                "1 to 128 of A-Z a-z 0-9 - _ . /",
            ),
            (
                (1..=1 << 40).contains(&self.model.verity.data_blocks),
                "model.verity.data_blocks",
                self.model.verity.data_blocks.to_string(),
                "1 to 2^40",
            ),
            (
                (16..=1 << 20).contains(&context_tokens_max),
                "limits.context_tokens_max",
                context_tokens_max.to_string(),
                "16 to 2^20",
            ),
            (
                (1..=context_tokens_max).contains(&output_tokens_max),
                "limits.output_tokens_max",
                output_tokens_max.to_string(),
                "1 to limits.context_tokens_max",
            ),
            (
                (1..=4096).contains(&requests_max),
                "limits.requests_max",
                requests_max.to_string(),
                "1 to 4096",
            ),
        ];
        match rules.into_iter().find(|(ok, ..)| !ok) {
            None => Ok(()),
            Some((_, field, found, rule)) => Err(LaunchDocumentError::Value { field, found, rule }),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn document() -> LaunchDocument {
        LaunchDocument {
            version: 1,
            model: ModelVolume {
                name: "cocoon-demo".into(),
                verity: VerityVolume {
                    data_blocks: 100,
                    salt: Digest32::ZERO,
                    root_hash: Digest32::of(b"root"),
                },
            },
            numeric_profile: NumericProfile::F32,
            prices: Prices {
                input_nano_per_kilotoken: 1_000_000,
                output_nano_per_kilotoken: 3_000_000,
            },
            limits: Limits {
                context_tokens_max: 512,
                output_tokens_max: 128,
                requests_max: 4,
            },
            settlement: Settlement {
                network: NetworkId::LOCAL,
                payout_address: AccountAddress(Digest32::of(b"provider")),
                contract_code: ContractCode {
                    hash: Digest32::of(b"code"),
                    depth: 2,
                },
            },
        }
    }

    fn parse(document: &LaunchDocument) -> Result<LaunchDocument, LaunchDocumentError> {
        LaunchDocument::parse(&serde_json::to_vec(document).unwrap())
    }

    #[test]
    fn round_trips() {
        assert_eq!(parse(&document()).unwrap(), document());
    }

    #[test]
    fn values_out_of_range_are_named() {
        let refused = |change: fn(&mut LaunchDocument)| {
            let mut changed = document();
            change(&mut changed);
            parse(&changed).unwrap_err().to_string()
        };
        assert!(refused(|d| d.version = 2).contains("version is 2"));
        assert!(refused(|d| d.model.name = "a\nb".into()).contains("model.name"));
        assert!(refused(|d| d.model.verity.data_blocks = 0).contains("data_blocks"));
        assert!(refused(|d| d.limits.output_tokens_max = 513).contains("output_tokens_max"));
        assert!(refused(|d| d.limits.requests_max = 0).contains("requests_max"));
    }

    #[test]
    fn unknown_keys_and_giants_are_refused() {
        let text = serde_json::to_string(&document())
            .unwrap()
            .replacen('{', r#"{"extra":1,"#, 1);
        assert!(matches!(
            LaunchDocument::parse(text.as_bytes()),
            Err(LaunchDocumentError::Malformed(_))
        ));
        let giant = vec![b' '; LAUNCH_DOCUMENT_BYTES_MAX + 1];
        assert!(matches!(
            LaunchDocument::parse(&giant),
            Err(LaunchDocumentError::TooLarge { .. })
        ));
    }

    #[test]
    fn an_amount_is_rounded_once_and_overflow_is_told() {
        let prices = Prices {
            input_nano_per_kilotoken: 1_500,
            output_nano_per_kilotoken: 1_500,
        };
        assert_eq!(prices.amount_nano(TokenCounts { input: 1, output: 1 }), Some(3));
        assert_eq!(
            prices.amount_nano(TokenCounts {
                input: u64::MAX,
                output: u64::MAX
            }),
            None
        );
    }
}
