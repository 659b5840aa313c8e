//! Evidence of real NVIDIA devices and NVIDIA's own RIM files, from the folder that `COCOON_VECTORS` names. Without
//! it the tests pass with a message; if it is set, a missing file fails.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use cocoon_verify::judgement::{FailureClass, Judgement, Status, Verdict};
use cocoon_verify::nvidia::{
    GpuMode, NvidiaInputs, NvidiaRoots, Report, Rim, judge_nvidia, read_certificates, read_evidence,
};

/// 2026-06-01, when every RIM file that is not meant to be expired is valid.
const NOW_S: u64 = 1_780_272_000;
/// 2024-06-01, when the VBIOS RIM of nvtrust is.
const IN_2024_S: u64 = 1_717_200_000;

struct Vectors(PathBuf);

impl Vectors {
    fn open() -> Option<Self> {
        let folder = std::env::var_os("COCOON_VECTORS").map(PathBuf::from);
        if folder.is_none() {
            eprintln!("skipped: COCOON_VECTORS does not name a folder with public test vectors");
        }
        folder.map(Self)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        let path = self.0.join("nvidia").join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn certificates(&self, name: &str) -> Vec<Vec<u8>> {
        read_certificates(&self.read(name)).unwrap()
    }

    fn report(&self, name: &str) -> Vec<u8> {
        read_evidence(&self.read(name)).unwrap().remove(0).report
    }
}

/// What is judged with, so that a test states only what it is about.
struct Judge {
    certificates: Vec<Vec<u8>>,
    rims: Vec<Vec<u8>>,
    nonce: Option<Vec<u8>>,
    roots: NvidiaRoots,
    now_s: u64,
}

impl Judge {
    fn with(certificates: Vec<Vec<u8>>) -> Self {
        let (rims, nonce, roots) = (Vec::new(), None, NvidiaRoots::pinned());
        Self {
            certificates,
            rims,
            nonce,
            roots,
            now_s: NOW_S,
        }
    }

    fn judge(&self, evidence: &[u8]) -> Judgement {
        let inputs = NvidiaInputs {
            certificates: &self.certificates,
            rims: &self.rims,
            ocsp: &[],
            nonce: self.nonce.as_deref(),
            roots: &self.roots,
            policy: None,
            guest: None,
            now_s: self.now_s,
        };
        judge_nvidia(evidence, &inputs)
    }
}

fn status(judgement: &Judgement, id: &str) -> Status {
    let row = judgement.checks().iter().find(|check| check.id == id);
    row.unwrap_or_else(|| panic!("no row {id} in {judgement:#?}"))
        .status
}

#[track_caller]
fn assert_passes(judgement: &Judgement) {
    let failed: Vec<_> = judgement
        .checks()
        .iter()
        .filter(|check| check.status == Status::Fail)
        .collect();
    assert_eq!(judgement.verdict(), Verdict::Pass, "{failed:#?}");
}

#[track_caller]
fn assert_fails(judgement: &Judgement, class: FailureClass, ids: &[&str]) {
    let failed = judgement
        .checks()
        .iter()
        .filter(|check| check.status == Status::Fail);
    let failed: Vec<_> = failed.map(|check| check.id.as_str()).collect();
    assert_eq!(failed, ids, "{judgement:#?}");
    assert_eq!(judgement.failure(), Some(class));
}

#[test]
fn reports_of_hopper_blackwell_and_nvswitch_verify() {
    let Some(vectors) = Vectors::open() else { return };
    let pairs = [
        ("sdk_testdata/hopper", "hopper", "GH100"),
        ("sdk_testdata/blackwell", "blackwell", "GB100"),
        ("sdk_testdata/switch", "nvswitch-ls10", "LS_10"),
        ("nvtrust/hopper", "hopper", "GH100"),
    ];
    for (name, architecture, chip) in pairs {
        let judge = Judge::with(vectors.certificates(&format!("{name}CertChain.txt")));
        let judgement = judge.judge(&vectors.read(&format!("{name}AttestationReport.txt")));
        assert_passes(&judgement);
        let device = &judgement.claims()["devices"][0];
        assert_eq!(
            (&device["architecture"], &device["chip"]),
            (&architecture.into(), &chip.into())
        );
    }
}

#[test]
fn the_facts_of_a_report_are_claims() {
    let Some(vectors) = Vectors::open() else { return };
    let judge = Judge::with(vectors.certificates("nvtrust/hopperCertChain.txt"));
    let judgement = judge.judge(&vectors.read("nvtrust/hopperAttestationReport.txt"));
    let device = &judgement.claims()["devices"][0];
    assert_eq!(device["driver_version"], "550.90.07");
    assert_eq!(device["firmware_version"], "96.00.9F.00.01");
    assert_eq!(device["driver_rim"], "NV_GPU_DRIVER_GH100_550.90.07");
    assert_eq!(device["firmware_rim"], "NV_GPU_VBIOS_1010_0200_882_96009F0001");
    assert_eq!(device["mode"], "unreported");
    assert_eq!(device["measurements"].as_array().unwrap().len(), 64);
    assert_eq!(status(&judgement, "device.fwid"), Status::Pass);
    assert_eq!(status(&judgement, "report.nonce"), Status::Skip);
    assert_eq!(status(&judgement, "device.secure-boot"), Status::Skip);
    assert_eq!(status(&judgement, "device.confidential-compute"), Status::Skip);
}

#[test]
fn evidence_as_nvidias_json_brings_its_own_chain_and_nonce() {
    let Some(vectors) = Vectors::open() else { return };
    for (name, version, mode) in [
        ("evidence/hopper_evidence.json", "590.12", GpuMode::ProtectedPcie),
        // Its signature and chain are good: what is on hold is the signer of its driver's RIM file.
        (
            "evidence/hopper_evidence_cert_hold.json",
            "570.86.10",
            GpuMode::Unreported,
        ),
    ] {
        let judgement = Judge::with(Vec::new()).judge(&vectors.read(name));
        assert_passes(&judgement);
        let device = &judgement.claims()["devices"][0];
        assert_eq!(
            (&device["driver_version"], &device["mode"]),
            (&version.into(), &mode.name().into())
        );
        assert_eq!(status(&judgement, "evidence.nonce"), Status::Pass);
    }
}

#[test]
fn raw_bytes_and_hexadecimal_text_are_the_same_evidence() {
    let Some(vectors) = Vectors::open() else { return };
    let judge = Judge::with(vectors.certificates("sdk_testdata/hopperCertChain.txt"));
    let name = "sdk_testdata/hopperAttestationReport.txt";
    assert_eq!(
        judge.judge(&vectors.report(name)),
        judge.judge(&vectors.read(name))
    );
}

#[test]
fn a_replayed_report_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let mut judge = Judge::with(vectors.certificates("sdk_testdata/hopperCertChain.txt"));
    let report = vectors.report("sdk_testdata/hopperAttestationReport.txt");
    judge.nonce = Some(report[4..36].to_vec());
    assert_passes(&judge.judge(&report));
    judge.nonce = Some(vec![7; 32]);
    assert_fails(&judge.judge(&report), FailureClass::Policy, &["report.nonce"]);
}

