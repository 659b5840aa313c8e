//! GPU and NVSwitch reports: an SPDM 1.1 GET_MEASUREMENTS request and its response (DMTF DSP0274 1.1.1, tables
//! 41, 43 and 44), with NVIDIA's opaque data (nvtrust, "local GPU verifier", list of opaque fields).

use super::{Cursor, FieldsError, number, opaque, text};

const SPDM_1_1: u8 = 0x11;
const GET_MEASUREMENTS: u8 = 0xe0;
const MEASUREMENTS: u8 = 0x60;
const REQUEST_BYTES: usize = 37;
const SIGNATURE_BYTES: usize = 96;

pub(super) fn is_report(bytes: &[u8]) -> bool {
    bytes.starts_with(&[SPDM_1_1, GET_MEASUREMENTS])
        && bytes
            .get(REQUEST_BYTES..)
            .is_some_and(|rest| rest.starts_with(&[SPDM_1_1, MEASUREMENTS]))
}

pub(super) fn report(cursor: &mut Cursor<'_>) -> Result<&'static str, FieldsError> {
    cursor.field("request.spdm_version".into(), 1, |_| "1.1".into())?;
    cursor.field("request.code".into(), 1, |_| "GET_MEASUREMENTS".into())?;
    cursor.field("request.param1".into(), 1, |_| "1: with a signature".into())?;
    cursor.field("request.param2".into(), 1, |_| "0xff: all measurements".into())?;
    cursor.field("request.nonce".into(), 32, |_| "chosen by who asked".into())?;
    cursor.field("request.slot_id".into(), 1, number)?;
    cursor.field("response.spdm_version".into(), 1, |_| "1.1".into())?;
    cursor.field("response.code".into(), 1, |_| "MEASUREMENTS".into())?;
    cursor.field("response.param1".into(), 1, opaque)?;
    cursor.field("response.param2".into(), 1, opaque)?;
    let blocks = cursor.number("response.number_of_blocks", 1)?;
    let record_bytes = cursor.number("response.record_bytes", 3)?;
    measurements(cursor, blocks, record_bytes)?;
    cursor.field("response.nonce".into(), 32, |_| "chosen by the device".into())?;
    let opaque_bytes = cursor.number("response.opaque_bytes", 2)?;
    opaque_data(cursor, opaque_bytes)?;
    let signed = |_: &[u8]| "ECDSA P-384 over request and response: r, s".to_owned();
    cursor.field("signature".into(), SIGNATURE_BYTES, signed)?;
    Ok("nvidia-report")
}

/// DSP0274 1.1.1, tables 43 and 44: index, specification, size; then type, size and value of DMTF's form.
fn measurements(cursor: &mut Cursor<'_>, blocks: usize, bytes: usize) -> Result<(), FieldsError> {
    let start = cursor.at;
    for position in 0..blocks {
        let block = format!("measurement[{position}]");
        cursor.field(format!("{block}.index"), 1, number)?;
        cursor.field(format!("{block}.specification"), 1, |_| "1: DMTF".into())?;
        cursor.number(&format!("{block}.size"), 2)?;
        cursor.field(format!("{block}.value_type"), 1, value_type)?;
        let value_bytes = cursor.number(&format!("{block}.value_size"), 2)?;
        cursor.field(format!("{block}.value"), value_bytes, unused)?;
    }
    ends_at(cursor, start, bytes, "the measurement record")
}

fn opaque_data(cursor: &mut Cursor<'_>, bytes: usize) -> Result<(), FieldsError> {
    let start = cursor.at;
    while cursor.at - start < bytes {
        let offset = cursor.at;
        let kind = cursor.number("opaque.type", 2)?;
        let size = cursor.number("opaque.size", 2)?;
        let name = OPAQUE_NAMES.iter().find(|(number, _)| *number == kind);
        let name = name.map_or_else(
            || format!("type_{kind}_at_{offset}"),
            |(_, name)| (*name).to_owned(),
        );
        cursor.field(format!("opaque.{name}"), size, text)?;
    }
    ends_at(cursor, start, bytes, "the opaque data")
}

fn ends_at(cursor: &Cursor<'_>, start: usize, bytes: usize, what: &str) -> Result<(), FieldsError> {
    let found = cursor.at - start;
    if found == bytes {
        return Ok(());
    }
    let reason = format!("{what} says it has {bytes} bytes, its parts have {found}");
    Err(FieldsError::Malformed {
        offset: start,
        reason,
    })
}

/// DSP0274 1.1.1, table 44, DMTFSpecMeasurementValueType.
fn value_type(value: &[u8]) -> String {
    let form = if value[0] & 0x80 == 0 { "digest" } else { "raw" };
    let what = match value[0] & 0x7f {
        0 => "immutable ROM",
        1 => "mutable firmware",
        2 => "hardware configuration",
        3 => "firmware configuration",
        _ => "other",
    };
    format!("{form} of {what}")
}

fn unused(value: &[u8]) -> String {
    match value.iter().all(|byte| *byte == 0) {
        true => "zero: not used".to_owned(),
        false => String::new(),
    }
}

const OPAQUE_NAMES: [(usize, &str); 22] = [
    (1, "cert_issuer_name"),
    (2, "cert_authority_key_identifier"),
    (3, "driver_version"),
    (4, "gpu_info"),
    (5, "sku"),
    (6, "vbios_version"),
    (7, "manufacturer_id"),
    (8, "tamper_detection"),
    (9, "smc"),
    (10, "vpr"),
    (11, "nvdec0_status"),
    (12, "msrscnt"),
    (13, "cprinfo"),
    (14, "board_id"),
    (15, "chip_sku"),
    (16, "chip_sku_mod"),
    (17, "project"),
    (18, "project_sku"),
    (19, "project_sku_mod"),
    (20, "fwid"),
    (21, "protected_pcie_status"),
    (22, "switch_pdi"),
];
