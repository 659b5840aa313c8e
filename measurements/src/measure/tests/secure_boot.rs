//! Secure Boot's keys in the configuration volume, and what they make of the kernel's events.

use super::*;
use crate::variable_store;

/// A firmware of which the configuration volume is a variable store with these entries.
fn enrolled(entries: &[variable_store::tests::Entry<'_>]) -> Vec<u8> {
    let volume = variable_store::tests::volume(entries, true);
    let mut firmware = tdvf::tests::firmware();
    firmware[..0x1000].copy_from_slice(&volume[..0x1000]);
    // The store's length has to fit the smaller volume.
    firmware[88..92].copy_from_slice(&(0x1000u32 - 72).to_le_bytes());
    firmware
}

const GLOBAL: [u8; 16] = [
    0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c,
];
const IMAGE_SECURITY: [u8; 16] = [
    0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f,
];
const ADDED: u8 = 0x3f;

/// A list of one signature; the first four bytes of the type's GUID tell X.509 from SHA-256.
pub(super) fn signature_list(kind: [u8; 16], content: &[u8]) -> Vec<u8> {
    let entry_bytes = 16 + content.len() as u32;
    let words = [28 + entry_bytes, 0, entry_bytes].map(u32::to_le_bytes).concat();
    [&kind[..], &words, &[9; 16], content].concat()
}

const X509: [u8; 16] = [
    0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72,
];
pub(super) const SHA256: [u8; 16] = [
    0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28,
];

pub(super) fn secure(state: SecureBoot, db: &[u8]) -> Launch {
    Launch::tdx().with(|launch| {
        launch.spec.firmware.secure_boot = state;
        launch.firmware = enrolled(&[
            (GLOBAL, "PK", b"platform key", ADDED),
            (IMAGE_SECURITY, "db", db, ADDED),
            (IMAGE_SECURITY, "dbt", b"time stamps", ADDED),
        ]);
    })
}

#[test]
fn secure_boot_keys_come_from_the_configuration_volume() {
    let digest = |state, name: &str| {
        let rtmr0 = secure(state, b"db").registers().rtmr0;
        let event = rtmr0.alternatives()[0]
            .events
            .iter()
            .find(|event| event.name == name);
        event.and_then(|event| event.digest)
    };
    let off = SecureBoot::Off;
    // SecureBoot with one byte 00, as in the log of cc-trusted-api and of Google's machines.
    assert!(
        digest(off, "SecureBoot")
            .unwrap()
            .to_string()
            .starts_with("cfa4e2c606f5")
    );
    let data = [
        GLOBAL.as_slice(),
        &[2, 0, 0, 0, 0, 0, 0, 0],
        &[12, 0, 0, 0, 0, 0, 0, 0],
        b"P\0K\0platform key",
    ];
    assert_eq!(digest(off, "PK"), Some(Digest48::of(&data.concat())));
    assert!(
        digest(off, "KEK")
            .unwrap()
            .to_string()
            .starts_with("d607c0efb41c")
    );
    assert!(digest(off, "dbt").is_some());
    // A build without Secure Boot does not read them.
    let absent = SecureBoot::Absent;
    assert!(
        digest(absent, "PK")
            .unwrap()
            .to_string()
            .starts_with("6f2e3cbc14f9")
    );
    assert_eq!(digest(absent, "dbt"), None);
}

#[test]
fn secure_boot_names_what_authorises_the_kernel() {
    let kernel = Launch::tdx().kernel;
    let hash = authenticode::image_sha256(&kernel).unwrap();
    let authority = |launch: Launch| {
        let names = names(&launch.registers().rtmr0);
        names
            .iter()
            .position(|name| name.starts_with("EV_EFI_VARIABLE_AUTHORITY"))
    };
    let on = |db: &[u8]| secure(SecureBoot::On, db);
    // After the ACPI tables: dbt is one event more.
    assert_eq!(authority(on(&signature_list(SHA256, hash.as_bytes()))), Some(12));
    assert_eq!(authority(secure(SecureBoot::Off, &[])), None);
    assert!(on(&[]).refusal().contains("its SHA-256 is not in db"));

    let certificate = signature_list(X509, b"certificate");
    let signed = |db: &[u8]| {
        on(db).with(|launch| {
            let bytes = launch.kernel.len() as u32;
            authenticode::tests::sign(&mut launch.kernel, bytes);
        })
    };
    assert_eq!(authority(signed(&certificate)), Some(12));
    let two = [certificate.clone(), certificate].concat();
    assert!(
        signed(&two)
            .refusal()
            .contains("does not hold exactly one certificate")
    );
    let unpinned = on(&[]).with(|launch| launch.spec.qemu.version = None);
    assert!(unpinned.refusal().contains("state version in [qemu]"));
    let no_platform_key = Launch::tdx().with(|launch| {
        launch.spec.firmware.secure_boot = SecureBoot::On;
        launch.firmware = enrolled(&[]);
    });
    assert!(no_platform_key.refusal().contains("has no platform key"));
}
