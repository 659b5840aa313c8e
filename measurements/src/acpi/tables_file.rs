//! The file that keeps tables: what the cache holds, and what a release publishes for auditors and clients that
//! have no such QEMU.
//!
//! ```json
//! {"schema": "cocoon.acpi-tables/1",
//!  "machines": [{
//!    "qemu": {"version": "QEMU emulator version 10.0.13 (...)", "program_sha256": "..."},
//!    "shape": {"machine": "q35", "vcpus": 2, "memory_mib": 1024, "smm": false, "pic": false, "hpet": false,
//!              "serial": false, "slots": ["endpoint"], "hole64_gib": 32, "window_gib": 57344,
//!              "config_window_mib": 3584},
//!    "files": {"etc/acpi/tables": {"bytes": 131072, "sha384": "...", "base64": "..."}}}]}
//! ```
//! `base64` leaves out the zeros at the end of a file, which are most of it; `bytes` is the length with them.
//!
//! A file says what some QEMU made, and is as trustworthy as its origin: the digests inside find damage, not
//! malice. Whoever has the QEMU makes it again and compares.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use cocoon_evidence::Digest48;
use serde::{Deserialize, Serialize};

use super::{MachineShape, QemuBuild};
use crate::{FW_CFG_ITEM_BYTES_MAX, FwCfgError, FwCfgFiles, QemuVersion};

const SCHEMA: &str = "cocoon.acpi-tables/1";

/// Longer files are refused: a machine takes 8 to 40 KiB, a release has a few hundred.
pub const TABLES_FILE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// More machines are refused.
const MACHINES_MAX: usize = 4096;

/// Expanded tables of one file; a machine of usual size has 136 KiB.
const EXPANDED_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// Tables of many machines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TablesFile {
    /// In the order of the file.
    pub machines: Vec<MachineTables>,
}

/// What one QEMU made for one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineTables {
    /// Who made them.
    pub qemu: QemuBuild,
    /// For what.
    pub shape: MachineShape,
    /// The tables.
    pub files: FwCfgFiles,
}

/// Why a file of tables cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TablesFileError {
    /// Over [`TABLES_FILE_BYTES_MAX`].
    #[error("a file of tables has at most {TABLES_FILE_BYTES_MAX} bytes, this one has {0}")]
    TooLarge(usize),
    /// Not the JSON of this schema; serde names line and column.
    #[error("this is no file of tables")]
    Malformed(#[from] serde_json::Error),
    /// Another version.
    #[error("the schema is {0:?}, this program knows {SCHEMA:?}")]
    Schema(String),
    /// More than a release has.
    #[error("the file has {0} machines, at most {MACHINES_MAX} are allowed")]
    TooMany(usize),
    /// One file of one machine.
    #[error("machine {machine}, {name}: {problem}")]
    File {
        /// Which machine, from 0.
        machine: usize,
        /// Which fw_cfg file.
        name: String,
        /// What is wrong.
        problem: Box<FileProblem>,
    },
}

