//! Signed policies: a detached Ed25519 signature (RFC 8032) over the file's bytes, in a file of its own beside it.
//!
//! Detached, so that what is signed is exactly what is read, without a canonical form of TOML, and so that the
//! policy stays a file that people can read and compare. The signature file has one line for each signer:
//! `cocoon-policy-v1 KEY SIGNATURE`, both in hexadecimal digits.

use std::{fmt, str::FromStr};

use ed25519_dalek::{Signature, SigningKey, VerifyingKey};

use super::{POLICY_BYTES_MAX, Policy, PolicyError};

/// A longer signature file is refused before it is parsed.
pub const POLICY_SIGNATURE_BYTES_MAX: usize = 16 * 1024;

/// First word of a line, and first part of the signed bytes.
const DOMAIN: &str = "cocoon-policy-v1";

/// The public key of somebody who signs policies; 64 hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PolicyKey(VerifyingKey);

/// Why a text is not a public key.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an Ed25519 public key: 64 hexadecimal digits")]
pub struct PolicyKeyError(String);

impl PolicyKey {
    /// The key that belongs to a signing key.
    pub fn of(key: &SigningKey) -> Self {
        Self(key.verifying_key())
    }
}

impl FromStr for PolicyKey {
    type Err = PolicyKeyError;

    fn from_str(text: &str) -> Result<Self, PolicyKeyError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)
            .ok()
            .and_then(|()| VerifyingKey::from_bytes(&bytes).ok())
            .filter(|key| !key.is_weak())
            .map(Self)
            .ok_or_else(|| PolicyKeyError(text.chars().take(80).collect()))
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a signed policy is refused.
#[derive(Debug, thiserror::Error)]
pub enum SignedPolicyError {
    /// Over [`POLICY_SIGNATURE_BYTES_MAX`].
    #[error("the signature file has {bytes} bytes, at most {POLICY_SIGNATURE_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// A line that is not one.
    #[error("line {line} of the signature file is not \"{DOMAIN} KEY SIGNATURE\"")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// Nobody who signed is trusted.
    #[error("no trusted key signed the policy; it is signed by: {signers}")]
    NotTrusted {
        /// Those who claim to have signed.
        signers: String,
    },
    /// A trusted key's signature is over other bytes.
    #[error("the signature of {0} is not over this policy: one of the two files was changed")]
    Forged(Box<PolicyKey>),
    /// What was signed is no policy.
    #[error("the signed policy cannot be used")]
    Policy(#[from] PolicyError),
}

impl Policy {
    /// Reads a policy that one of the `trusted` keys signed. With several lines, each that names a trusted key
    /// must hold.
    ///
    /// # Errors
    /// See [`SignedPolicyError`].
    pub fn parse_signed(
        text: &str,
        signatures: &str,
        trusted: &[PolicyKey],
    ) -> Result<Self, SignedPolicyError> {
        let lines = read_lines(signatures)?;
        if text.len() > POLICY_BYTES_MAX {
            return Err(PolicyError::TooLarge { bytes: text.len() }.into());
        }
        let message = signed_bytes(text);
        let mut signer = None;
        for (key, signature) in lines.iter().filter(|(key, _)| trusted.contains(key)) {
            key.0
                .verify_strict(&message, signature)
                .map_err(|_| SignedPolicyError::Forged(Box::new(*key)))?;
            signer = signer.or(Some(*key));
        }
        let Some(signer) = signer else {
            let signers: Vec<_> = lines.iter().map(|(key, _)| key.to_string()).collect();
            return Err(SignedPolicyError::NotTrusted {
                signers: signers.join(", "),
            });
        };
        let mut policy = Self::parse(text)?;
        policy.signer = Some(signer);
        Ok(policy)
    }
}

/// The line of a signature file that signs the policy file `text`.
///
/// # Errors
/// The text is not a policy.
pub fn sign_policy(text: &str, key: &SigningKey) -> Result<String, PolicyError> {
    use ed25519_dalek::Signer as _;
    Policy::parse(text)?;
    let signature = key.sign(&signed_bytes(text));
    let signature = hex::encode(signature.to_bytes());
    Ok(format!("{DOMAIN} {} {signature}\n", PolicyKey::of(key)))
}

/// Tag and length before the file, so that a signature made for something else never fits.
fn signed_bytes(text: &str) -> Vec<u8> {
    let length = (text.len() as u64).to_le_bytes();
    [DOMAIN.as_bytes(), &[0], &length, text.as_bytes()].concat()
}

fn read_lines(text: &str) -> Result<Vec<(PolicyKey, Signature)>, SignedPolicyError> {
    if text.len() > POLICY_SIGNATURE_BYTES_MAX {
        return Err(SignedPolicyError::TooLarge { bytes: text.len() });
    }
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| read_line(line).ok_or(SignedPolicyError::Line { line: index + 1 }))
        .collect()
}

fn read_line(line: &str) -> Option<(PolicyKey, Signature)> {
    let mut words = line.split_ascii_whitespace();
    let (domain, key, signature) = (words.next()?, words.next()?, words.next()?);
    let mut bytes = [0; 64];
    hex::decode_to_slice(signature, &mut bytes).ok()?;
    (domain == DOMAIN && words.next().is_none())
        .then(|| key.parse().ok())
        .flatten()
        .map(|key| (key, Signature::from_bytes(&bytes)))
}
