//! One test for each rule by which evidence of an NVIDIA device is refused, named for the attack that it stops. The
//! devices and their vendor are made here; `nvidia_vectors.rs` has real ones.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod nvidia_lab;

use cocoon_verify::judgement::FailureClass::{Policy, Signature, Tcb};
use cocoon_verify::judgement::Status;
use cocoon_verify::nvidia::{
    Demand, GpuMode, GuestFact, GuestReport, Hold, NvidiaTerms, NvidiaTermsError, Report, ReportError,
    Revocations, Rim, read_evidence,
};
use nvidia_lab::{
    Answer, Lab, NOW_S, Role, Signer, assert_fails, assert_passes, measurement, rim_body, signed_rim, status,
    terms,
};
use proptest::prelude::*;

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

#[test]
fn a_rim_file_that_is_withheld_is_refused_if_the_policy_asks_for_it() {
    let mut lab = Lab::with_rims();
    lab.policy = Some(terms());
    lab.rims.pop();
    let judgement = lab.judge();
    assert_fails(&judgement, Tcb, &["rim.firmware"]);
    assert_eq!(status(&judgement, "device.debug"), Status::Skip);
}

#[test]
fn modified_firmware_is_refused_and_its_measurement_named() {
    let mut lab = Lab::with_rims();
    lab.rims[1] = lab.rim("96.00.A5.00.01", &[(0, measurement(0)), (2, [0xee; 48])]);
    let judgement = lab.judge();
    assert_fails(
        &judgement,
        Policy,
        &["rim.firmware.measurement-2", "rim.firmware.measurements"],
    );
    let row = judgement
        .checks()
        .iter()
        .find(|check| check.id == "rim.firmware.measurement-2")
        .unwrap();
    assert_eq!(
        (&row.expected, &row.actual),
        (&"ee".repeat(48), &hex::encode(measurement(2)))
    );
    assert_eq!(status(&judgement, "device.secure-boot"), Status::Skip);
}

#[test]
fn the_video_decoders_measurement_counts_if_it_is_there() {
    let mut lab = Lab::with_rims();
    assert_passes(&lab.judge());
    lab.set_opaque(11, &[0xaa]);
    assert_fails(
        &lab.judge(),
        Policy,
        &["rim.driver.measurement-35", "rim.driver.measurements"],
    );
    // A status that is neither hides nothing.
    lab.set_opaque(11, &[0x00]);
    assert_fails(
        &lab.judge(),
        Policy,
        &["rim.driver.measurement-35", "rim.driver.measurements"],
    );
}

#[test]
fn two_rim_files_for_one_measurement_or_version_are_refused() {
    let mut lab = Lab::with_rims();
    lab.rims[1] = lab.rim("96.00.A5.00.01", &[(1, measurement(1))]);
    assert_fails(&lab.judge(), Policy, &["rim.overlap"]);
    lab.rims[1] = lab.rims[0].clone();
    assert_fails(&lab.judge(), Policy, &["rim.driver"]);
}

#[test]
fn a_rim_file_of_a_foreign_signer_is_refused() {
    let mut lab = Lab::with_rims();
    let root = Signer::new("Lab RIM Root", &Role::Authority, None);
    let authority = Signer::new("Lab RIM L3", &Role::Authority, Some(&root));
    let own = std::mem::replace(&mut lab.rim_root, root);
    lab.rim_authority = authority;
    lab.rim_signer = Signer::new("Lab RIM L4", &Role::Leaf, Some(&lab.rim_authority));
    lab.rims = vec![lab.firmware_rim()];
    lab.rim_root = own;
    assert_fails(&lab.judge(), Signature, &["rim.firmware.chain.root"]);
}

#[test]
fn a_rim_file_whose_signature_covers_less_than_the_document_is_refused() {
    let lab = Lab::with_rims();
    let rim = String::from_utf8(lab.firmware_rim()).unwrap();
    assert!(Rim::parse(rim.as_bytes()).is_ok());
    let refuse = |from: &str, to: &str| {
        let changed = rim.replacen(from, to, 1);
        assert_ne!(changed, rim, "{from}");
        assert!(Rim::parse(changed.as_bytes()).is_err(), "{to}");
    };
    refuse("URI=\"\"", "URI=\"#payload\"");
    refuse("xmldsig#enveloped-signature", "TR/1999/REC-xpath-19991116");
    refuse("xml-c14n11\"></ds:Transform>", "xml-c14n11\"><x/></ds:Transform>");
    refuse("xmldsig-more#ecdsa-sha384", "xmldsig-more#hmac-sha384");
    refuse("xmldsig-more#sha384", "xmldsig#sha1");
    refuse("<Payload>", "<Payload></Payload><Payload>");
    refuse(
        "<Meta ",
        "<Meta colloquialVersion=\"1\" edition=\"GPU\" product=\"GH100\"/><Meta ",
    );
    refuse("<Payload>", "<Payload><!-- -->");
    refuse(
        "<SoftwareIdentity",
        "<!DOCTYPE x [<!ENTITY e \"x\">]><SoftwareIdentity",
    );
    refuse("name=\"GH100\"", "xml:base=\"x\" name=\"GH100\"");
    refuse(
        "<ds:Signature xmlns",
        "<ds:Signature xmlns:ds=\"http://www.w3.org/2000/09/xmldsig#\"/><ds:Signature xmlns",
    );
    refuse("index=\"2\"", "index=\"0\"");
    refuse("index=\"2\"", "index=\"254\"");
    refuse("alternatives=\"1\"", "alternatives=\"2\"");
    refuse("active=\"True\"", "active=\"true\"");
}

