//! `[snp]`: what only SEV-SNP measures.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// `[snp]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpSpec {
    /// QEMU's name of the processor (`-cpu`), whose signature is in each processor's measured state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_type: Option<String>,
    /// Features that the hypervisor enables for the guest; `"0x1"` (SNP alone) if left out.
    #[serde(default)]
    pub guest_features: GuestFeatures,
}

/// SEV_FEATURES of the save area (AMD64 Architecture Programmer's Manual, volume 2, appendix B, offset 3B0h),
/// as `0x` and hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GuestFeatures(pub u64);

impl Default for GuestFeatures {
    fn default() -> Self {
        Self(1)
    }
}

impl fmt::Display for GuestFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for GuestFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for GuestFeatures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GuestFeatures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.strip_prefix("0x")
            .filter(|digits| {
                (1..=16).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
            })
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or_else(|| de::Error::custom(format!("{text:?} is not 0x and 1 to 16 hexadecimal digits")))
    }
}
