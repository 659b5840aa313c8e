//! Guests on SEV-SNP, on a connection.

use cocoon_evidence::{Digest32, Endorsements, EvidenceBundle, Platform};
use cocoon_verify::{
    AMD_ROOTS, HardwareTerms, PlatformId, PlatformTerms, RefusalClass, Verdict,
    snp::{SNP_REPORT_BYTES, SnpRoot, SnpTerms},
};

use crate::{
    snp_forge::{CHIP, NOW_S, Vek, ark, ask, crl, report, signed, terms},
    world::{DOCUMENT, World, assert_refused, honest_events, log, tls_report_data},
};

/// A guest on a forged manufacturer's chip, and the policy for it.
pub(crate) struct Snp {
    pub(crate) world: World,
    report: [u8; SNP_REPORT_BYTES],
    files: Vec<Vec<u8>>,
}

impl Snp {
    pub(crate) fn new() -> Self {
        let mut world = World::new();
        world.terms.expires_s = NOW_S + 1000;
        world.terms.platform = PlatformTerms {
            simulated: false,
            root_pem: AMD_ROOTS.into(),
        };
        world.terms.hardware = HardwareTerms::Snp(SnpTerms {
            host_data: vec![Digest32::of(DOCUMENT)],
            ..terms()
        });
        world.roots.snp = SnpRoot::from_file(&ark()).unwrap();
        let mut report = report();
        let report_data = tls_report_data(&log(&honest_events()));
        report[0x50..0x90].copy_from_slice(&report_data.0);
        report[0xc0..0xe0].copy_from_slice(Digest32::of(DOCUMENT).as_bytes());
        Self {
            world,
            report,
            files: vec![Vek::milan().der(), ask(), crl(&[], Some(NOW_S + 10), false)],
        }
    }

    pub(crate) fn bundle(&self) -> EvidenceBundle {
        EvidenceBundle {
            platform: Platform::Snp {
                report: signed(self.report).to_vec(),
            },
            events: log(&honest_events()),
            gpu: vec![],
        }
    }

    pub(crate) fn endorsements(&self) -> Vec<u8> {
        let endorsements = Endorsements {
            snp: self.files.iter().cloned().map(Into::into).collect(),
            ..Endorsements::default()
        };
        endorsements.encode()
    }

    #[track_caller]
    pub(crate) fn assert_refused(&self, bundle: &EvidenceBundle, class: RefusalClass, rows: &[&str]) {
        let report_data = tls_report_data(&bundle.events);
        let verdict = self
            .world
            .judge_with(bundle, &self.endorsements(), &report_data, NOW_S);
        assert_refused(verdict, class, rows);
    }
}

#[test]
fn the_honest_guest_is_trusted_and_no_row_is_left_open() {
    let snp = Snp::new();
    let bundle = snp.bundle();
    let report_data = tls_report_data(&bundle.events);
    let (report, trusted) = snp
        .world
        .judge_with(&bundle, &snp.endorsements(), &report_data, NOW_S);
    assert!(
        report.checks.iter().all(|check| check.verdict == Verdict::Pass),
        "{report:#?}"
    );
    let guest = trusted.unwrap();
    assert!(!guest.is_simulated());
    assert_eq!(*guest.platform(), PlatformId::Snp { chip_id: CHIP });
}

#[test]
fn a_report_for_another_connection_is_refused() {
    let mut snp = Snp::new();
    snp.report[0x50] ^= 1;
    snp.assert_refused(&snp.bundle(), RefusalClass::Channel, &["snp report-data"]);
}

#[test]
fn a_log_that_the_report_data_does_not_bind_is_refused_and_proves_nothing() {
    let snp = Snp::new();
    let mut bundle = snp.bundle();
    let mut events = honest_events();
    events[2].1 = vec![6; 32];
    bundle.events = log(&events);
    let report_data = tls_report_data(&bundle.events);
    let verdict = snp
        .world
        .judge_with(&bundle, &snp.endorsements(), &report_data, NOW_S);
    assert_eq!(verdict.0.check("event usage-key").unwrap().verdict, Verdict::Skip);
    assert_refused(verdict, RefusalClass::Channel, &["snp report-data"]);
}

