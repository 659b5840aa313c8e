//! The Secure Boot variables, and what says that a kernel may start.

use cocoon_evidence::Digest48;

use super::{LaunchInputs, MeasureError, kernel};
use crate::{
    Firmware, SecureBoot, VariableStoreError,
    authenticode::{has_certificate, image_sha256},
    prediction::{
        Events,
        event_type::{VARIABLE_AUTHORITY, VARIABLE_DRIVER_CONFIG},
    },
    variable_store::VariableStore,
};

/// 8be4df61-93ca-11d2-aa0d-00e098032b8c.
const GLOBAL: [u8; 16] = [
    0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c,
];
/// d719b2cb-3d3a-4596-a3bc-dad00e67656f.
const IMAGE_SECURITY: [u8; 16] = [
    0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f,
];

/// Measured with no data where they are missing.
const KEYS: [([u8; 16], &str); 4] = [
    (GLOBAL, "PK"),
    (GLOBAL, "KEK"),
    (IMAGE_SECURITY, "db"),
    (IMAGE_SECURITY, "dbx"),
];

/// SecureBoot, PK, KEK, db and dbx, and dbt if there is one (TCG PC Client Platform Firmware Profile 1.06,
/// section 3.3.4.8).
pub(super) fn variables(
    events: &mut Events,
    firmware: &Firmware<'_>,
    state: SecureBoot,
) -> Result<(), MeasureError> {
    let store = store(firmware, state)?;
    let state_data: &[u8] = match state {
        SecureBoot::Absent => &[],
        SecureBoot::Off => &[0],
        SecureBoot::On => &[1],
    };
    if state == SecureBoot::On && store.get(&GLOBAL, "PK").is_none() {
        return Err(MeasureError::unpredictable(
            "RTMR0",
            "Secure Boot cannot be on: the firmware's configuration volume has no platform key",
            "use the firmware with the keys enrolled, or secure_boot = \"off\"",
        ));
    }
    events.push(
        VARIABLE_DRIVER_CONFIG,
        "SecureBoot",
        variable_digest(&GLOBAL, "SecureBoot", state_data),
    );
    for (vendor, name) in KEYS {
        let data = store.get(&vendor, name).unwrap_or_default();
        events.push(VARIABLE_DRIVER_CONFIG, name, variable_digest(&vendor, name, data));
    }
    if let Some(data) = store.get(&IMAGE_SECURITY, "dbt") {
        events.push(
            VARIABLE_DRIVER_CONFIG,
            "dbt",
            variable_digest(&IMAGE_SECURITY, "dbt", data),
        );
    }
    Ok(())
}

/// Firmware without Secure Boot does not load the variables from its volume.
fn store<'a>(firmware: &Firmware<'a>, state: SecureBoot) -> Result<VariableStore<'a>, VariableStoreError> {
    match firmware.configuration_volume() {
        Some(volume) if state != SecureBoot::Absent => VariableStore::parse(volume),
        _ => Ok(VariableStore::default()),
    }
}

/// SHA-384 of UEFI_VARIABLE_DATA: vendor, characters of the name, bytes of the data, name without NUL, data.
fn variable_digest(vendor: &[u8; 16], name: &str, data: &[u8]) -> Digest48 {
    let wide: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    Digest48::of_parts([
        vendor.as_slice(),
        &(wide.len() as u64 / 2).to_le_bytes(),
        &(data.len() as u64).to_le_bytes(),
        &wide,
        data,
    ])
}

/// The entry of db by which the firmware lets the kernel start (edk2 SecurityPkg/Library/
/// DxeImageVerificationLib): an unsigned kernel's hash, or the one certificate that can have signed it.
pub(super) fn authority(
    events: &mut Events,
    firmware: &Firmware<'_>,
    inputs: &LaunchInputs<'_>,
) -> Result<(), MeasureError> {
    let refuse = |reason: &str, remedy| Err(MeasureError::unpredictable("RTMR0", reason, remedy));
    let store = store(firmware, SecureBoot::On)?;
    let db = store.get(&IMAGE_SECURITY, "db").unwrap_or_default();
    let entries = signatures(db);
    let kernel = match kernel::open_headers(inputs.spec.qemu.version, &inputs.spec.firmware)[..] {
        [header] => kernel::image_bytes(inputs, header)?,
        _ => {
            return refuse(
                "with Secure Boot the kernel's header decides whether the firmware accepts it, and it is not \
                 known whether QEMU wrote to it",
                "state version in [qemu] and named_kernel in [firmware]",
            );
        }
    };
    let chosen = if has_certificate(&kernel)? {
        let certificates: Vec<_> = entries.iter().filter(|entry| entry.kind == X509).collect();
        match certificates[..] {
            [only] => only,
            _ => {
                return refuse(
                    "the kernel is signed and db does not hold exactly one certificate, so it is not known by \
                     which the firmware accepts it",
                    "enrol one certificate, or boot an unsigned kernel whose SHA-256 is in db",
                );
            }
        }
    } else {
        let hash = image_sha256(&kernel)?;
        match entries
            .iter()
            .find(|entry| entry.kind == SHA256 && entry.data.get(16..) == Some(hash.as_bytes().as_slice()))
        {
            Some(entry) => entry,
            None => {
                return refuse(
                    "the kernel is not signed and its SHA-256 is not in db, so the firmware does not start it",
                    "enrol the kernel's hash, sign it, or use secure_boot = \"off\"",
                );
            }
        }
    };
    events.push(
        VARIABLE_AUTHORITY,
        "db: what authorises the kernel",
        variable_digest(&IMAGE_SECURITY, "db", chosen.data),
    );
    Ok(())
}

/// a5c059a1-94e4-4aa7-87b5-ab155c2bf072, EFI_CERT_X509_GUID.
const X509: [u8; 16] = [
    0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72,
];
/// c1c41626-504c-4092-aca9-41f936934328, EFI_CERT_SHA256_GUID.
const SHA256: [u8; 16] = [
    0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28,
];

/// EFI_SIGNATURE_DATA: 16 bytes of owner, then the certificate or hash.
struct Signature<'a> {
    kind: [u8; 16],
    data: &'a [u8],
}

const LIST_HEADER_BYTES: usize = 28;

/// The entries of all lists (UEFI 2.10, section 32.4.1), up to the first that is malformed, where the firmware
/// stops as well.
fn signatures(mut lists: &[u8]) -> Vec<Signature<'_>> {
    let mut entries = Vec::new();
    while let Some((list, rest)) = split_list(lists) {
        let signature = |data| Signature {
            kind: list.kind,
            data,
        };
        entries.extend(list.body.chunks_exact(list.entry_bytes).map(signature));
        lists = rest;
    }
    entries
}

/// EFI_SIGNATURE_LIST: entries of one length, at least that of an owner.
struct SignatureList<'a> {
    kind: [u8; 16],
    body: &'a [u8],
    entry_bytes: usize,
}

fn split_list(lists: &[u8]) -> Option<(SignatureList<'_>, &[u8])> {
    let word = |at: usize| Some(u32::from_le_bytes(*lists.get(at..)?.first_chunk()?) as usize);
    let kind = *lists.first_chunk()?;
    let (list_bytes, header_bytes, entry_bytes) = (word(16)?, word(20)?, word(24)?);
    let start = LIST_HEADER_BYTES.checked_add(header_bytes)?;
    let (list, rest) = lists.split_at_checked(list_bytes)?;
    let body = list.get(start..)?;
    let list = SignatureList {
        kind,
        body,
        entry_bytes,
    };
    (entry_bytes > 16).then_some((list, rest))
}
