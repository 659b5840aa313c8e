//! Attribute bits as policies write them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Sixty-four bits, as `0x` and 16 hexadecimal digits: the number that the eight bytes in a TD report form in
/// little-endian order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bits64(pub u64);

impl fmt::Display for Bits64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

impl fmt::Debug for Bits64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Bits64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bits64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.strip_prefix("0x")
            .filter(|digits| digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or_else(|| de::Error::custom(format!("{text:?} is not 0x and 16 hexadecimal digits")))
    }
}
