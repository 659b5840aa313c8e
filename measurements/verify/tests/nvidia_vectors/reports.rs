//! Reports of real devices with their chains.

use cocoon_verify::judgement::{FailureClass, Status};
use cocoon_verify::nvidia::{GpuMode, NvidiaRoots};

use crate::inputs::{Judge, Vectors, assert_fails, assert_passes, status};

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