/// What is wrong with the bytes of a fw_cfg file.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// Not base64.
    #[error("it is not base64: {0}")]
    Encoding(#[from] base64::DecodeError),
    /// Longer than stated, or absurdly long.
    #[error("it says {stated} bytes and holds {found}")]
    Length {
        /// `bytes`.
        stated: usize,
        /// What the base64 has.
        found: usize,
    },
    /// All machines together are too long.
    #[error("the tables of all machines together have more than {EXPANDED_BYTES_MAX} bytes")]
    Total,
    /// Damaged, or made up carelessly.
    #[error("its SHA-384 is {found}, not {stated}")]
    Digest {
        /// What the file says.
        stated: Digest48,
        /// What it is.
        found: Digest48,
    },
    /// Not an item of fw_cfg.
    #[error(transparent)]
    Item(#[from] FwCfgError),
}

/// Why a file has no tables for a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// None for this shape and version.
    #[error("it has no tables for this machine; those it has are for {0}")]
    Missing(String),
    /// Several that differ; a choice would be a guess.
    #[error(
        "it has different tables for this machine from {0}: state `version` in [qemu], or use a file with one build"
    )]
    Ambiguous(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    schema: String,
    machines: Vec<Machine>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Machine {
    qemu: QemuBuild,
    shape: MachineShape,
    files: BTreeMap<String, Packed>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Packed {
    bytes: usize,
    sha384: Digest48,
    base64: String,
}

impl TablesFile {
    /// Reads a file, and checks every length and digest in it.
    ///
    /// # Errors
    /// See [`TablesFileError`].
    pub fn parse(json: &[u8]) -> Result<Self, TablesFileError> {
        if json.len() > TABLES_FILE_BYTES_MAX {
            return Err(TablesFileError::TooLarge(json.len()));
        }
        let document: Document = serde_json::from_slice(json)?;
        if document.schema != SCHEMA {
            return Err(TablesFileError::Schema(
                document.schema.chars().take(64).collect(),
            ));
        }
        if document.machines.len() > MACHINES_MAX {
            return Err(TablesFileError::TooMany(document.machines.len()));
        }
        let mut budget = EXPANDED_BYTES_MAX;
        let machines = document.machines.into_iter().enumerate();
        let unpacked = machines.map(|(index, machine)| machine.unpack(index, &mut budget));
        Ok(Self {
            machines: unpacked.collect::<Result<_, _>>()?,
        })
    }

    /// The file's bytes; equal tables have equal bytes.
    pub fn to_json(&self) -> Vec<u8> {
        let document = Document {
            schema: SCHEMA.to_owned(),
            machines: self.machines.iter().map(Machine::pack).collect(),
        };
        let mut json = serde_json::to_vec(&document).expect("text and numbers are JSON");
        json.push(b'\n');
        json
    }

    /// The tables for a shape, from a QEMU of this version if one is given.
    ///
    /// # Errors
    /// See [`FindError`].
    pub fn find(
        &self,
        shape: &MachineShape,
        version: Option<QemuVersion>,
    ) -> Result<&MachineTables, FindError> {
        let is_asked = |machine: &&MachineTables| {
            machine.shape == *shape && version.is_none_or(|version| machine.qemu.is_version(version))
        };
        let mut found = self.machines.iter().filter(is_asked);
        let Some(first) = found.next() else {
            return Err(FindError::Missing(summary(&self.machines)));
        };
        match found.find(|other| other.files != first.files) {
            Some(other) => Err(FindError::Ambiguous(format!("{} and {}", first.qemu, other.qemu))),
            None => Ok(first),
        }
    }
}

/// A few of the machines, in words.
fn summary(machines: &[MachineTables]) -> String {
    const NAMED: usize = 4;
    let mut words: Vec<String> = machines
        .iter()
        .take(NAMED)
        .map(|machine| {
            let shape = &machine.shape;
            format!(
                "{} vCPUs, {} MiB, QEMU {}",
                shape.vcpus,
                shape.memory_mib,
                machine.qemu.number()
            )
        })
        .collect();
    match machines.len() {
        0 => "none".to_owned(),
        count if count > NAMED => {
            words.push(format!("{} more", count - NAMED));
            words.join("; ")
        }
        _ => words.join("; "),
    }
}

impl Machine {
    fn pack(machine: &MachineTables) -> Self {
        let packed = |bytes: &[u8]| Packed {
            bytes: bytes.len(),
            sha384: Digest48::of(bytes),
            base64: BASE64_STANDARD.encode(without_final_zeros(bytes)),
        };
        let files = machine.files.iter();
        Self {
            qemu: machine.qemu.clone(),
            shape: machine.shape.clone(),
            files: files
                .map(|(name, bytes)| (name.to_owned(), packed(bytes)))
                .collect(),
        }
    }

    fn unpack(self, machine: usize, budget: &mut usize) -> Result<MachineTables, TablesFileError> {
        let mut files = FwCfgFiles::default();
        for (name, packed) in self.files {
            let kept = packed
                .unpack(budget)
                .and_then(|bytes| Ok(files.insert(name.clone(), bytes)?));
            kept.map_err(|problem| TablesFileError::File {
                machine,
                name: name.chars().take(64).collect(),
                problem: Box::new(problem),
            })?;
        }
        Ok(MachineTables {
            qemu: self.qemu,
            shape: self.shape,
            files,
        })
    }
}

impl Packed {
    fn unpack(&self, budget: &mut usize) -> Result<Vec<u8>, FileProblem> {
        let mut bytes = BASE64_STANDARD.decode(&self.base64)?;
        let stated = self.bytes;
        if bytes.len() > stated || stated > FW_CFG_ITEM_BYTES_MAX {
            let found = bytes.len();
            return Err(FileProblem::Length { stated, found });
        }
        *budget = budget.checked_sub(stated).ok_or(FileProblem::Total)?;
        bytes.resize(stated, 0);
        let found = Digest48::of(&bytes);
        if found != self.sha384 {
            let stated = self.sha384;
            return Err(FileProblem::Digest { stated, found });
        }
        Ok(bytes)
    }
}

fn without_final_zeros(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    &bytes[..end]
}

#[cfg(test)]
mod tests {
    use cocoon_evidence::Digest32;
    use proptest::prelude::*;

    use super::*;
    use crate::acpi::{MachineType, Slot};

    fn machine(version: &str, tables: &[u8]) -> MachineTables {
        let mut files = FwCfgFiles::default();
        files.insert(FwCfgFiles::ACPI_TABLES, tables.to_vec()).unwrap();
        MachineTables {
            qemu: QemuBuild {
                version: format!("QEMU emulator version {version} (Debian 1:{version})"),
                program_sha256: Digest32::of(version.as_bytes()),
            },
            shape: MachineShape {
                machine: MachineType::Q35,
                vcpus: 2,
                memory_mib: 1024,
                smm: false,
                pic: false,
                hpet: false,
                serial: true,
                slots: vec![Slot::Endpoint, Slot::RootPort],
                hole64_gib: 32,
                window_gib: 57344,
                config_window_mib: 3584,
            },
            files,
        }
    }

    fn file(machines: &[MachineTables]) -> TablesFile {
        TablesFile {
            machines: machines.to_vec(),
        }
    }

    fn text() -> String {
        String::from_utf8(file(&[machine("10.0.13", b"DSDT\0\0")]).to_json()).unwrap()
    }

    #[test]
    fn a_file_reads_as_it_was_written_with_its_final_zeros() {
        for tables in [b"DSDT\0\0".as_slice(), b"", b"\0\0", b"x"] {
            let file = file(&[machine("10.0.13", tables)]);
            assert_eq!(TablesFile::parse(&file.to_json()).unwrap(), file);
        }
    }

    #[test]
    fn changed_files_are_refused_by_name() {
        let check = |from: &str, to: &str, says: &str| {
            assert!(text().contains(from), "{from}");
            let error = TablesFile::parse(text().replace(from, to).as_bytes()).unwrap_err();
            let chain = match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            assert!(chain.contains(says), "{chain}");
        };
        check("RFNEVA==", "RFNEVB==", "base64");
        check("RFNEVA==", "RFNEVQ==", "SHA-384");
        check("\"bytes\":6", "\"bytes\":7", "SHA-384");
        check("\"bytes\":6", "\"bytes\":3", "says 3 bytes and holds 4");
        check("\"bytes\":6", "\"bytes\":999999999999", "says 999999999999 bytes");
        check("tables/1", "tables/2", "schema");
        check("etc/acpi/tables", "etc/acpi tables", "not a name");
        check("\"vcpus\"", "\"cpus\"", "unknown field `cpus`");
        check("\"q35\"", "\"pc\"", "unknown variant `pc`");
    }

    #[test]
    fn a_choice_between_two_builds_is_the_callers() {
        let (old, new) = (machine("10.0.13", b"a"), machine("11.1.3", b"b"));
        let file = file(&[old.clone(), new.clone()]);
        assert!(matches!(
            file.find(&old.shape, None),
            Err(FindError::Ambiguous(_))
        ));
        let found = file.find(&old.shape, Some("11.1.3".parse().unwrap()));
        assert_eq!(found.unwrap(), &new);
        let absent = file.find(&old.shape, Some("9.2.0".parse().unwrap()));
        assert!(matches!(absent, Err(FindError::Missing(_))));
    }

    #[test]
    fn builds_with_equal_tables_need_no_choice() {
        let file = file(&[machine("10.0.2", b"a"), machine("10.0.13", b"a")]);
        assert_eq!(
            file.find(&file.machines[1].shape, None).unwrap(),
            &file.machines[0]
        );
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut json = text().into_bytes();
            let at = at.index(json.len());
            json[at] = byte;
            let _ = TablesFile::parse(&json);
        }
    }
}
