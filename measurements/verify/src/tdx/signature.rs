//! ECDSA over P-256 with SHA-256, the only signature in Intel's chain (Intel SGX PCK Certificate and Certificate
//! Revocation List Profile Specification 1.5, sections 1.3 to 1.5; quotes: attestation key type 2).
//!
//! A signature (r, s) has a twin (r, n - s) that verifies as well, and Intel's signers emit either, so neither is
//! refused: the twin takes more than a flipped bit, and no caller may take a quote's hash for its identity.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

/// Uncompressed point (SEC 1, 2.3.3): 04, x, y.
const POINT_BYTES: usize = 65;
const UNCOMPRESSED: u8 = 4;

/// A public key; whether it is a point on the curve shows when it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct P256Key([u8; POINT_BYTES]);

impl P256Key {
    /// The form of a quote: x and y.
    pub(crate) fn from_xy(xy: &[u8; 64]) -> Self {
        let mut point = [UNCOMPRESSED; POINT_BYTES];
        point[1..].copy_from_slice(xy);
        Self(point)
    }

    /// The form of a certificate; `None` for any other than the uncompressed one.
    pub(crate) fn from_point(point: &[u8]) -> Option<Self> {
        let point: [u8; POINT_BYTES] = point.try_into().ok()?;
        (point[0] == UNCOMPRESSED).then_some(Self(point))
    }

    /// `signature`: r and s, 32 bytes each.
    pub(crate) fn signed(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.0);
        key.verify(message, signature).is_ok()
    }

    /// `signature`: the DER of RFC 3279's Ecdsa-Sig-Value.
    pub(crate) fn signed_der(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.0);
        key.verify(message, signature).is_ok()
    }
}