#[test]
fn reports_with_invalid_signatures_are_refused() {
    let Some(vectors) = Vectors::open() else { return };
    for device in ["hopper", "switch"] {
        let judge = Judge::with(vectors.certificates(&format!("sdk_testdata/{device}CertChain.txt")));
        let name = format!("sdk_testdata/{device}AttestationReportInvalidSignature.txt");
        let judgement = judge.judge(&vectors.read(&name));
        assert_eq!(status(&judgement, "report.signature"), Status::Fail);
        assert_eq!(judgement.failure(), Some(FailureClass::Signature));
    }
}

#[test]
fn the_chain_of_another_device_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let judge = Judge::with(vectors.certificates("nvtrust/hopperCertChain.txt"));
    let judgement = judge.judge(&vectors.read("sdk_testdata/hopperAttestationReport.txt"));
    assert_fails(&judgement, FailureClass::Signature, &["report.signature"]);
}

#[test]
fn a_chain_to_another_root_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let mut judge = Judge::with(vectors.certificates("sdk_testdata/hopperCertChain.txt"));
    let other = vectors.read("certs/verifier_RIM_root.pem");
    judge.roots = NvidiaRoots::pinned().with_device_root(&other).unwrap();
    let judgement = judge.judge(&vectors.read("sdk_testdata/hopperAttestationReport.txt"));
    assert_fails(&judgement, FailureClass::Signature, &["chain.root"]);
}

#[test]
fn the_roots_in_the_code_are_those_of_nvidias_tools() {
    let Some(vectors) = Vectors::open() else { return };
    let device = vectors.read("certs/verifier_device_root.pem");
    let rim = vectors.read("certs/verifier_RIM_root.pem");
    let given = NvidiaRoots::pinned()
        .with_device_root(&device)
        .unwrap()
        .with_rim_root(&rim)
        .unwrap();
    assert_eq!(given, NvidiaRoots::pinned());
}

