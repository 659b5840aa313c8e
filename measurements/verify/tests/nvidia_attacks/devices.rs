//! What a report, its chain and the policy say of a device.

use crate::nvidia_lab::{Lab, Role, Signer, assert_fails, assert_passes, status, terms};
use cocoon_verify::judgement::FailureClass::{Policy, Signature, Tcb};
use cocoon_verify::judgement::Status;
use cocoon_verify::nvidia::{GpuMode, GuestFact, GuestReport, NvidiaTerms, Report, ReportError};

#[test]
fn a_device_with_both_rim_files_is_accepted() {
    let mut lab = Lab::with_rims();
    lab.policy = Some(terms());
    let judgement = lab.judge();
    assert_passes(&judgement);
    for id in [
        "rim.driver.measurements",
        "rim.firmware.measurements",
        "device.secure-boot",
        "device.debug",
    ] {
        assert_eq!(status(&judgement, id), Status::Pass, "{id}");
    }
    // Never a pass: the report does not say it.
    assert_eq!(status(&judgement, "device.confidential-compute"), Status::Skip);
    assert_eq!(status(&judgement, "device.dev-tools"), Status::Skip);
}

#[test]
fn a_report_of_firmware_that_the_boot_rom_did_not_measure_is_refused() {
    let mut lab = Lab::new();
    lab.set_opaque(20, &[0xf2; 48]);
    assert_fails(&lab.judge(), Signature, &["device.fwid"]);
}

#[test]
fn a_firmware_that_claims_another_chip_than_its_boot_rom_is_refused() {
    let mut lab = Lab::new();
    lab.firmware = Signer::new(
        "GB100 A01 GSP FMC LF",
        &Role::Firmware([0xf1; 48]),
        Some(&lab.boot_rom),
    );
    assert_fails(&lab.judge(), Signature, &["device.architecture"]);
}

#[test]
fn a_chip_without_known_rules_is_refused() {
    let mut lab = Lab::new();
    lab.boot_rom = Signer::new("GA100 A01 GSP BROM", &Role::Authority, Some(&lab.provisioner));
    lab.firmware = Signer::new(
        "GA100 A01 GSP FMC LF",
        &Role::Firmware([0xf1; 48]),
        Some(&lab.boot_rom),
    );
    assert_fails(&lab.judge(), Signature, &["device.architecture"]);
}

#[test]
fn a_leaf_that_issues_certificates_is_refused() {
    let mut lab = Lab::new();
    // The device's own leaf as an authority over one more certificate.
    lab.provisioner = Signer::new("Lab Provisioner", &Role::Leaf, Some(&lab.identity));
    lab.boot_rom = Signer::new("GH100 A01 GSP BROM", &Role::Authority, Some(&lab.provisioner));
    lab.firmware = Signer::new(
        "GH100 A01 GSP FMC LF",
        &Role::Firmware([0xf1; 48]),
        Some(&lab.boot_rom),
    );
    assert_fails(&lab.judge(), Signature, &["chain.constraints"]);
}

#[test]
fn an_authority_beyond_its_path_length_is_refused() {
    let mut lab = Lab::new();
    lab.identity = Signer::edited("Lab Identity", &Role::Authority, Some(&lab.root), |params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(1));
    });
    lab.provisioner = Signer::new("Lab Provisioner", &Role::Authority, Some(&lab.identity));
    lab.boot_rom = Signer::new("GH100 A01 GSP BROM", &Role::Authority, Some(&lab.provisioner));
    lab.firmware = Signer::new(
        "GH100 A01 GSP FMC LF",
        &Role::Firmware([0xf1; 48]),
        Some(&lab.boot_rom),
    );
    assert_fails(&lab.judge(), Signature, &["chain.constraints"]);
}

#[test]
fn an_unknown_critical_extension_is_refused() {
    let mut lab = Lab::new();
    lab.firmware = Signer::edited(
        "GH100 A01 GSP FMC LF",
        &Role::Firmware([0xf1; 48]),
        Some(&lab.boot_rom),
        |params| {
            let mut unknown = rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
            unknown.set_criticality(true);
            params.custom_extensions.push(unknown);
        },
    );
    assert_fails(&lab.judge(), Signature, &["chain.format"]);
}

#[test]
fn an_expired_device_certificate_is_refused_for_its_date() {
    let mut lab = Lab::new();
    lab.boot_rom = Signer::edited(
        "GH100 A01 GSP BROM",
        &Role::Authority,
        Some(&lab.provisioner),
        |params| {
            params.not_after = rcgen::date_time_ymd(2025, 1, 1);
        },
    );
    lab.firmware = Signer::new(
        "GH100 A01 GSP FMC LF",
        &Role::Firmware([0xf1; 48]),
        Some(&lab.boot_rom),
    );
    assert_fails(&lab.judge(), Tcb, &["chain.validity"]);
}

