//! Hash algorithms of a log's banks (TCG Algorithm Registry 1.34, table 3).

use std::fmt;

use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};

/// TPM_ALG_ID of a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HashAlgorithm(pub u16);

/// A digest and what made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedDigest {
    /// Which bank.
    pub algorithm: HashAlgorithm,
    /// As long as the algorithm demands, or the header for one that is not known here.
    pub bytes: Vec<u8>,
}

impl HashAlgorithm {
    /// SHA-1, for old TPM logs only.
    pub const SHA1: Self = Self(0x0004);
    /// SHA-256.
    pub const SHA256: Self = Self(0x000b);
    /// SHA-384: the only one of TDX.
    pub const SHA384: Self = Self(0x000c);
    /// SHA-512.
    pub const SHA512: Self = Self(0x000d);
    /// SM3-256: known by name, not computed.
    pub const SM3: Self = Self(0x0012);

    /// Bytes of a digest, if the algorithm is known.
    pub fn digest_bytes(self) -> Option<usize> {
        Some(match self {
            Self::SHA1 => 20,
            Self::SHA256 | Self::SM3 => 32,
            Self::SHA384 => 48,
            Self::SHA512 => 64,
            _ => return None,
        })
    }

    /// Hashes the concatenation of `parts`; `None` if the algorithm is not implemented here.
    pub fn hash(self, parts: &[&[u8]]) -> Option<Vec<u8>> {
        fn of<H: sha2::Digest>(parts: &[&[u8]]) -> Vec<u8> {
            let mut hash = H::new();
            parts.iter().for_each(|part| hash.update(part));
            hash.finalize().to_vec()
        }
        Some(match self {
            Self::SHA1 => of::<Sha1>(parts),
            Self::SHA256 => of::<Sha256>(parts),
            Self::SHA384 => of::<Sha384>(parts),
            Self::SHA512 => of::<Sha512>(parts),
            _ => return None,
        })
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::SHA1 => f.pad("sha1"),
            Self::SHA256 => f.pad("sha256"),
            Self::SHA384 => f.pad("sha384"),
            Self::SHA512 => f.pad("sha512"),
            Self::SM3 => f.pad("sm3-256"),
            Self(number) => f.pad(&format!("alg-0x{number:04x}")),
        }
    }
}

impl LoggedDigest {
    /// Whether this is the digest of `data`; `None` if the algorithm is not implemented here.
    pub(super) fn is_of(&self, data: &[u8]) -> Option<bool> {
        Some(self.algorithm.hash(&[data])? == self.bytes)
    }
}

impl fmt::Display for LoggedDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.bytes))
    }
}
