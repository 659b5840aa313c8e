//! What QEMU hands to the firmware: the file of published tables, and SMBIOS structures.

use cocoon_measurements::acpi::{BiosInformation, ProcessorId, SmbiosInputs, TablesFile, measured_smbios};

/// What is accepted is written and read again as the same.
pub fn tables_file(bytes: &[u8]) -> bool {
    let Ok(file) = TablesFile::parse(bytes) else {
        return false;
    };
    let written = file.to_json();
    let again = TablesFile::parse(&written).expect("what was written is a file of tables");
    assert_eq!(again.to_json(), written);
    true
}

/// SMBIOS structures, with what only the firmware's build and the processor know.
pub fn smbios(bytes: &[u8]) -> bool {
    let bios = BiosInformation {
        vendor: "vendor".into(),
        version: "version".into(),
        date: "01/02/2026".into(),
    };
    measured_smbios(SmbiosInputs {
        tables: bytes,
        bios: Some(&bios),
        processor: Some(ProcessorId {
            signature: 0x00c0_6f20,
            features: 1,
        }),
    })
    .is_ok()
}