#[test]
fn a_report_of_another_form_is_refused_at_its_offset() {
    let lab = Lab::new();
    let good = lab.unsigned_report(40, &lab.opaque);
    let edited = |offset: usize, value: u8| {
        let mut report = good.clone();
        report[offset] = value;
        Report::parse(&lab.sign_report(report)).unwrap_err()
    };
    // Version, code, no signature asked for, one measurement only, another slot; then the response's.
    for offset in [0, 1, 2, 3, 36, 37, 38, 39, 40] {
        let error = edited(offset, 0x42);
        assert!(
            matches!(error, ReportError::Field { offset: at, .. } if at == offset),
            "{offset}: {error}"
        );
    }
    // One block less than its record holds; a reserved index; another specification; a raw value; another size.
    assert!(matches!(edited(41, 39), ReportError::Length { .. }));
    for (offset, value) in [(45, 0), (45, 255), (46, 2), (49, 0x81), (50, 32)] {
        assert!(
            matches!(edited(offset, value), ReportError::Field { .. }),
            "{offset}"
        );
    }
    assert_eq!(
        edited(45 + 55, 1),
        ReportError::Duplicate {
            field: "measurement",
            number: 1,
            offset: 45 + 55
        }
    );
    let opaque =
        |fields: &[(u16, Vec<u8>)]| Report::parse(&lab.sign_report(lab.unsigned_report(40, fields))).err();
    assert!(matches!(
        opaque(&[(28, vec![])]),
        Some(ReportError::Field {
            field: "opaque field type",
            ..
        })
    ));
    assert!(matches!(
        opaque(&[(20, vec![0; 47])]),
        Some(ReportError::Field { .. })
    ));
    assert!(matches!(
        opaque(&[(34, vec![2, 0])]),
        Some(ReportError::Field {
            field: "opaque data version",
            ..
        })
    ));
    assert!(matches!(
        opaque(&[(3, vec![1]), (3, vec![1])]),
        Some(ReportError::Duplicate { .. })
    ));
    assert!(matches!(
        opaque(&[(4, vec![0; 1100])]),
        Some(ReportError::Field {
            field: "opaque length",
            ..
        })
    ));
    assert_eq!(opaque(&[]), None);
}

#[test]
fn a_downgraded_or_foreign_device_is_refused_by_the_policy() {
    let check = |ids: &[&str], edit: fn(&mut NvidiaTerms)| {
        let mut lab = Lab::with_rims();
        let mut terms = terms();
        edit(&mut terms);
        lab.policy = Some(terms);
        assert_fails(&lab.judge(), Policy, ids);
    };
    check(&["policy.driver-version"], |terms| {
        terms.driver_versions = vec!["580.1".into()];
    });
    check(&["policy.firmware-version"], |terms| {
        terms.firmware_versions = vec!["96.00.AF.00.01".into()];
    });
    check(&["device.mode"], |terms| {
        terms.modes = vec![GpuMode::MultiGpu, GpuMode::Unreported];
    });
    check(&["device.count"], |terms| terms.count = 2);
    check(&["policy.architecture"], |terms| {
        terms.architectures = vec![cocoon_verify::nvidia::Architecture::Blackwell];
    });
}

#[test]
fn one_gpu_that_stands_in_for_two_is_refused() {
    let mut lab = Lab::with_rims();
    lab.policy = Some(NvidiaTerms { count: 2, ..terms() });
    let twice = Lab::json(&[(lab.report(), lab.chain()), (lab.report(), lab.chain())]);
    assert_fails(&lab.judge_evidence(&twice), Policy, &["device.count"]);
    let (first, chain) = (lab.report(), lab.chain());
    lab.firmware = Signer::new(
        "GH100 A01 GSP FMC LF",
        &Role::Firmware([0xf1; 48]),
        Some(&lab.boot_rom),
    );
    // Nor do two firmwares of one GPU make two.
    let two = Lab::json(&[(first.clone(), chain.clone()), (lab.report(), lab.chain())]);
    assert_fails(&lab.judge_evidence(&two), Policy, &["device.count"]);
    lab.boot_rom = Signer::new("GH100 A01 GSP BROM", &Role::Authority, Some(&lab.provisioner));
    lab.firmware = Signer::new(
        "GH100 A01 GSP FMC LF",
        &Role::Firmware([0xf1; 48]),
        Some(&lab.boot_rom),
    );
    let two = Lab::json(&[(first, chain), (lab.report(), lab.chain())]);
    let judgement = lab.judge_evidence(&two);
    assert_passes(&judgement);
    assert_eq!(status(&judgement, "device-1.report.signature"), Status::Pass);
}

#[test]
fn a_bad_gpu_among_good_ones_is_refused() {
    let lab = Lab::new();
    let mut forged = lab.report();
    forged[4 + 37 + 32 + 40] ^= 1;
    let both = Lab::json(&[(lab.report(), lab.chain()), (forged, lab.chain())]);
    assert_fails(
        &lab.judge_evidence(&both),
        Signature,
        &["device-1.report.signature"],
    );
}

#[test]
fn an_unknown_mode_is_refused() {
    let mut lab = Lab::new();
    lab.set_opaque(36, &[7, 0]);
    assert_fails(&lab.judge(), Policy, &["device.mode"]);
}

#[test]
fn confidential_computing_off_or_developer_tools_on_is_refused() {
    let judged = |guest| {
        let mut lab = Lab::with_rims();
        lab.guest = guest;
        lab.policy = Some(NvidiaTerms {
            confidential_compute: GuestFact::ReportedByGuest,
            dev_tools: GuestFact::ReportedByGuest,
            ..terms()
        });
        lab.judge()
    };
    let guest = |confidential_compute, dev_tools| {
        Some(GuestReport {
            confidential_compute,
            dev_tools,
        })
    };
    assert_passes(&judged(guest(true, false)));
    assert_fails(
        &judged(guest(false, false)),
        Policy,
        &["device.confidential-compute"],
    );
    assert_fails(&judged(guest(true, true)), Policy, &["device.dev-tools"]);
    assert_fails(
        &judged(None),
        Policy,
        &["device.confidential-compute", "device.dev-tools"],
    );
}