#[test]
fn a_launch_document_that_is_not_in_host_data_is_refused() {
    let mut snp = Snp::new();
    let other = Digest32::of(b"another document that the policy accepts too");
    snp.report[0xc0..0xe0].copy_from_slice(other.as_bytes());
    let HardwareTerms::Snp(terms) = &mut snp.world.terms.hardware else {
        panic!("the policy is for SNP");
    };
    terms.host_data.push(other);
    snp.assert_refused(&snp.bundle(), RefusalClass::Policy, &["HOST_DATA"]);
}

#[test]
fn another_launch_measurement_is_refused() {
    let mut snp = Snp::new();
    snp.report[0x90] ^= 1;
    snp.assert_refused(&snp.bundle(), RefusalClass::Policy, &["snp measurement"]);
}

#[test]
fn a_report_signed_by_nobody_is_refused_and_proves_nothing() {
    let snp = Snp::new();
    let mut bundle = snp.bundle();
    let Platform::Snp { report } = &mut bundle.platform else {
        panic!("the bundle is for SNP");
    };
    report[0x2a0] ^= 1;
    let report_data = tls_report_data(&bundle.events);
    let verdict = snp
        .world
        .judge_with(&bundle, &snp.endorsements(), &report_data, NOW_S);
    for name in ["snp measurement", "HOST_DATA", "event usage-key"] {
        assert_eq!(verdict.0.check(name).unwrap().verdict, Verdict::Skip, "{name}");
    }
    assert_refused(verdict, RefusalClass::Signature, &["snp report.signature"]);
}

#[test]
fn another_manufacturers_chip_is_refused() {
    let mut snp = Snp::new();
    snp.world.roots.snp = SnpRoot::amd();
    snp.files.push(ark());
    let bundle = snp.bundle();
    let report_data = tls_report_data(&bundle.events);
    let (_, trusted) = snp
        .world
        .judge_with(&bundle, &snp.endorsements(), &report_data, NOW_S);
    assert_eq!(trusted.unwrap_err().class, RefusalClass::Signature);
}

#[test]
fn a_chip_whose_revocation_nobody_can_check_is_refused() {
    let mut snp = Snp::new();
    snp.files.pop();
    // The row is open rather than failed, and open refuses as well.
    snp.assert_refused(&snp.bundle(), RefusalClass::Tcb, &[]);
}

#[test]
fn an_endorsement_key_that_is_no_longer_valid_is_refused_as_stale() {
    let mut snp = Snp::new();
    snp.files[0] = Vek {
        validity_s: (NOW_S - 1000, NOW_S - 1),
        ..Vek::milan()
    }
    .der();
    snp.assert_refused(&snp.bundle(), RefusalClass::Freshness, &["snp chain.validity"]);
}

#[test]
fn a_guest_of_another_kind_than_the_policys_is_refused() {
    let snp = Snp::new();
    let tdx = World::new();
    let bundle = snp.bundle();
    let report_data = tls_report_data(&bundle.events);
    let verdict = tdx.judge_with(&bundle, &snp.endorsements(), &report_data, NOW_S);
    assert_refused(verdict, RefusalClass::Policy, &["platform"]);
    let bundle = tdx.bundle();
    snp.assert_refused(&bundle, RefusalClass::Policy, &["platform"]);
}

#[test]
fn a_remembered_verdict_ends_with_the_revocation_list_or_a_certificate_or_the_policy() {
    let mut snp = Snp::new();
    let vek = Vek {
        validity_s: (NOW_S - 1000, NOW_S + 500),
        ..Vek::milan()
    };
    for (list_ends_s, policy_ends_s, until_s) in [
        (NOW_S + 10, NOW_S + 1000, NOW_S + 11),
        (NOW_S + 900, NOW_S + 1000, NOW_S + 501),
        (NOW_S + 900, NOW_S + 100, NOW_S + 100),
    ] {
        snp.files = vec![vek.der(), ask(), crl(&[], Some(list_ends_s), false)];
        snp.world.terms.expires_s = policy_ends_s;
        snp.world
            .assert_trusted_until(&snp.bundle(), &snp.endorsements(), NOW_S, until_s);
    }
}
