//! `cocoon-measure quote` and `diff`: evidence of every vendor, field by field (public evidence from the folder
//! that `COCOON_VECTORS` names; without it those tests pass with a message), and bytes that an enemy would send.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cocoon_measurements::fields::{Fields, FieldsError};
use proptest::prelude::*;
use serde_json::Value;

fn vector(name: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("COCOON_VECTORS") else {
        eprintln!("skipped: COCOON_VECTORS does not name a folder with public test vectors");
        return None;
    };
    let path = Path::new(&folder).join(name);
    assert!(path.exists(), "{} is missing", path.display());
    Some(path)
}

fn command(arguments: &[&str]) -> (Option<i32>, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_cocoon-measure"))
        .args(arguments)
        .arg("--json")
        .output()
        .unwrap();
    (
        output.status.code(),
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
    )
}

fn quote(name: &str) -> Option<Value> {
    let path = vector(name)?;
    let (code, document) = command(&["quote", path.to_str()?]);
    assert_eq!(code, Some(0), "{name}");
    assert_eq!(document["schema"], "cocoon.quote/1");
    Some(document)
}

fn field<'a>(document: &'a Value, name: &str) -> &'a Value {
    let fields = document["fields"].as_array().unwrap();
    fields
        .iter()
        .find(|field| field["name"] == name)
        .unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn every_kind_of_public_evidence_is_taken_apart() {
    for (name, format) in [
        ("tdx/phala/tdx_quote", "tdx-quote-v4"),
        ("tdx/phala/tdx_quote_outdated", "tdx-quote-v5"),
        ("tdx/phala/tdx_quote_td15ex", "tdx-quote-v5"),
        ("tdx/phala/sgx_quote", "sgx-quote-v3"),
        ("tdx/quotes/coco_tdx_quote_5_v5.dat", "tdx-quote-v5"),
        ("tdx/intel_qvl_sample_testroot/quote.dat", "tdx-quote-v4"),
        ("eventlog/gcp_cos113/quote_v4.dat", "tdx-quote-v4"),
        ("snp/coco/test-report.bin", "snp-report"),
        ("snp/coco/test-vlek-report.bin", "snp-report"),
        ("snp/virtee_sev/report_milan.hex", "snp-report"),
        ("nvidia/sdk_testdata/hopperAttestationReport.txt", "nvidia-report"),
        (
            "nvidia/sdk_testdata/blackwellAttestationReport.txt",
            "nvidia-report",
        ),
        ("nvidia/sdk_testdata/switchAttestationReport.txt", "nvidia-report"),
        ("nvidia/evidence/hopper_evidence.json", "nvidia-report"),
    ] {
        let Some(document) = quote(name) else { return };
        assert_eq!(document["format"], format, "{name}");
        let mut next = 0;
        for field in document["fields"].as_array().unwrap() {
            assert_eq!(field["offset"], next, "{name}: a gap before {}", field["name"]);
            next += field["value"].as_str().unwrap().len() / 2;
        }
    }
}

#[test]
fn bits_have_names() {
    let Some(debug) = quote("tdx/quotes/coco_tdx_quote_4_debug_v4.dat") else {
        return;
    };
    let meaning = field(&debug, "body.td_attributes")["meaning"].as_str().unwrap();
    assert!(meaning.contains("DEBUG"), "{meaning}");
    let Some(vlek) = quote("snp/coco/test-vlek-report.bin") else {
        return;
    };
    assert!(
        field(&vlek, "report.key_info")["meaning"]
            .as_str()
            .unwrap()
            .contains("VLEK")
    );
}

#[test]
fn the_nonce_of_a_gpu_report_is_the_one_that_was_asked_with() {
    let name = "nvidia/evidence/hopper_evidence.json";
    let Some(document) = quote(name) else { return };
    let evidence: Value = serde_json::from_slice(&fs::read(vector(name).unwrap()).unwrap()).unwrap();
    assert_eq!(field(&document, "request.nonce")["value"], evidence[0]["nonce"]);
    let driver = field(&document, "opaque.driver_version")["meaning"]
        .as_str()
        .unwrap();
    assert!(driver.split('.').count() >= 2, "{driver:?}");
}

#[test]
fn every_truncation_of_a_quote_is_refused() {
    let Some(path) = vector("tdx/phala/tdx_quote_td15ex") else {
        return;
    };
    let bytes = fs::read(path).unwrap();
    assert!(Fields::parse(&bytes).is_ok());
    for length in 0..bytes.len() {
        let error = Fields::parse(&bytes[..length]).unwrap_err();
        assert!(
            matches!(
                error,
                FieldsError::Truncated { .. } | FieldsError::Malformed { .. }
            ),
            "{length}: {error}"
        );
    }
}

#[test]
fn two_quotes_differ_in_the_fields_that_differ() {
    let Some(path) = vector("tdx/phala/tdx_quote") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    let mut bytes = fs::read(&path).unwrap();
    let (path, other_path) = (path.to_str().unwrap(), other.to_str().unwrap());
    fs::write(&other, &bytes).unwrap();
    let (code, document) = command(&["diff", path, other_path]);
    assert_eq!((code, &document["same"]), (Some(0), &Value::Bool(true)));
    assert_eq!(document["schema"], "cocoon.diff/1");
    // RTMR1 of a version 4 quote.
    bytes[48 + 376] ^= 1;
    fs::write(&other, &bytes).unwrap();
    let (code, document) = command(&["diff", path, other_path]);
    assert_eq!(code, Some(10));
    let rows = document["rows"].as_array().unwrap();
    assert_eq!(
        (rows.len(), &rows[0]["path"]),
        (1, &Value::from("fields.body.rtmr1.value"))
    );
}

#[test]
fn two_logs_differ_in_the_events_that_differ() {
    let (Some(a), Some(b)) = (
        vector("eventlog/coco/CCEL_data_ovmf"),
        vector("eventlog/dstack/ccel_1024MB.bin"),
    ) else {
        return;
    };
    let (code, document) = command(&["diff", a.to_str().unwrap(), b.to_str().unwrap()]);
    assert_eq!(code, Some(10));
    let paths: Vec<_> = document["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["path"].as_str().unwrap())
        .collect();
    assert!(paths.contains(&"registers.rtmr1"), "{paths:?}");
    assert!(
        paths.contains(&"events.rtmr0[0]"),
        "the hand-off block of another memory size: {paths:?}"
    );
    assert!(
        !paths.contains(&"events.rtmr0[1]"),
        "the same configuration volume: {paths:?}"
    );
}

proptest! {
    #[test]
    fn hostile_evidence_never_panics(
        start in prop::sample::select(STARTS.to_vec()),
        tail in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(5), Just(6), any::<u8>()], 0..2000),
        length in prop::sample::select(vec![0usize, 1024, 1184]),
    ) {
        let mut bytes = [start, &tail].concat();
        if length > 0 {
            bytes.resize(length, 0);
        }
        if let Ok(fields) = Fields::parse(&bytes) {
            let total: usize = fields.fields.iter().map(|field| field.value.len() / 2).sum();
            prop_assert_eq!(total, bytes.len(), "every byte is in one field");
        }
    }
}

const STARTS: &[&[u8]] = &[
    &[],
    &[4, 0, 2, 0, 0x81, 0, 0, 0],
    &[5, 0, 2, 0, 0x81, 0, 0, 0],
    &[3, 0, 2, 0, 0, 0, 0, 0],
    &[2, 0, 0, 0],
    &[0x81, 0, 0, 0],
    &[
        0x11, 0xe0, 1, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0x11, 0x60,
    ],
];
