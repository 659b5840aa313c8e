//! The file of published ACPI tables.

use cocoon_measurements::acpi::TablesFile;

/// What is accepted is written and read again as the same.
pub fn tables_file(bytes: &[u8]) {
    if let Ok(file) = TablesFile::parse(bytes) {
        let written = file.to_json();
        let again = TablesFile::parse(&written).expect("what was written is a file of tables");
        assert_eq!(again.to_json(), written);
    }
}