/// The signed document wrapped in another one, with values of the attacker's.
#[test]
fn a_wrapped_rim_file_is_refused() {
    let lab = Lab::with_rims();
    let signed = String::from_utf8(lab.firmware_rim()).unwrap();
    let forged = rim_body("96.00.A5.00.01", &[(0, [0xbb; 48])]);
    let wrapped = format!("{forged}<x>{signed}</x></SoftwareIdentity>");
    assert!(Rim::parse(wrapped.as_bytes()).is_err());
    let chain = [&lab.rim_signer, &lab.rim_authority, &lab.rim_root];
    let chain = chain.map(|one| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &one.der));
    let foreign = Signer::new("Attacker", &Role::Leaf, None);
    let mut lab = Lab {
        rims: vec![signed_rim(&forged, &foreign, &chain)],
        ..lab
    };
    let judgement = lab.judge();
    assert_eq!(status(&judgement, "rim.firmware.signature"), Status::Fail);
    lab.rims = vec![wrapped.into_bytes()];
    assert_fails(&lab.judge(), Signature, &["rim-file-0.format"]);
}

#[test]
fn revoked_and_suspended_certificates_are_refused() {
    let mut lab = Lab::new();
    let all_good = |lab: &Lab| {
        [
            (&lab.boot_rom, &lab.provisioner),
            (&lab.provisioner, &lab.identity),
            (&lab.identity, &lab.root),
        ]
        .map(|(subject, issuer)| Answer::good(subject, issuer).der())
        .to_vec()
    };
    lab.ocsp = all_good(&lab);
    let judgement = lab.judge();
    assert_passes(&judgement);
    assert_eq!(status(&judgement, "chain.revocation-1"), Status::Pass);
    for (reason, said) in [(1, "keyCompromise"), (6, "certificateHold")] {
        lab.ocsp = all_good(&lab);
        lab.ocsp[1] = Answer {
            reason: Some(reason),
            ..Answer::good(&lab.provisioner, &lab.identity)
        }
        .der();
        let judgement = lab.judge();
        assert_fails(&judgement, Tcb, &["chain.revocation-2"]);
        let row = judgement
            .checks()
            .iter()
            .find(|check| check.id == "chain.revocation-2")
            .unwrap();
        assert!(row.actual.ends_with(said), "{row:#?}");
    }
    // A good answer beside the bad one does not outweigh it.
    lab.ocsp.push(Answer::good(&lab.provisioner, &lab.identity).der());
    assert_fails(&lab.judge(), Tcb, &["chain.revocation-2"]);
}

#[test]
fn a_rim_signer_on_hold_is_refused_unless_the_policy_accepts_holds() {
    let mut lab = Lab::with_rims();
    lab.ocsp = vec![
        Answer {
            reason: Some(6),
            ..Answer::good(&lab.rim_signer, &lab.rim_authority)
        }
        .der(),
    ];
    assert_fails(
        &lab.judge(),
        Tcb,
        &["rim.driver.chain.revocation-0", "rim.firmware.chain.revocation-0"],
    );
    lab.policy = Some(NvidiaTerms {
        certificate_hold: Hold::Accepted,
        ..terms()
    });
    assert_passes(&lab.judge());
    lab.ocsp = vec![
        Answer {
            reason: Some(1),
            ..Answer::good(&lab.rim_signer, &lab.rim_authority)
        }
        .der(),
    ];
    assert_eq!(lab.judge().failure(), Some(Tcb));
}

#[test]
fn withheld_ocsp_responses_are_refused_if_the_policy_asks_for_them() {
    let mut lab = Lab::new();
    let required = NvidiaTerms {
        revocation: Demand::Required,
        rims: Demand::IfGiven,
        ..terms()
    };
    lab.policy = Some(required);
    assert_fails(
        &lab.judge(),
        Tcb,
        &["chain.revocation-1", "chain.revocation-2", "chain.revocation-3"],
    );
}