#[test]
fn a_chain_out_of_order_or_incomplete_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let chain = vectors.certificates("sdk_testdata/hopperCertChain.txt");
    let report = vectors.read("sdk_testdata/hopperAttestationReport.txt");
    let judged = |order: &[usize]| {
        Judge::with(order.iter().map(|index| chain[*index].clone()).collect()).judge(&report)
    };
    // The root itself may be left out.
    assert_passes(&judged(&[0, 1, 2, 3]));
    for order in [
        &[1, 0, 2, 3, 4][..],
        &[0, 2, 1, 3, 4],
        &[0, 1, 2],
        &[0, 1, 2, 4],
        &[0, 1, 2, 3, 4, 4],
        &[0],
        &[],
    ] {
        let judgement = judged(order);
        assert_eq!(judgement.failure(), Some(FailureClass::Signature), "{order:?}");
    }
}

#[test]
fn certificates_that_are_not_valid_yet_are_refused_for_their_date() {
    let Some(vectors) = Vectors::open() else { return };
    let mut judge = Judge::with(vectors.certificates("sdk_testdata/hopperCertChain.txt"));
    // 2021-12-01, before the GH100 authority was made.
    judge.now_s = 1_638_316_800;
    let judgement = judge.judge(&vectors.read("sdk_testdata/hopperAttestationReport.txt"));
    assert_fails(&judgement, FailureClass::Tcb, &["chain.validity"]);
}

/// The set that upstream calls "expired": report and chain are good, the signer of the driver's RIM file is what
/// expired. The file itself is made up: it was changed after it was signed, which is the worse fault.
#[test]
fn a_rim_file_of_an_expired_signer_is_refused_for_its_date() {
    let Some(vectors) = Vectors::open() else { return };
    let mut judge = Judge::with(vectors.certificates("sdk_testdata/hopperCertChainExpired.txt"));
    let report = vectors.read("sdk_testdata/hopperAttestationReportExpired.txt");
    assert_passes(&judge.judge(&report));
    judge.rims = vec![vectors.read("sdk_testdata/NV_GPU_DRIVER_GH100_570.124.03_expired.xml")];
    let judgement = judge.judge(&report);
    assert_eq!(
        status(&judgement, "rim.driver.chain.validity"),
        Status::Fail,
        "{judgement:#?}"
    );
    assert_eq!(status(&judgement, "rim.driver.signature"), Status::Fail);
    assert_eq!(judgement.failure(), Some(FailureClass::Signature));
}

#[test]
fn a_report_matches_the_firmwares_rim_file() {
    let Some(vectors) = Vectors::open() else { return };
    let mut judge = Judge::with(vectors.certificates("sdk_testdata/hopperCertChain.txt"));
    judge.rims = vec![vectors.read("nvtrust/1010_0200_882_96005E0001_PROD.swidtag")];
    judge.now_s = IN_2024_S;
    let report = vectors.read("sdk_testdata/hopperAttestationReport.txt");
    let judgement = judge.judge(&report);
    assert_passes(&judgement);
    assert_eq!(status(&judgement, "rim.firmware.measurements"), Status::Pass);
    assert_eq!(status(&judgement, "rim.driver"), Status::Skip);
    // Only half of the measurements was compared.
    assert_eq!(status(&judgement, "device.debug"), Status::Skip);
    // Its signer's certificate ended on 2025-06-22.
    judge.now_s = NOW_S;
    assert_fails(
        &judge.judge(&report),
        FailureClass::Tcb,
        &["rim.firmware.chain.validity"],
    );
}

#[test]
fn measurements_that_differ_from_the_rim_file_are_named() {
    let Some(vectors) = Vectors::open() else { return };
    let mut judge = Judge::with(vectors.certificates("sdk_testdata/hopperCertChain.txt"));
    judge.rims = vec![vectors.read("sdk_testdata/NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml")];
    let judgement = judge.judge(&vectors.read("sdk_testdata/hopperAttestationReport.txt"));
    assert_eq!(
        status(&judgement, "rim.driver.measurements"),
        Status::Fail,
        "{judgement:#?}"
    );
    let named = judgement
        .checks()
        .iter()
        .find(|check| check.id.starts_with("rim.driver.measurement-"))
        .unwrap();
    assert_eq!((named.status, named.class), (Status::Fail, FailureClass::Policy));
    assert_eq!(named.actual.len(), 96);
}

