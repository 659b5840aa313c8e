//! What an image consists of: manifest, firmware and kernel.

use cocoon_measurements::{LaunchInputs, LaunchSpec, Manifest, measure};

const SPEC: &str = "platform = \"simulated\"\nmachine = \"q35-1\"\nvcpus = 2\nmemory_mib = 1024\n";

/// The smallest firmware that can be measured: one page without metadata.
const FIRMWARE: [u8; 4096] = [0; 4096];

fn measure_parts(firmware: &[u8], kernel: &[u8]) {
    let spec: LaunchSpec = toml::from_str(SPEC).expect("it is a LaunchSpec");
    let inputs = LaunchInputs {
        firmware,
        kernel,
        initrd: None,
        command_line: "quiet",
        spec: &spec,
        tables: None,
        smbios: None,
    };
    let first = measure(inputs);
    // A second look at the same bytes finds the same: nothing depends on anything else.
    assert_eq!(first, measure(inputs));
}

/// manifest.json: what is accepted can be written and is accepted again.
pub fn manifest(bytes: &[u8]) {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) else {
        return;
    };
    if manifest.check().is_err() {
        return;
    }
    let written = serde_json::to_vec(&manifest).expect("a manifest is JSON");
    let again: Manifest = serde_json::from_slice(&written).expect("what was written is a manifest");
    assert!(again.check().is_ok());
}

/// TDVF metadata, hand-off block and MRTD.
pub fn firmware(bytes: &[u8]) {
    measure_parts(bytes, b"");
}

/// The Authenticode digest of a PE image.
pub fn kernel(bytes: &[u8]) {
    measure_parts(&FIRMWARE, bytes);
}
