//! TDX and SGX quotes and TD reports.
//!
//! Sources: Intel TDX DCAP Quote Generation Library and Quote Verification Library (quote format 4 and 5,
//! `sgx_quote_4.h`, `sgx_quote_5.h`), Intel SGX ECDSA QuoteLib Reference (quote format 3, appendix A.4), Intel
//! TDX Module 1.5 ABI Specification (TDREPORT_STRUCT, TDINFO_STRUCT, ATTRIBUTES).

use super::{Cursor, FieldsError, Row, bits, number, opaque, reserved, sgx};

/// TDREPORT_STRUCT as TDG.MR.REPORT writes it.
pub(super) const TD_REPORT_BYTES: usize = 1024;

const TEE_SGX: usize = 0;
const TEE_TDX: usize = 0x81;
const ECDSA_P256: usize = 2;

/// Type of certification data: a QE report that itself has certification data; a PEM chain.
const QE_REPORT: usize = 6;
const PCK_CHAIN: usize = 5;

/// Nested certification data has two levels; more is an attempt to exhaust the stack.
const CERTIFICATION_DEPTH_MAX: usize = 2;

/// Tells a quote from an SNP report, whose version is also a small number at offset 0.
pub(super) fn is_quote(bytes: &[u8]) -> bool {
    matches!(bytes.get(2..8), Some([2 | 3, 0, 0 | 0x81, 0, 0, 0]))
}

