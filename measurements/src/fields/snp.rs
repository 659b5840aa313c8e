//! SEV-SNP attestation reports (AMD 56860 revision 1.58, "SEV Secure Nested Paging Firmware ABI Specification",
//! table 23 "ATTESTATION_REPORT Structure"; table 10 for the policy).

use super::{Cursor, FieldsError, Row, bits, number, opaque, reserved};

pub(super) const REPORT_BYTES: usize = 1184;

/// Versions 2 to 5 are published; later ones keep the layout of what they take over.
const VERSION_MAX: u8 = 5;

/// By length, version and VMPL: an SNP report has no magic number.
pub(super) fn is_report(bytes: &[u8]) -> bool {
    bytes.len() == REPORT_BYTES && matches!(bytes, [2..=VERSION_MAX, 0, 0, 0, ..])
}

pub(super) fn report(cursor: &mut Cursor<'_>) -> Result<&'static str, FieldsError> {
    cursor.table("report", REPORT)?;
    Ok("snp-report")
}

const REPORT: &[Row] = &[
    Row("version", 4, number),
    Row("guest_svn", 4, number),
    Row("policy", 8, policy),
    Row("family_id", 16, opaque),
    Row("image_id", 16, opaque),
    Row("vmpl", 4, |value| match value {
        [0xff, 0xff, 0xff, 0xff] => "asked for by the host".into(),
        _ => format!("privilege level {} asked for it", number(value)),
    }),
    Row("signature_algo", 4, |value| match value {
        [1, 0, 0, 0] => "ECDSA P-384 with SHA-384".into(),
        _ => "unknown".into(),
    }),
    Row("current_tcb", 8, tcb),
    Row("platform_info", 8, platform_info),
    Row("key_info", 4, |value| match value[0] >> 2 & 7 {
        0 => "signed by the VCEK of this chip".into(),
        1 => "signed by a VLEK of a cloud".into(),
        7 => "not signed".into(),
        _ => "unknown signing key".into(),
    }),
    Row("reserved1", 4, reserved),
    Row("report_data", 64, |_| "chosen by software in the guest".into()),
    Row("measurement", 48, |_| "launch digest".into()),
    Row("host_data", 32, |_| "chosen by the host at the start".into()),
    Row("id_key_digest", 48, opaque),
    Row("author_key_digest", 48, opaque),
    Row("report_id", 32, opaque),
    Row("report_id_ma", 32, opaque),
    Row("reported_tcb", 8, tcb),
    Row("cpuid_family", 1, family),
    Row("cpuid_model", 1, opaque),
    Row("cpuid_stepping", 1, opaque),
    Row("reserved2", 21, reserved),
    Row("chip_id", 64, |_| "the processor, unless masked".into()),
    Row("committed_tcb", 8, tcb),
    Row("current_build", 1, number),
    Row("current_minor", 1, number),
    Row("current_major", 1, number),
    Row("reserved3", 1, reserved),
    Row("committed_build", 1, number),
    Row("committed_minor", 1, number),
    Row("committed_major", 1, number),
    Row("reserved4", 1, reserved),
    Row("launch_tcb", 8, tcb),
    Row("launch_mit_vector", 8, |_| "from version 5 on".into()),
    Row("current_mit_vector", 8, |_| "from version 5 on".into()),
    Row("reserved5", 152, reserved),
    Row("signature_r", 72, |_| "little endian".into()),
    Row("signature_s", 72, |_| "little endian".into()),
    Row("signature_reserved", 368, reserved),
];

fn policy(value: &[u8]) -> String {
    let names = [
        (16, "SMT allowed"),
        (17, "reserved, must be one"),
        (18, "MIGRATE_MA: migration agent allowed"),
        (19, "DEBUG: the host can read the guest"),
        (20, "single socket only"),
        (21, "CXL allowed"),
        (22, "AES-256-XTS required"),
        (23, "RAPL disabled"),
        (24, "ciphertext hiding required"),
        (25, "page swap disabled"),
    ];
    let flags = bits(
        &[0, 0, value[2], value[3], value[4], value[5], value[6], value[7]],
        &names,
    );
    format!("ABI at least {}.{}; {flags}", value[1], value[0])
}

/// The layout changed with Turin (family 0x1a), which this row cannot know: both readings.
fn tcb(value: &[u8]) -> String {
    format!(
        "Milan, Genoa: loader {}, TEE {}, SNP {}, microcode {}; Turin: FMC {}, loader {}, TEE {}, SNP {}, microcode {}",
        value[0], value[1], value[6], value[7], value[0], value[1], value[2], value[3], value[7]
    )
}

fn platform_info(value: &[u8]) -> String {
    let names = [
        (0, "SMT on"),
        (1, "TSME on"),
        (2, "ECC memory"),
        (3, "RAPL disabled"),
        (4, "ciphertext hiding"),
        (5, "aliases checked"),
        (7, "SEV-TIO"),
    ];
    bits(value, &names)
}

fn family(value: &[u8]) -> String {
    match value[0] {
        0x19 => "Milan or Genoa".into(),
        0x1a => "Turin".into(),
        0 => "not filled in before version 3".into(),
        _ => "unknown".into(),
    }
}
