//! Digest types. They print and parse as lower-case hex.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256, Sha384};

/// Text that is not a digest of the expected length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected_chars} hexadecimal characters, found {found_chars} characters: {reason}")]
pub struct ParseDigestError {
    expected_chars: usize,
    found_chars: usize,
    reason: &'static str,
}

macro_rules! digest {
    ($name:ident, $bytes:literal, $hash:ty, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// All bits zero.
            pub const ZERO: Self = Self([0; $bytes]);

            /// Hashes one byte string.
            pub fn of(bytes: &[u8]) -> Self {
                Self(<$hash>::digest(bytes).into())
            }

            /// Hashes the concatenation of `parts`.
            pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
                let mut hash = <$hash>::new();
                for part in parts {
                    hash.update(part);
                }
                Self(hash.finalize().into())
            }

            /// The raw bytes.
            pub fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseDigestError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let error = |reason| ParseDigestError {
                    expected_chars: $bytes * 2,
                    found_chars: text.chars().count(),
                    reason,
                };
                if text.len() != $bytes * 2 {
                    return Err(error("wrong length"));
                }
                let mut bytes = [0; $bytes];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| error("not hexadecimal"))?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(de::Error::custom)
            }
        }
    };
}

digest!(
    Digest32,
    32,
    Sha256,
    "Thirty-two bytes, usually a SHA-256 digest."
);
digest!(
    Digest48,
    48,
    Sha384,
    "Forty-eight bytes, usually a SHA-384 digest: the width of a TDX register."
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_bad_text_is_named() {
        let digest = Digest48::of(b"cocoon");
        assert_eq!(digest.to_string().parse::<Digest48>(), Ok(digest));
        let short = "00".parse::<Digest48>().unwrap_err();
        assert_eq!(
            short.to_string(),
            "expected 96 hexadecimal characters, found 2 characters: wrong length"
        );
        assert!("zz".repeat(48).parse::<Digest48>().is_err());
    }

    #[test]
    fn parts_are_concatenated() {
        assert_eq!(
            Digest32::of_parts([b"co".as_slice(), b"coon"]),
            Digest32::of(b"cocoon")
        );
    }
}
