//! Receipts: what the client gets for an answer. They name counts and price in the clear and the content only
//! as HMACs under a key that the client alone is given, so that a receipt shown to somebody proves nothing
//! about the conversation unless the client hands over that key.

use std::fmt;

use cocoon_evidence::Digest32;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::ZeroizeOnDrop;

use crate::NetworkId;

const RECEIPT_TAG: &[u8] = b"cocoon-receipt-v1";

/// Counts of tokens, as the engine counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenCounts {
    /// Prompt tokens.
    pub input: u64,
    /// Generated tokens.
    pub output: u64,
}

impl TokenCounts {
    /// The sum; `None` on overflow.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        Some(Self {
            input: self.input.checked_add(other.input)?,
            output: self.output.checked_add(other.output)?,
        })
    }
}

/// A random key made for one request and sent only to the client, inside TLS.
#[derive(Clone, Serialize, Deserialize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct ContentKey(#[serde(with = "hex::serde")] pub [u8; 32]);

impl ContentKey {
    /// HMAC-SHA-256 of a content under this key; `label` keeps request and answer apart.
    pub fn commit(&self, label: &str, content: &[u8]) -> Digest32 {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(&(label.len() as u64).to_le_bytes());
        mac.update(label.as_bytes());
        mac.update(content);
        Digest32(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentKey(redacted)")
    }
}

/// What one answer was and cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The request's id in OpenAI's API.
    pub request_id: String,
    /// Root hash of the model volume.
    pub model_root_hash: Digest32,
    /// Which chain it settles on.
    pub network: NetworkId,
    /// SHA-256 of [`crate::Grant::signed_bytes`].
    pub grant: Digest32,
    /// This request's tokens.
    pub tokens: TokenCounts,
    /// All tokens on this grant, this request included.
    pub served: TokenCounts,
    /// The price of `served`, nanoTON.
    pub served_nano: u64,
    /// `ContentKey::commit("request", body of the HTTP request)`.
    pub request_commitment: Digest32,
    /// `ContentKey::commit("answer", UTF-8 text of the answer)`.
    pub answer_commitment: Digest32,
    /// Why generation ended: `stop` or `length`.
    pub finish_reason: String,
}

/// A receipt with the agent's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedReceipt {
    /// What is signed.
    pub receipt: Receipt,
    /// Ed25519 by the usage key over a tag and the receipt's JSON.
    #[serde(with = "hex::serde")]
    pub signature: [u8; 64],
}

impl Receipt {
    fn signed_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("a receipt holds nothing that JSON cannot");
        [RECEIPT_TAG, &json].concat()
    }

    /// Signs with the agent's usage key.
    pub fn sign(self, agent: &SigningKey) -> SignedReceipt {
        let signature = agent.sign(&self.signed_bytes()).to_bytes();
        SignedReceipt {
            receipt: self,
            signature,
        }
    }
}

impl SignedReceipt {
    /// Whether the agent with this usage key signed it.
    pub fn is_genuine(&self, usage_key: &[u8; 32]) -> bool {
        let signature = Signature::from_bytes(&self.signature);
        VerifyingKey::from_bytes(usage_key).is_ok_and(|key| {
            key.verify_strict(&self.receipt.signed_bytes(), &signature)
                .is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_receipt_is_not_genuine() {
        let agent = SigningKey::from_bytes(&[9; 32]);
        let key = agent.verifying_key().to_bytes();
        let receipt = Receipt {
            request_id: "chatcmpl-1".into(),
            model_root_hash: Digest32::ZERO,
            network: NetworkId::LOCAL,
            grant: Digest32::ZERO,
            tokens: TokenCounts { input: 3, output: 4 },
            served: TokenCounts { input: 3, output: 4 },
            served_nano: 7,
            request_commitment: Digest32::ZERO,
            answer_commitment: Digest32::ZERO,
            finish_reason: "stop".into(),
        };
        let mut signed = receipt.sign(&agent);
        let text = serde_json::to_string(&signed).unwrap();
        assert!(
            serde_json::from_str::<SignedReceipt>(&text)
                .unwrap()
                .is_genuine(&key)
        );
        assert!(!signed.is_genuine(&[1; 32]));
        signed.receipt.served_nano = 6;
        assert!(!signed.is_genuine(&key));
    }

    #[test]
    fn a_commitment_needs_the_key_and_keeps_request_and_answer_apart() {
        let key = ContentKey([1; 32]);
        assert_ne!(key.commit("request", b"x"), key.commit("answer", b"x"));
        assert_ne!(
            key.commit("request", b"x"),
            ContentKey([2; 32]).commit("request", b"x")
        );
        assert_eq!(format!("{key:?}"), "ContentKey(redacted)");
    }
}