#[test]
fn stale_ocsp_responses_are_refused() {
    let check = |this_update_s, next_update_s, fresh: bool| {
        let mut lab = Lab::new();
        let answer = Answer {
            this_update_s,
            next_update_s,
            ..Answer::good(&lab.boot_rom, &lab.provisioner)
        };
        lab.ocsp = vec![answer.der()];
        match fresh {
            true => assert_passes(&lab.judge()),
            false => assert_fails(&lab.judge(), Tcb, &["chain.revocation-1"]),
        }
    };
    check(NOW_S - 60, Some(NOW_S), true);
    check(NOW_S - 60, Some(NOW_S - 1), false);
    check(NOW_S + 1, Some(NOW_S + 60), false);
    check(NOW_S - 3600, None, true);
    check(NOW_S - 86_401, None, false);
}

#[test]
fn ocsp_responses_of_anyone_but_the_issuer_and_its_responder_are_refused() {
    let check = |responder: fn(&Lab) -> Signer, accepted: bool| {
        let mut lab = Lab::new();
        let responder = responder(&lab);
        let good = Answer::good(&lab.boot_rom, &lab.provisioner);
        lab.ocsp = vec![
            Answer {
                signer: &responder,
                responder: Some(&responder),
                ..good
            }
            .der(),
        ];
        match accepted {
            true => assert_passes(&lab.judge()),
            false => assert_fails(&lab.judge(), Signature, &["chain.revocation-1"]),
        }
    };
    check(
        |lab| Signer::new("Responder", &Role::Responder, Some(&lab.provisioner)),
        true,
    );
    check(
        |lab| Signer::new("Responder", &Role::Responder, Some(&lab.identity)),
        false,
    );
    check(|_| Signer::new("Responder", &Role::Responder, None), false);
    check(
        |lab| Signer::new("Not a responder", &Role::Leaf, Some(&lab.provisioner)),
        false,
    );
    check(
        |lab| {
            Signer::edited(
                "Old responder",
                &Role::Responder,
                Some(&lab.provisioner),
                |params| {
                    params.not_after = rcgen::date_time_ymd(2025, 1, 1);
                },
            )
        },
        false,
    );
}

#[test]
fn an_ocsp_response_with_a_flipped_bit_or_a_missing_byte_is_refused() {
    let mut lab = Lab::new();
    let good = Answer {
        reason: Some(1),
        ..Answer::good(&lab.boot_rom, &lab.provisioner)
    }
    .der();
    for bit in (0..good.len() * 8).step_by(7) {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        lab.ocsp = vec![flipped];
        let row = lab
            .judge()
            .checks()
            .iter()
            .find(|check| check.id == "chain.revocation-1")
            .map(|row| row.status);
        assert_ne!(row, Some(Status::Pass), "bit {bit}");
    }
    for length in 0..good.len() {
        assert!(Revocations::parse(&good[..length]).is_err(), "{length} bytes");
    }
    assert!(Revocations::parse(&[good, vec![0]].concat()).is_err());
}

#[test]
fn terms_that_nothing_meets_are_an_error() {
    let check = |edit: fn(&mut NvidiaTerms), error: NvidiaTermsError| {
        let mut terms = terms();
        edit(&mut terms);
        assert_eq!(terms.check(), Err(error));
    };
    assert_eq!(terms().check(), Ok(()));
    check(
        |terms| terms.architectures.clear(),
        NvidiaTermsError::EmptyList("architectures"),
    );
    check(
        |terms| terms.driver_versions.clear(),
        NvidiaTermsError::EmptyList("driver_versions"),
    );
    check(
        |terms| terms.firmware_versions.clear(),
        NvidiaTermsError::EmptyList("firmware_versions"),
    );
    check(|terms| terms.modes.clear(), NvidiaTermsError::EmptyList("modes"));
    check(|terms| terms.count = 0, NvidiaTermsError::NoDevices);
    check(|terms| terms.count = 65, NvidiaTermsError::TooManyDevices(65));
}

#[test]
fn terms_are_read_from_toml_and_unknown_keys_refused() {
    let text = toml::to_string(&terms()).unwrap();
    assert_eq!(toml::from_str::<NvidiaTerms>(&text).unwrap(), terms());
    assert!(toml::from_str::<NvidiaTerms>(&format!("{text}\nallow_debug = true\n")).is_err());
    assert!(toml::from_str::<NvidiaTerms>(&text.replace("count = 1\n", "")).is_err());
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..512), cut in 0_usize..2000) {
        static LAB: std::sync::LazyLock<(Vec<u8>, Vec<u8>, Vec<u8>)> = std::sync::LazyLock::new(|| {
            let lab = Lab::new();
            let answer = Answer::good(&lab.boot_rom, &lab.provisioner).der();
            (lab.report(), lab.firmware_rim(), answer)
        });
        let (report, rim, answer) = &*LAB;
        let spliced = |good: &[u8]| [&good[..cut.min(good.len() - 1)], &bytes].concat();
        prop_assert!(Report::parse(&spliced(report)).is_err());
        // Any of these may by chance be whole again; what counts is that there is an answer.
        let _ = (Rim::parse(&spliced(rim)), Revocations::parse(&spliced(answer)), read_evidence(&bytes));
    }
}