pub(super) fn quote(cursor: &mut Cursor<'_>) -> Result<&'static str, FieldsError> {
    let version = cursor.number("header.version", 2)?;
    let key_type = cursor.number("header.att_key_type", 2)?;
    if key_type != ECDSA_P256 {
        let reason = format!("attestation key type {key_type}, only {ECDSA_P256} (ECDSA P-256) is known");
        return Err(FieldsError::Malformed { offset: 2, reason });
    }
    let tee = cursor.number("header.tee_type", 4)?;
    cursor.table("header", HEADER)?;
    let format = match (version, tee) {
        (3, TEE_SGX) => {
            cursor.table("body", sgx::REPORT_BODY)?;
            "sgx-quote-v3"
        }
        (4, TEE_SGX) => {
            cursor.table("body", sgx::REPORT_BODY)?;
            "sgx-quote-v4"
        }
        (4, TEE_TDX) => {
            cursor.table("body", TD_REPORT_10)?;
            "tdx-quote-v4"
        }
        (5, TEE_SGX | TEE_TDX) => {
            typed_body(cursor)?;
            if tee == TEE_TDX {
                "tdx-quote-v5"
            } else {
                "sgx-quote-v5"
            }
        }
        _ => {
            let reason = format!("quote version {version} with TEE type 0x{tee:x}");
            return Err(FieldsError::Malformed { offset: 0, reason });
        }
    };
    signature(cursor, version)?;
    Ok(format)
}

/// Version 5 says which body follows and how long it is.
fn typed_body(cursor: &mut Cursor<'_>) -> Result<(), FieldsError> {
    let offset = cursor.at;
    let kind = cursor.number("body_type", 2)?;
    let bytes = cursor.number("body_size", 4)?;
    let start = cursor.at;
    match kind {
        1 => cursor.table("body", sgx::REPORT_BODY)?,
        2 => cursor.table("body", TD_REPORT_10)?,
        3 => {
            cursor.table("body", TD_REPORT_10)?;
            cursor.table("body", TD_REPORT_15)?;
        }
        4 => {
            cursor.table("body", TD_REPORT_10)?;
            cursor.table("body", TD_REPORT_15)?;
            cursor.table("body", TD_REPORT_15_EX)?;
        }
        _ => {
            let reason = format!("body type {kind}, known are 1 to 4");
            return Err(FieldsError::Malformed { offset, reason });
        }
    }
    if cursor.at - start != bytes {
        let reason = format!(
            "a body of type {kind} has {} bytes, not {bytes}",
            cursor.at - start
        );
        return Err(FieldsError::Malformed {
            offset: offset + 2,
            reason,
        });
    }
    Ok(())
}

fn signature(cursor: &mut Cursor<'_>, version: usize) -> Result<(), FieldsError> {
    let offset = cursor.at;
    let bytes = cursor.number("signature_data_size", 4)?;
    let start = cursor.at;
    let signed = |_: &[u8]| "ECDSA P-256 over header and body, by the attestation key: r, s".to_owned();
    cursor.field("signature.signature".into(), 64, signed)?;
    let key = |_: &[u8]| "P-256 point: x, y; vouched for by the QE report's data".to_owned();
    cursor.field("signature.attestation_key".into(), 64, key)?;
    if version == 3 {
        qe_report(cursor, "signature")?;
        certification(cursor, "signature.certification", 1)?;
    } else {
        certification(cursor, "signature.certification", 0)?;
    }
    if cursor.at - start != bytes {
        let reason = format!(
            "signature data of {bytes} bytes, its fields have {}",
            cursor.at - start
        );
        return Err(FieldsError::Malformed { offset, reason });
    }
    Ok(())
}

fn qe_report(cursor: &mut Cursor<'_>, parent: &str) -> Result<(), FieldsError> {
    cursor.table(&format!("{parent}.qe_report"), sgx::REPORT_BODY)?;
    let by_pck = |_: &[u8]| "ECDSA P-256 over the QE report, by the PCK: r, s".to_owned();
    cursor.field(format!("{parent}.qe_report_signature"), 64, by_pck)?;
    let bytes = cursor.number(&format!("{parent}.qe_auth_data_size"), 2)?;
    cursor.field(format!("{parent}.qe_auth_data"), bytes, opaque)?;
    Ok(())
}

fn certification(cursor: &mut Cursor<'_>, name: &str, depth: usize) -> Result<(), FieldsError> {
    let offset = cursor.at;
    let kind = cursor.number(&format!("{name}.type"), 2)?;
    let bytes = cursor.number(&format!("{name}.size"), 4)?;
    let start = cursor.at;
    match kind {
        QE_REPORT if depth + 1 < CERTIFICATION_DEPTH_MAX => {
            qe_report(cursor, name)?;
            certification(cursor, &format!("{name}.certification"), depth + 1)?;
        }
        PCK_CHAIN => {
            let chain = |_: &[u8]| "certificates: PCK, its CA, the root".to_owned();
            cursor.field(format!("{name}.pck_chain"), bytes, chain)?;
        }
        _ => {
            cursor.field(format!("{name}.data"), bytes, opaque)?;
        }
    }
    if cursor.at - start != bytes {
        let reason = format!(
            "certification data of {bytes} bytes, its fields have {}",
            cursor.at - start
        );
        return Err(FieldsError::Malformed { offset, reason });
    }
    Ok(())
}

pub(super) fn td_report(cursor: &mut Cursor<'_>) -> Result<&'static str, FieldsError> {
    cursor.table("mac", REPORT_MAC)?;
    cursor.table("tcb", TEE_TCB_INFO)?;
    cursor.field("reserved".into(), 17, reserved)?;
    cursor.table("td", TD_INFO)?;
    Ok("td-report")
}

const HEADER: &[Row] = &[
    Row("qe_svn", 2, number),
    Row("pce_svn", 2, number),
    Row("qe_vendor_id", 16, |value| match value {
        INTEL_QE => "Intel".into(),
        _ => "not Intel".into(),
    }),
    Row("user_data", 20, opaque),
];

/// 939a7233-f79c-4ca9-940a-0db3957f0607.
const INTEL_QE: &[u8] = &[
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];

const TD_REPORT_10: &[Row] = &[
    Row("tee_tcb_svn", 16, |value| {
        format!("TDX module {}.{}, SEAM loader {}", value[1], value[0], value[2])
    }),
    Row("mr_seam", 48, |_| "measurement of the TDX module".into()),
    Row("mrsigner_seam", 48, |_| {
        "zero: the module is signed by Intel".into()
    }),
    Row("seam_attributes", 8, reserved),
    Row("td_attributes", 8, td_attributes),
    Row("xfam", 8, xfam),
    Row("mrtd", 48, |_| "firmware, as it was loaded".into()),
    Row("mr_config_id", 48, |_| "chosen by the host at the start".into()),
    Row("mr_owner", 48, |_| "chosen by the host at the start".into()),
    Row("mr_owner_config", 48, |_| {
        "chosen by the host at the start".into()
    }),
    Row("rtmr0", 48, |_| {
        "firmware configuration and virtual hardware".into()
    }),
    Row("rtmr1", 48, |_| "what the firmware started: the kernel".into()),
    Row("rtmr2", 48, |_| {
        "what the kernel was told: the command line, initrd".into()
    }),
    Row("rtmr3", 48, |_| "written by software in the guest".into()),
    Row("report_data", 64, |_| "chosen by software in the guest".into()),
];

const TD_REPORT_15: &[Row] = &[
    Row("tee_tcb_svn2", 16, |value| {
        format!("current TDX module {}.{}", value[1], value[0])
    }),
    Row("mr_service_td", 48, |value| {
        match value.iter().all(|byte| *byte == 0) {
            true => "no service TD is bound".into(),
            false => "a service TD (migration) is bound".into(),
        }
    }),
];

const TD_REPORT_15_EX: &[Row] = &[
    Row("vmid", 1, |value| match value[0] {
        0 => "the TD itself".into(),
        vm => format!("partition {vm}"),
    }),
    Row("td_id", 32, |_| "new at every start".into()),
    Row("dev_info", 48, |_| "hash of the attached devices".into()),
    Row("init_service_td_hash", 48, |_| {
        "service TDs when the TD was made".into()
    }),
    Row("init_service_td_attributes", 8, opaque),
    Row("init_cpu_svn", 16, opaque),
    Row("init_tee_tcb_svn", 16, opaque),
    Row("init_tee_fmspc", 12, opaque),
    Row("cur_service_td_hash", 48, |_| "service TDs now".into()),
    Row("cur_service_td_attributes", 8, opaque),
];

const REPORT_MAC: &[Row] = &[
    Row("report_type", 4, opaque),
    Row("reserved1", 12, reserved),
    Row("cpu_svn", 16, opaque),
    Row("tee_tcb_info_hash", 48, |_| "SHA-384 of tcb".into()),
    Row("tee_info_hash", 48, |_| "SHA-384 of td".into()),
    Row("report_data", 64, |_| "chosen by software in the guest".into()),
    Row("reserved2", 32, reserved),
    Row("mac", 32, |_| "only this processor can check it".into()),
];

const TEE_TCB_INFO: &[Row] = &[
    Row("valid", 8, opaque),
    Row("tee_tcb_svn", 16, |value| {
        format!("TDX module {}.{}, SEAM loader {}", value[1], value[0], value[2])
    }),
    Row("mr_seam", 48, |_| "measurement of the TDX module".into()),
    Row("mrsigner_seam", 48, |_| {
        "zero: the module is signed by Intel".into()
    }),
    Row("seam_attributes", 8, reserved),
    Row("tee_tcb_svn2", 16, opaque),
    Row("reserved", 95, reserved),
];

const TD_INFO: &[Row] = &[
    Row("attributes", 8, td_attributes),
    Row("xfam", 8, xfam),
    Row("mrtd", 48, |_| "firmware, as it was loaded".into()),
    Row("mr_config_id", 48, |_| "chosen by the host at the start".into()),
    Row("mr_owner", 48, |_| "chosen by the host at the start".into()),
    Row("mr_owner_config", 48, |_| {
        "chosen by the host at the start".into()
    }),
    Row("rtmr0", 48, |_| {
        "firmware configuration and virtual hardware".into()
    }),
    Row("rtmr1", 48, |_| "what the firmware started: the kernel".into()),
    Row("rtmr2", 48, |_| {
        "what the kernel was told: the command line, initrd".into()
    }),
    Row("rtmr3", 48, |_| "written by software in the guest".into()),
    Row("service_td_hash", 48, opaque),
    Row("reserved", 64, reserved),
];

/// TDX Module 1.5 ABI Specification, table 3.25 "ATTRIBUTES".
fn td_attributes(value: &[u8]) -> String {
    let names = [
        (0, "DEBUG: the host can read the TD"),
        (4, "HGS_PLUS_PROF"),
        (5, "PERF_PROF"),
        (6, "PMT_PROF"),
        (16, "ICSSD"),
        (26, "SERVTD_EXT"),
        (27, "LASS"),
        (28, "SEPT_VE_DISABLE"),
        (29, "MIGRATABLE"),
        (30, "PKS"),
        (31, "KL"),
        (62, "TPA"),
        (63, "PERFMON"),
    ];
    bits(value, &names)
}

/// Intel SDM volume 1, section 13.1 "XSAVE-Supported Features and State-Component Bitmaps".
fn xfam(value: &[u8]) -> String {
    let names = [
        (0, "x87"),
        (1, "SSE"),
        (2, "AVX"),
        (3, "BNDREGS"),
        (4, "BNDCSR"),
        (5, "opmask"),
        (6, "ZMM_Hi256"),
        (7, "Hi16_ZMM"),
        (8, "PT"),
        (9, "PKRU"),
        (10, "PASID"),
        (11, "CET_U"),
        (12, "CET_S"),
        (13, "HDC"),
        (14, "UINTR"),
        (15, "LBR"),
        (16, "HWP"),
        (17, "XTILECFG"),
        (18, "XTILEDATA"),
    ];
    bits(value, &names)
}