#[test]
fn rim_files_of_other_versions_are_no_match() {
    let Some(vectors) = Vectors::open() else { return };
    let mut judge = Judge::with(vectors.certificates("sdk_testdata/hopperCertChain.txt"));
    judge.rims = vec![vectors.read("sdk_testdata/NV_GPU_DRIVER_GH100_550.144.03.xml")];
    let judgement = judge.judge(&vectors.read("sdk_testdata/hopperAttestationReport.txt"));
    assert_eq!(status(&judgement, "rim.driver"), Status::Skip);
    assert_eq!(status(&judgement, "rim-file-0.signature"), Status::Pass);
    assert_eq!(status(&judgement, "rim-file-0.version"), Status::Fail);
    assert_eq!(judgement.failure(), Some(FailureClass::Policy));
    assert!(
        !judgement
            .checks()
            .iter()
            .any(|check| check.id == "rim.driver.measurements")
    );
}

#[test]
fn a_forged_rim_file_does_not_pass_because_it_is_for_another_version() {
    let Some(vectors) = Vectors::open() else { return };
    let mut judge = Judge::with(vectors.certificates("sdk_testdata/hopperCertChain.txt"));
    judge.rims = vec![vectors.read("sdk_testdata/incorrect_signature_driver_rim.xml")];
    let judgement = judge.judge(&vectors.read("sdk_testdata/hopperAttestationReport.txt"));
    assert_eq!(status(&judgement, "rim-file-0.signature"), Status::Fail);
    assert_eq!(judgement.failure(), Some(FailureClass::Signature));
}

#[test]
fn every_rim_file_of_the_vectors_can_be_read() {
    let Some(vectors) = Vectors::open() else { return };
    for (name, version, active) in [
        (
            "nvtrust/1010_0200_882_96005E0001_PROD.swidtag",
            "96.00.5E.00.01",
            12,
        ),
        ("nvtrust/Driver_RIM_test_no_gpu.swidtag", "545.00", 21),
        (
            "sdk_testdata/NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml",
            "535.86.09",
            22,
        ),
        (
            "sdk_testdata/NV_GPU_DRIVER_GH100_550.144.03.xml",
            "550.144.03",
            21,
        ),
        (
            "sdk_testdata/NV_GPU_DRIVER_GH100_570.124.03_expired.xml",
            "570.124.03",
            21,
        ),
        (
            "sdk_testdata/NV_GPU_VBIOS_1010_0200_882_96005E0001_measurement_mismatch.xml",
            "96.00.5E.00.01",
            12,
        ),
        (
            "sdk_testdata/incorrect_cert_chain_driver_rim.xml",
            "97.00.83.00.09",
            20,
        ),
        (
            "sdk_testdata/incorrect_signature_driver_rim.xml",
            "550.144.03",
            21,
        ),
    ] {
        let rim = Rim::parse(&vectors.read(name)).unwrap();
        assert_eq!(
            (rim.version.as_str(), rim.measurements.len()),
            (version, active),
            "{name}"
        );
    }
}

/// A report whose driver version is the good RIM file's does not exist among the vectors; the signature alone is
/// judged by putting the file's version into a report, which breaks that report's own signature and nothing else.
fn judge_rim(vectors: &Vectors, name: &str, roots: NvidiaRoots) -> Judgement {
    let mut judge = Judge::with(vectors.certificates("nvtrust/hopperCertChain.txt"));
    let mut report = vectors.report("nvtrust/hopperAttestationReport.txt");
    let rim = vectors.read(name);
    let version = Rim::parse(&rim).unwrap().version;
    let place = report
        .windows(9)
        .position(|window| window == b"550.90.07")
        .unwrap();
    // The field is 10 bytes with its zero.
    assert_eq!(version.len(), 10);
    report[place..place + 10].copy_from_slice(version.as_bytes());
    (judge.rims, judge.roots) = (vec![rim], roots);
    judge.judge(&report)
}

#[test]
fn a_rim_file_with_a_wrong_signature_or_root_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let good = judge_rim(
        &vectors,
        "sdk_testdata/NV_GPU_DRIVER_GH100_550.144.03.xml",
        NvidiaRoots::pinned(),
    );
    for id in [
        "signature",
        "chain.signatures",
        "chain.root",
        "chain.constraints",
        "chain.validity",
        "product",
    ] {
        assert_eq!(status(&good, &format!("rim.driver.{id}")), Status::Pass, "{id}");
    }
    let forged = judge_rim(
        &vectors,
        "sdk_testdata/incorrect_signature_driver_rim.xml",
        NvidiaRoots::pinned(),
    );
    assert_eq!(status(&forged, "rim.driver.signature"), Status::Fail);
    let other = vectors.read("certs/verifier_device_root.pem");
    let roots = NvidiaRoots::pinned().with_rim_root(&other).unwrap();
    let foreign = judge_rim(&vectors, "sdk_testdata/NV_GPU_DRIVER_GH100_550.144.03.xml", roots);
    assert_eq!(status(&foreign, "rim.driver.chain.root"), Status::Fail);
}

