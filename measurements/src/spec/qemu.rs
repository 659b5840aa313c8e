//! `[qemu]`: which QEMU boots the machine, as far as that changes a measurement.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// `[qemu]`. What is left out is not pinned: a prediction then names a value for each alternative.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuSpec {
    /// Version, as `qemu-system-x86_64 --version` prints it. Decides whether the kernel's setup header is
    /// written to before the firmware measures it, and which ACPI tables there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<QemuVersion>,
    /// In which order the host adds and measures the firmware's pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_order: Option<PageOrder>,
}

/// In which order the host adds and measures pages; decides the value of MRTD.
///
/// It follows from how QEMU and KVM together implement KVM_TDX_INIT_MEM_REGION, so a QEMU version alone does
/// not pin it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PageOrder {
    /// Each page is measured right after it was added: QEMU 9 and later on upstream KVM.
    SinglePass,
    /// All pages of a section are added, then all are measured: QEMU 8 with the KVM patches of its time.
    TwoPass,
}

impl PageOrder {
    /// Both orders.
    pub const ALL: [Self; 2] = [Self::SinglePass, Self::TwoPass];

    /// The name in a LaunchSpec.
    pub fn name(self) -> &'static str {
        match self {
            Self::SinglePass => "single-pass",
            Self::TwoPass => "two-pass",
        }
    }
}

/// A QEMU from 8.0 to 11.x.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QemuVersion {
    major: u8,
    minor: u8,
    micro: u8,
}

/// Text that is not a supported QEMU version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseQemuVersionError {
    /// Not two or three numbers.
    #[error("{0:?} is not a QEMU version like \"10.1.0\"")]
    Malformed(String),
    /// Before 8.0 there is no TDX, after 11 nothing is known.
    #[error("QEMU {0} is not supported: 8.0 to 11.x are")]
    Unsupported(String),
}

impl QemuVersion {
    /// The first number.
    pub fn major(self) -> u8 {
        self.major
    }

    /// The second number.
    pub fn minor(self) -> u8 {
        self.minor
    }

    /// The third number.
    pub fn micro(self) -> u8 {
        self.micro
    }

    /// Whether QEMU writes into the kernel's setup header although the guest is confidential. Commit
    /// a7542a38f399, first in 10.2.0, ended that.
    pub fn patches_kernel_header(self) -> bool {
        (self.major, self.minor) <= (10, 1)
    }
}

impl FromStr for QemuVersion {
    type Err = ParseQemuVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ParseQemuVersionError::Malformed(text.chars().take(32).collect());
        let number = |part: &str| {
            let digits = (1..=3).contains(&part.len()) && part.bytes().all(|digit| digit.is_ascii_digit());
            part.parse().ok().filter(|_| digits).ok_or_else(malformed)
        };
        let parts: Vec<&str> = text.split('.').collect();
        let (major, minor, micro) = match parts[..] {
            [major, minor] => (number(major)?, number(minor)?, 0),
            [major, minor, micro] => (number(major)?, number(minor)?, number(micro)?),
            _ => return Err(malformed()),
        };
        if !(8..=11).contains(&major) {
            return Err(ParseQemuVersionError::Unsupported(text.to_owned()));
        }
        Ok(Self { major, minor, micro })
    }
}

impl TryFrom<String> for QemuVersion {
    type Error = ParseQemuVersionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<QemuVersion> for String {
    fn from(version: QemuVersion) -> Self {
        version.to_string()
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_parse_order_and_print() {
        let version = |text: &str| text.parse::<QemuVersion>().unwrap();
        assert_eq!(version("10.1").to_string(), "10.1.0");
        assert!(version("9.2.1") < version("10.0.0"));
        for (text, patches) in [
            ("8.2.2", true),
            ("10.1.5", true),
            ("10.2.0", false),
            ("11.0.3", false),
        ] {
            assert_eq!(version(text).patches_kernel_header(), patches, "{text}");
        }
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in [
            "", "10", "10.", "10.1.0.0", "10.x", "+9.1", "9.-1", "9.300", "9.0001",
        ] {
            assert!(
                matches!(
                    text.parse::<QemuVersion>(),
                    Err(ParseQemuVersionError::Malformed(_))
                ),
                "{text}"
            );
        }
        for text in ["7.2.0", "12.0.0", "0.0"] {
            assert!(
                matches!(
                    text.parse::<QemuVersion>(),
                    Err(ParseQemuVersionError::Unsupported(_))
                ),
                "{text}"
            );
        }
    }
}
