//! What QEMU hands its firmware through the fw_cfg device, by file name.
//!
//! The bytes come from a QEMU that built exactly the machine of the LaunchSpec, never from a guest: a guest that
//! reports its own tables could report any.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longer items are refused: the ACPI tables of 4096 processors and every device have about 1 MiB.
pub const FW_CFG_ITEM_BYTES_MAX: usize = 16 * 1024 * 1024;

/// More items are refused; a q35 machine has about 30.
const ITEMS_MAX: usize = 256;

/// Items by file name, whole and unchanged: for the ACPI tables that is before the firmware links them, with
/// their padding. The one item without a file name that firmware measures is kept as [`Self::BOOT_MENU`].
///
/// In JSON an object from name to base64.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FwCfgFiles(BTreeMap<String, Vec<u8>>);

/// An item that cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FwCfgError {
    /// fw_cfg has 56 bytes for a name with its NUL.
    #[error("{0:?} is not a name of 1 to 55 printable ASCII characters")]
    Name(String),
    /// Over [`FW_CFG_ITEM_BYTES_MAX`].
    #[error("{name} has {bytes} bytes, at most {FW_CFG_ITEM_BYTES_MAX} are allowed")]
    TooLarge {
        /// Which item.
        name: String,
        /// Its length.
        bytes: usize,
    },
    /// Over 256 items.
    #[error("there are more than {ITEMS_MAX} items")]
    TooMany,
}

impl FwCfgFiles {
    /// The commands that link the tables.
    pub const TABLE_LOADER: &str = "etc/table-loader";
    /// The pointer to the tables.
    pub const ACPI_RSDP: &str = "etc/acpi/rsdp";
    /// The tables.
    pub const ACPI_TABLES: &str = "etc/acpi/tables";
    /// SMBIOS structures.
    pub const SMBIOS_TABLES: &str = "etc/smbios/smbios-tables";
    /// Key 0x0e, FW_CFG_BOOT_MENU: two bytes.
    pub const BOOT_MENU: &str = "BootMenu";

    /// The bytes of an item.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// Adds or replaces an item.
    ///
    /// # Errors
    /// See [`FwCfgError`].
    pub fn insert(&mut self, name: impl Into<String>, bytes: Vec<u8>) -> Result<(), FwCfgError> {
        let name = name.into();
        if !(1..56).contains(&name.len()) || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(FwCfgError::Name(name.chars().take(64).collect()));
        }
        if bytes.len() > FW_CFG_ITEM_BYTES_MAX {
            let bytes = bytes.len();
            return Err(FwCfgError::TooLarge { name, bytes });
        }
        if self.0.len() >= ITEMS_MAX && !self.0.contains_key(&name) {
            return Err(FwCfgError::TooMany);
        }
        self.0.insert(name, bytes);
        Ok(())
    }

    /// Names and bytes, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }
}

impl Serialize for FwCfgFiles {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            self.iter()
                .map(|(name, bytes)| (name, BASE64_STANDARD.encode(bytes))),
        )
    }
}

impl<'de> Deserialize<'de> for FwCfgFiles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut files = Self::default();
        for (name, text) in BTreeMap::<String, String>::deserialize(deserializer)? {
            let bytes = BASE64_STANDARD
                .decode(text)
                .map_err(|error| de::Error::custom(format!("item {name:?} is not base64: {error}")))?;
            files.insert(name, bytes).map_err(de::Error::custom)?;
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_round_trip_through_json() {
        let mut files = FwCfgFiles::default();
        files.insert(FwCfgFiles::ACPI_RSDP, vec![0, 0xff, 7]).unwrap();
        let text = serde_json::to_string(&files).unwrap();
        assert_eq!(text, r#"{"etc/acpi/rsdp":"AP8H"}"#);
        assert_eq!(serde_json::from_str::<FwCfgFiles>(&text).unwrap(), files);
        assert_eq!(files.get(FwCfgFiles::ACPI_RSDP), Some([0, 0xff, 7].as_slice()));
        assert_eq!(files.get("etc/acpi"), None);
    }

    #[test]
    fn names_and_lengths_that_fw_cfg_does_not_have_are_refused() {
        let mut files = FwCfgFiles::default();
        for name in ["", "a b", "é", &"x".repeat(56)] {
            assert!(
                matches!(files.insert(name, vec![]), Err(FwCfgError::Name(_))),
                "{name}"
            );
        }
        let error = files.insert("x", vec![0; FW_CFG_ITEM_BYTES_MAX + 1]).unwrap_err();
        assert!(matches!(error, FwCfgError::TooLarge { .. }));
        for index in 0..ITEMS_MAX {
            files.insert(format!("item{index}"), vec![]).unwrap();
        }
        assert_eq!(files.insert("one-more", vec![]), Err(FwCfgError::TooMany));
        assert!(serde_json::from_str::<FwCfgFiles>(r#"{"x":"!"}"#).is_err());
    }
}