#[test]
fn a_changed_value_breaks_a_rim_files_signature() {
    let Some(vectors) = Vectors::open() else { return };
    let mut judge = Judge::with(vectors.certificates("sdk_testdata/hopperCertChain.txt"));
    judge.now_s = IN_2024_S;
    let report = vectors.read("sdk_testdata/hopperAttestationReport.txt");
    let rim = String::from_utf8(vectors.read("nvtrust/1010_0200_882_96005E0001_PROD.swidtag")).unwrap();
    let mut assert_unsigned = |changed: String| {
        assert_ne!(changed, rim);
        judge.rims = vec![changed.into_bytes()];
        assert_eq!(
            status(&judge.judge(&report), "rim.firmware.signature"),
            Status::Fail
        );
    };
    assert_unsigned(rim.replacen("active=\"True\"", "active=\"False\"", 1));
    assert_unsigned(rim.replacen("revision=\"r1\"", "revision=\"r2\"", 1));
    assert_unsigned(rim.replacen("        <ns0:Resource", "       <ns0:Resource", 1));
    assert_unsigned(
        rim.replacen("<DigestValue>", "<DigestValue>A", 1)
            .replacen("DigestValue>5", "DigestValue>6", 1)
            .replacen("tagVersion=\"0\"", "tagVersion=\"1\"", 1),
    );
}

/// The same bytes with another meaning to some parser are still the signed document.
#[test]
fn an_equal_document_in_other_bytes_keeps_its_signature() {
    let Some(vectors) = Vectors::open() else { return };
    let mut judge = Judge::with(vectors.certificates("sdk_testdata/hopperCertChain.txt"));
    judge.now_s = IN_2024_S;
    let report = vectors.read("sdk_testdata/hopperAttestationReport.txt");
    let rim = String::from_utf8(vectors.read("nvtrust/1010_0200_882_96005E0001_PROD.swidtag")).unwrap();
    let spaced = rim.replacen(
        "role=\"softwareCreator tagCreator\"/>",
        "  role='softwareCreator tagCreator'  ></ns0:Entity>",
        1,
    );
    assert_ne!(spaced, rim);
    judge.rims = vec![spaced.into_bytes()];
    assert_passes(&judge.judge(&report));
}

#[test]
fn no_byte_of_a_report_is_free() {
    let Some(vectors) = Vectors::open() else { return };
    let judge = Judge::with(vectors.certificates("sdk_testdata/switchCertChain.txt"));
    let report = vectors.report("sdk_testdata/switchAttestationReport.txt");
    assert_passes(&judge.judge(&report));
    // Every bit takes minutes without optimisation; COCOON_EXHAUSTIVE asks for it.
    let step = if std::env::var_os("COCOON_EXHAUSTIVE").is_some() {
        1
    } else {
        61
    };
    let flips = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let mut report = report.clone();
                loop {
                    let bit = flips.fetch_add(step, Ordering::Relaxed);
                    if bit >= report.len() * 8 {
                        return;
                    }
                    report[bit / 8] ^= 1 << (bit % 8);
                    assert_eq!(
                        judge.judge(&report).failure(),
                        Some(FailureClass::Signature),
                        "bit {bit}"
                    );
                    report[bit / 8] ^= 1 << (bit % 8);
                }
            });
        }
    });
    for length in 0..report.len() {
        assert!(Report::parse(&report[..length]).is_err(), "{length} bytes");
    }
    for byte in 0..=u8::MAX {
        let mut longer = report.clone();
        longer.push(byte);
        assert!(Report::parse(&longer).is_err(), "one more byte, {byte}");
    }
}

#[test]
fn no_byte_of_a_chain_is_free() {
    let Some(vectors) = Vectors::open() else { return };
    let chain = vectors.certificates("sdk_testdata/hopperCertChain.txt");
    let report = vectors.read("sdk_testdata/hopperAttestationReport.txt");
    let step = if std::env::var_os("COCOON_EXHAUSTIVE").is_some() {
        1
    } else {
        127
    };
    for index in 0..chain.len() {
        for bit in (0..chain[index].len() * 8).step_by(step) {
            let mut judge = Judge::with(chain.clone());
            judge.certificates[index][bit / 8] ^= 1 << (bit % 8);
            let judgement = judge.judge(&report);
            assert_eq!(
                judgement.failure(),
                Some(FailureClass::Signature),
                "certificate {index}, bit {bit}"
            );
        }
    }
}
