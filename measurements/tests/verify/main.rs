//! The program `cocoon-measure verify` over public vectors: what it accepts, and with which exit code it refuses.
//! Without `COCOON_VECTORS` the tests that need vectors pass with a message.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod policy;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

/// When the collateral of phala/tdx_quote is valid; published with the quote.
const PHALA: &str = "1750332747";
/// 2025-10-01, inside the validity of AMD's and NVIDIA's certificates.
const AT: &str = "1759276800";

fn measure(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cocoon-measure"))
        .arg("verify")
        .args(arguments)
        .output()
        .unwrap()
}

struct Vectors {
    folder: PathBuf,
    scratch: tempfile::TempDir,
}

impl Vectors {
    fn open() -> Option<Self> {
        let Some(folder) = std::env::var_os("COCOON_VECTORS").map(PathBuf::from) else {
            eprintln!("skipped: COCOON_VECTORS does not name a folder with public test vectors");
            return None;
        };
        Some(Self {
            folder,
            scratch: tempfile::tempdir().unwrap(),
        })
    }

    fn path(&self, name: &str) -> String {
        let path = self.folder.join(name);
        assert!(path.exists(), "{} is missing", path.display());
        path.to_str().unwrap().to_owned()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn scratch(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.scratch.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Runs over `evidence`; words with a slash are vectors.
    #[track_caller]
    fn judge(&self, kind: &str, evidence: &str, arguments: &str) -> (i32, Value) {
        let words = arguments.split_whitespace().map(|word| {
            match word.contains('/') && !Path::new(word).is_absolute() {
                true => self.path(word),
                false => word.to_owned(),
            }
        });
        let words: Vec<String> = words.collect();
        let mut all = vec!["--kind", kind, "--evidence", evidence, "--json"];
        all.extend(words.iter().map(String::as_str));
        let output = measure(&all);
        let code = output.status.code().unwrap();
        let judgement: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        assert_well_formed(&judgement, code);
        (code, judgement)
    }

    #[track_caller]
    fn expect(&self, code: i32, kind: &str, evidence: &str, arguments: &str) -> Value {
        let (found, judgement) = self.judge(kind, evidence, arguments);
        assert_eq!(
            found,
            code,
            "{kind} {evidence} {arguments}: {:#?}",
            failed(&judgement)
        );
        judgement
    }
}

#[track_caller]
fn assert_well_formed(judgement: &Value, code: i32) {
    assert_eq!(judgement["schema"], "cocoon.verify/1");
    assert_eq!(judgement["verdict"], if code == 0 { "pass" } else { "fail" });
    assert!(judgement["claims"].is_object());
    let checks = judgement["checks"].as_array().unwrap();
    assert!(!checks.is_empty());
    for check in checks {
        for key in ["id", "expected", "actual", "detail"] {
            assert!(check[key].is_string(), "{key} of {check}");
        }
        assert!(["PASS", "FAIL", "SKIP"].contains(&check["status"].as_str().unwrap()));
        assert_eq!(check.as_object().unwrap().len(), 5, "{check}");
    }
    assert_eq!(code == 0, failed(judgement).is_empty());
}

fn failed(judgement: &Value) -> Vec<&Value> {
    let checks = judgement["checks"].as_array().unwrap();
    checks.iter().filter(|check| check["status"] == "FAIL").collect()
}

#[track_caller]
fn assert_status(judgement: &Value, id: &str, status: &str) {
    let checks = judgement["checks"].as_array().unwrap();
    let check = checks
        .iter()
        .find(|check| check["id"] == id)
        .unwrap_or_else(|| panic!("no check {id}"));
    assert_eq!(check["status"], status, "{check}");
}

/// Evidence that verifies, and how.
struct Case {
    kind: &'static str,
    evidence: &'static str,
    arguments: String,
}

fn good() -> Vec<Case> {
    let case = |kind, evidence, arguments: &str| Case {
        kind,
        evidence,
        arguments: arguments.to_owned(),
    };
    vec![
        case(
            "tdx",
            "tdx/phala/tdx_quote",
            &format!("--collateral tdx/phala/tdx_quote_collateral.json --at {PHALA}"),
        ),
        // 2026-10-08T06:00:00Z.
        case(
            "tdx",
            "tdx/phala/tdx_quote_td15ex",
            "--collateral tdx/phala/tdx_quote_td15ex_collateral.json --at 1791439200",
        ),
        case(
            "snp",
            "snp/coco/test-report.bin",
            &format!("--certs snp/coco/test-vcek.der --certs snp/coco/milan_ask_ark_asvk.pem --at {AT}"),
        ),
        case(
            "snp",
            "snp/virtee_sev/report_milan.hex",
            &format!(
                "--certs snp/virtee_sev/vcek_milan.der --certs snp/virtee_sev/cert_chain_milan --at {AT}"
            ),
        ),
        case(
            "snp",
            "snp/coco/test-vlek-report.bin",
            &format!("--certs snp/coco/test-vlek.der --certs snp/coco/milan_ask_ark_asvk.pem --at {AT}"),
        ),
        case(
            "nvidia",
            "nvidia/sdk_testdata/hopperAttestationReport.txt",
            &format!("--certs nvidia/sdk_testdata/hopperCertChain.txt --at {AT}"),
        ),
        case(
            "nvidia",
            "nvidia/sdk_testdata/blackwellAttestationReport.txt",
            &format!("--certs nvidia/sdk_testdata/blackwellCertChain.txt --at {AT}"),
        ),
        case(
            "nvidia",
            "nvidia/sdk_testdata/switchAttestationReport.txt",
            &format!("--certs nvidia/sdk_testdata/switchCertChain.txt --at {AT}"),
        ),
        case(
            "nvidia",
            "nvidia/evidence/hopper_evidence.json",
            &format!("--at {AT}"),
        ),
    ]
}

fn bytes_of(text_or_bytes: &[u8]) -> Vec<u8> {
    hex::decode(text_or_bytes.trim_ascii()).unwrap_or_else(|_| text_or_bytes.to_vec())
}

#[test]
fn genuine_evidence_verifies_raw_and_as_hexadecimal_text() {
    let Some(vectors) = Vectors::open() else { return };
    for Case {
        kind,
        evidence,
        arguments,
    } in good()
    {
        vectors.expect(0, kind, &vectors.path(evidence), &arguments);
        if evidence.ends_with(".json") {
            continue;
        }
        let raw = bytes_of(&vectors.read(evidence));
        vectors.expect(0, kind, &vectors.scratch("raw", &raw), &arguments);
        let lines: Vec<_> = raw.chunks(32).map(hex::encode_upper).collect();
        let text = format!("0x{}\r\n", lines.join("\n"));
        vectors.expect(0, kind, &vectors.scratch("hex", text.as_bytes()), &arguments);
    }
}

#[test]
fn registers_without_a_policy_are_listed_and_not_compared() {
    let Some(vectors) = Vectors::open() else { return };
    let Case {
        kind,
        evidence,
        arguments,
    } = &good()[0];
    let judgement = vectors.expect(0, kind, &vectors.path(evidence), arguments);
    for register in ["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_config_id"] {
        assert_status(&judgement, &format!("register.{register}"), "SKIP");
    }
    let (evidence, collateral) = (
        vectors.path(evidence),
        vectors.path("tdx/phala/tdx_quote_collateral.json"),
    );
    let arguments = [
        "--kind",
        "tdx",
        "--evidence",
        &evidence,
        "--collateral",
        &collateral,
        "--at",
        PHALA,
    ];
    let output = measure(&arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    let verdict = text.lines().last().unwrap();
    assert_eq!(
        verdict,
        "VERDICT: PASS: platform genuine; registers NOT compared: no policy."
    );
    assert!(
        !text.contains('\u{1b}'),
        "colour although standard output is no terminal"
    );
}

#[test]
fn truncated_lengthened_and_flipped_evidence_is_refused_as_not_the_vendors() {
    let Some(vectors) = Vectors::open() else { return };
    for Case {
        kind,
        evidence,
        arguments,
    } in good()
    {
        if evidence.ends_with(".json") {
            continue;
        }
        let raw = bytes_of(&vectors.read(evidence));
        let expect = |name: &str, bytes: &[u8]| {
            vectors.expect(11, kind, &vectors.scratch(name, bytes), &arguments);
        };
        for length in [0, 1, 3, raw.len() / 2, raw.len() - 1] {
            expect("truncated", &raw[..length]);
        }
        for byte in [0, 1, b'0', 0xff] {
            expect("trailing", &[&raw[..], &[byte]].concat());
        }
        // Some bytes of a quote change attributes, too: with several faults the signature comes first.
        for position in (0..if kind == "tdx" { 4900 } else { raw.len() }).step_by(389) {
            let mut flipped = raw.clone();
            flipped[position] ^= 1 << (position % 8);
            expect("flipped", &flipped);
        }
        expect("huge", &vec![4; 5 << 20]);
        expect("hex", b"0x");
    }
}

#[test]
fn evidence_of_another_kind_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    for case in good() {
        for kind in ["tdx", "snp", "nvidia"] {
            if kind != case.kind {
                vectors.expect(11, kind, &vectors.path(case.evidence), &case.arguments);
            }
        }
    }
}

#[test]
fn what_is_wrong_with_real_evidence_is_in_the_exit_code() {
    let Some(vectors) = Vectors::open() else { return };
    let phala = "--collateral tdx/phala/tdx_quote_collateral.json";
    let milan = "--certs snp/coco/milan_ask_ark_asvk.pem";
    let cases = [
        // Expired collateral, one second after nextUpdate.
        (
            12,
            "tdx",
            "tdx/phala/tdx_quote",
            format!("{phala} --at 1752920164"),
        ),
        (12, "tdx", "tdx/phala/tdx_quote", format!("{phala} --at 0")),
        (12, "tdx", "tdx/phala/tdx_quote", format!("--at {PHALA}")),
        (
            12,
            "tdx",
            "tdx/phala/tdx_quote_outdated",
            "--collateral tdx/phala/tdx_quote_outdated_collateral.json --at 1771415931".to_owned(),
        ),
        // A foreign root.
        (
            11,
            "tdx",
            "tdx/phala/tdx_quote",
            format!("{phala} --at {PHALA} --root tdx/intel_qvl_sample_testroot/trustedRootCaCert.pem"),
        ),
        // Forged, and for another driver.
        (
            11,
            "nvidia",
            "nvidia/sdk_testdata/hopperAttestationReport.txt",
            format!(
                "--certs nvidia/sdk_testdata/hopperCertChain.txt \
                 --rim nvidia/sdk_testdata/incorrect_signature_driver_rim.xml --at {AT}"
            ),
        ),
        (
            11,
            "tdx",
            "eventlog/ccapi_ubuntu/quote_v4.bin",
            format!("{phala} --at {PHALA}"),
        ),
        (
            11,
            "tdx",
            "tdx/intel_qvl_sample_testroot/quote.dat",
            format!("{phala} --at {PHALA}"),
        ),
        // An SGX quote, and collateral that is none.
        (
            11,
            "tdx",
            "tdx/phala/sgx_quote",
            format!("--collateral tdx/phala/sgx_quote_collateral.json --at {PHALA}"),
        ),
        (
            11,
            "tdx",
            "tdx/phala/tdx_quote",
            format!("--collateral tdx/phala/tdx_quote --at {PHALA}"),
        ),
        // Certificates that belong to another chip, or to nobody, or are not there.
        (
            11,
            "snp",
            "snp/coco/test-report.bin",
            format!("--certs snp/coco/test-vcek-invalid-legacy.der {milan} --at {AT}"),
        ),
        (
            11,
            "snp",
            "snp/coco/test-report.bin",
            format!("--certs snp/coco/test-vcek-invalid-new.der {milan} --at {AT}"),
        ),
        (
            11,
            "snp",
            "snp/coco/test-report.bin",
            format!("--certs snp/virtee_sev/vcek_milan.der {milan} --at {AT}"),
        ),
        (12, "snp", "snp/coco/test-report.bin", format!("--at {AT}")),
        (
            12,
            "snp",
            "snp/coco/test-report.bin",
            format!("--certs snp/coco/test-vcek.der {milan} --at 0"),
        ),
        (
            11,
            "nvidia",
            "nvidia/sdk_testdata/hopperAttestationReportInvalidSignature.txt",
            format!("--certs nvidia/sdk_testdata/hopperCertChain.txt --at {AT}"),
        ),
        (
            11,
            "nvidia",
            "nvidia/sdk_testdata/switchAttestationReportInvalidSignature.txt",
            format!("--certs nvidia/sdk_testdata/switchCertChain.txt --at {AT}"),
        ),
        (
            11,
            "nvidia",
            "nvidia/sdk_testdata/hopperAttestationReport.txt",
            format!("--certs nvidia/sdk_testdata/switchCertChain.txt --at {AT}"),
        ),
        (
            11,
            "nvidia",
            "nvidia/sdk_testdata/hopperAttestationReport.txt",
            format!("--certs nvidia/sdk_testdata/hopperAttestationReport.txt --at {AT}"),
        ),
        (
            11,
            "nvidia",
            "nvidia/sdk_testdata/hopperAttestationReport.txt",
            format!(
                "--certs nvidia/sdk_testdata/hopperCertChain.txt --root nvidia/certs/verifier_RIM_root.pem --at {AT}"
            ),
        ),
    ];
    for (code, kind, evidence, arguments) in cases {
        vectors.expect(code, kind, &vectors.path(evidence), &arguments);
    }
}

#[test]
fn a_debug_td_is_refused_for_its_attributes() {
    let Some(vectors) = Vectors::open() else { return };
    let arguments = format!("--collateral tdx/phala/tdx_quote_collateral.json --at {PHALA}");
    let evidence = vectors.path("tdx/quotes/coco_tdx_quote_4_debug_v4.dat");
    // The collateral is another platform's; the attributes fail all the same.
    let (_, judgement) = vectors.judge("tdx", &evidence, &arguments);
    assert_status(&judgement, "td.debug", "FAIL");
}

#[test]
fn a_nonce_that_the_evidence_does_not_bind_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    for case in good() {
        let evidence = vectors.path(case.evidence);
        let arguments = format!("{} --nonce {}", case.arguments, "5a".repeat(32));
        vectors.expect(10, case.kind, &evidence, &arguments);
    }
    let quote = vectors.read("tdx/phala/tdx_quote");
    let report_data = hex::encode(&quote[48 + 520..48 + 584]);
    let case = &good()[0];
    let arguments = format!("{} --nonce {report_data}", case.arguments);
    vectors.expect(0, "tdx", &vectors.path(case.evidence), &arguments);
}

#[test]
fn an_unusable_command_line_ends_with_2_whatever_the_evidence() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"nothing").unwrap();
    let (file, absent) = (file.to_str().unwrap(), folder.path().join("absent"));
    let absent = absent.to_str().unwrap();
    let cases: &[&[&str]] = &[
        &[],
        &["--kind", "tdx"],
        &["--kind", "sgx", "--evidence", file],
        &["--kind", "tdx", "--evidence", absent],
        &["--kind", "tdx", "--evidence", folder.path().to_str().unwrap()],
        &["--kind", "tdx", "--evidence", file, "--collateral", absent],
        &["--kind", "snp", "--evidence", file, "--certs", absent],
        &["--kind", "nvidia", "--evidence", file, "--rim", absent],
        &["--kind", "tdx", "--evidence", file, "--nonce", "xyz"],
        &["--kind", "tdx", "--evidence", file, "--nonce", ""],
        &["--kind", "tdx", "--evidence", file, "--at", "tomorrow"],
        &["--kind", "tdx", "--evidence", file, "--root", file],
        &["--kind", "snp", "--evidence", file, "--root", file],
        &["--kind", "nvidia", "--evidence", file, "--root", file],
        &["--kind", "tdx", "--evidence", file, "--policy", file],
        &["--kind", "tdx", "--evidence", file, "--policy", absent],
    ];
    for arguments in cases {
        let output = measure(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
    let output = measure(&["--kind", "tdx", "--evidence", file]);
    assert_eq!(output.status.code(), Some(11));
}
