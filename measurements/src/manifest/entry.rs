//! What a manifest says of each entry of the root file system.

use cocoon_evidence::Digest32;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// One entry of the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Absolute path in the guest.
    pub path: String,
    /// Type and permissions.
    pub mode: FileMode,
    /// Length of the content; of the target for a symbolic link; 0 for other types.
    pub bytes: u64,
    /// Of the content; of the target for a symbolic link; of nothing for other types.
    pub sha256: Digest32,
    /// Which input it came from.
    pub source: String,
    /// The package, for a file of Debian's; absent from manifests of older builders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<DebianPackage>,
}

/// A package of Debian's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebianPackage {
    /// Its name.
    pub name: String,
    /// Debian's version of it.
    pub version: String,
}

/// `st_mode` of a file: type and permissions, in JSON as six octal digits, like git's tree entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl Serialize for FileMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:06o}", self.0))
    }
}

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let octal = text.len() == 6 && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if octal => Ok(Self(mode)),
            _ => Err(de::Error::custom(format!(
                "mode {text:?} has to be six octal digits"
            ))),
        }
    }
}
