//! NVIDIA's RIM files, alone and beside the reports that they are for.

use cocoon_verify::judgement::{FailureClass, Judgement, Status};
use cocoon_verify::nvidia::{NvidiaRoots, Rim};

use crate::inputs::{IN_2024_S, Judge, NOW_S, Vectors, assert_fails, assert_passes, status};

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
