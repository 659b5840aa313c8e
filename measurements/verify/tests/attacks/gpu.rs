//! GPUs of a guest, on a connection.

use std::time::Duration;

use cocoon_evidence::{Endorsements, EvidenceBundle, GpuEvidence};
use cocoon_verify::{GpuEvidenceRule, Policy, PolicyError, RefusalClass, Verdict, nvidia::Demand};
use minicbor::bytes::ByteVec;

use crate::{
    nvidia_lab::{Answer, FWID, Lab, Role, Signer, pem, terms},
    twice::assert_independent,
    world::{
        NOW_S, USAGE_KEY, World, assert_refused, boot, honest_events, quoted, registers, tls_report_data,
    },
};

/// How long the responders' answers are valid yet.
const OCSP_ENDS_S: u64 = 60;

const EVENT: &str = "event gpu-evidence";

/// A guest with the lab's GPU, and the policy for both.
struct Gpu {
    world: World,
    lab: Lab,
    endorsements: Vec<u8>,
}

impl Gpu {
    fn new() -> Self {
        let mut world = World::new();
        let mut lab = Lab::with_rims();
        lab.nonce = GpuEvidence::nonce(&USAGE_KEY);
        world.roots.nvidia = lab.roots();
        world.terms.events.gpu_evidence = GpuEvidenceRule::Nvidia;
        let mut nvidia = terms();
        nvidia.revocation = Demand::Required;
        world.terms.nvidia = Some(nvidia);
        let endorsements = endorsements(&world, &lab).encode();
        Self {
            world,
            lab,
            endorsements,
        }
    }

    fn evidence(&self) -> GpuEvidence {
        GpuEvidence {
            report: self.lab.report(),
            certificates: pem(&self.lab.chain()).into_bytes(),
            confidential_compute: true,
            dev_tools: false,
        }
    }

    fn bundle(&self, gpu: Vec<GpuEvidence>) -> EvidenceBundle {
        measured(&self.world, gpu)
    }

    #[track_caller]
    fn assert_refused(&self, bundle: &EvidenceBundle, rows: &[&str]) {
        let report_data = tls_report_data(&bundle.events);
        let verdict = self
            .world
            .judge_with(bundle, &self.endorsements, &report_data, NOW_S);
        assert_refused(verdict, RefusalClass::Gpu, rows);
    }
}

#[test]
fn evidence_that_was_judged_stands_for_no_other_evidence_and_no_other_usage_key() {
    let gpu = Gpu::new();
    let mut report = gpu.evidence();
    report.report[100] ^= 1;
    let mut certificates = gpu.evidence();
    certificates.certificates.truncate(900);
    let dev_tools = GpuEvidence {
        dev_tools: true,
        ..gpu.evidence()
    };
    let mut bundles: Vec<_> = [gpu.evidence(), report, certificates, dev_tools]
        .map(|evidence| gpu.bundle(vec![evidence]))
        .into();
    bundles.push(gpu.bundle(vec![gpu.evidence(), gpu.evidence()]));
    bundles.push(measured_with(&gpu.world, vec![gpu.evidence()], [6; 32]));
    let trusted = bundles.iter().map(|bundle| {
        let report_data = tls_report_data(&bundle.events);
        let verdict = gpu
            .world
            .judge_with(bundle, &gpu.endorsements, &report_data, NOW_S);
        verdict.1.is_ok()
    });
    let trusted: Vec<_> = trusted.collect();
    assert_eq!(trusted, [true, false, false, false, false, false]);
    let policy = gpu.world.policy();
    assert_independent(&bundles, || {
        gpu.world.appraiser(&policy, &gpu.endorsements, NOW_S)
    });
}

/// A guest that measured this.
fn measured(world: &World, gpu: Vec<GpuEvidence>) -> EvidenceBundle {
    measured_with(world, gpu, USAGE_KEY)
}

fn measured_with(world: &World, gpu: Vec<GpuEvidence>, usage_key: [u8; 32]) -> EvidenceBundle {
    let mut events = honest_events();
    events[2].1 = usage_key.to_vec();
    events[3].1 = GpuEvidence::event_payload(&gpu);
    let mut td = world.platform.start_td(registers());
    let log = boot(&mut td, &events);
    let report_data = tls_report_data(&log);
    EvidenceBundle {
        gpu,
        ..quoted(&mut td, log, report_data)
    }
}

fn endorsements(world: &World, lab: &Lab) -> Endorsements {
    let pairs = [
        (&lab.boot_rom, &lab.provisioner),
        (&lab.provisioner, &lab.identity),
        (&lab.identity, &lab.root),
        (&lab.rim_signer, &lab.rim_authority),
        (&lab.rim_authority, &lab.rim_root),
    ];
    let answers = pairs.map(|(subject, issuer)| Answer {
        this_update_s: NOW_S - 60,
        next_update_s: Some(NOW_S + OCSP_ENDS_S),
        ..Answer::good(subject, issuer)
    });
    Endorsements {
        rims: lab.rims.iter().cloned().map(ByteVec::from).collect(),
        ocsp: answers.iter().map(|answer| answer.der().into()).collect(),
        ..Endorsements::decode(&world.endorsements()).unwrap()
    }
}

#[test]
fn a_gpu_that_meets_the_policy_is_trusted_with_its_guest() {
    let gpu = Gpu::new();
    let bundle = gpu.bundle(vec![gpu.evidence()]);
    let report_data = tls_report_data(&bundle.events);
    let (report, trusted) = gpu
        .world
        .judge_with(&bundle, &gpu.endorsements, &report_data, NOW_S);
    assert!(trusted.is_ok(), "{report:#?}");
    // The GPU is real, but that it belongs to this guest is the simulator's word.
    assert_eq!(
        report.check("GPU report.nonce").unwrap().verdict,
        Verdict::Simulated
    );
}

#[test]
fn firmware_that_does_not_repeat_its_digest_leaves_no_row_open() {
    let mut gpu = Gpu::new();
    gpu.lab.opaque.retain(|(number, _)| *number != 20);
    let bundle = gpu.bundle(vec![gpu.evidence()]);
    let report_data = tls_report_data(&bundle.events);
    let (report, trusted) = gpu
        .world
        .judge_with(&bundle, &gpu.endorsements, &report_data, NOW_S);
    assert!(trusted.is_ok(), "{report:#?}");
}

#[test]
fn a_policy_that_asks_for_gpus_without_rules_for_them_is_none() {
    let mut terms = World::new().terms;
    terms.events.gpu_evidence = GpuEvidenceRule::Nvidia;
    assert!(matches!(Policy::new(terms), Err(PolicyError::NoNvidia)));
}

#[test]
fn gpu_evidence_that_the_policy_does_not_expect_is_refused() {
    let gpu = Gpu::new();
    let world = World::new();
    let bundle = measured(&world, vec![gpu.evidence()]);
    world.assert_refused(&bundle, RefusalClass::Gpu, &[EVENT]);
    let mut smuggled = world.bundle();
    smuggled.gpu = vec![gpu.evidence()];
    world.assert_refused(&smuggled, RefusalClass::Gpu, &[EVENT]);
}

#[test]
fn a_guest_without_the_gpu_that_the_policy_asks_for_is_refused() {
    let gpu = Gpu::new();
    gpu.assert_refused(&gpu.bundle(vec![]), &[EVENT]);
}

#[test]
fn gpu_evidence_swapped_after_it_was_measured_is_refused() {
    let gpu = Gpu::new();
    let mut bundle = gpu.bundle(vec![gpu.evidence()]);
    // Another report of the same GPU to the same question: only the signature differs.
    bundle.gpu = vec![gpu.evidence()];
    gpu.assert_refused(&bundle, &[EVENT]);
}

#[test]
fn gpu_evidence_of_another_guest_or_an_earlier_boot_is_refused() {
    let mut gpu = Gpu::new();
    gpu.lab.nonce = GpuEvidence::nonce(&[6; 32]);
    gpu.assert_refused(&gpu.bundle(vec![gpu.evidence()]), &["GPU report.nonce"]);
}

#[test]
fn a_gpu_of_another_vendor_is_refused() {
    let mut gpu = Gpu::new();
    gpu.world.roots = cocoon_verify::VendorRoots::default();
    let bundle = gpu.bundle(vec![gpu.evidence()]);
    let report_data = tls_report_data(&bundle.events);
    let (report, trusted) = gpu
        .world
        .judge_with(&bundle, &gpu.endorsements, &report_data, NOW_S);
    assert_eq!(trusted.unwrap_err().class, RefusalClass::Gpu);
    assert_eq!(report.check("GPU chain.root").unwrap().verdict, Verdict::Fail);
}

#[test]
fn a_gpu_with_confidential_computing_off_or_developer_tools_on_is_refused() {
    let gpu = Gpu::new();
    let off = GpuEvidence {
        confidential_compute: false,
        ..gpu.evidence()
    };
    gpu.assert_refused(&gpu.bundle(vec![off]), &["GPU device.confidential-compute"]);
    let tools = GpuEvidence {
        dev_tools: true,
        ..gpu.evidence()
    };
    gpu.assert_refused(&gpu.bundle(vec![tools]), &["GPU device.dev-tools"]);
}

#[test]
fn one_gpu_does_not_stand_in_for_two() {
    let mut gpu = Gpu::new();
    gpu.world.terms.nvidia.as_mut().unwrap().count = 2;
    let twice = gpu.bundle(vec![gpu.evidence(), gpu.evidence()]);
    gpu.assert_refused(&twice, &["GPU device.count"]);
}

#[test]
fn a_gpu_whose_revocation_nobody_can_check_is_refused() {
    let mut gpu = Gpu::new();
    gpu.world.terms.nvidia.as_mut().unwrap().revocation = Demand::IfGiven;
    let without = Endorsements {
        ocsp: vec![],
        ..endorsements(&gpu.world, &gpu.lab)
    };
    gpu.endorsements = without.encode();
    // The row is open rather than failed, and open refuses as well.
    gpu.assert_refused(&gpu.bundle(vec![gpu.evidence()]), &[]);
}

#[test]
fn gpu_certificates_that_are_none_are_refused() {
    let gpu = Gpu::new();
    let evidence = GpuEvidence {
        certificates: b"-----BEGIN CERTIFICATE-----".to_vec(),
        ..gpu.evidence()
    };
    gpu.assert_refused(&gpu.bundle(vec![evidence]), &["GPU certificates"]);
}

#[test]
fn a_remembered_verdict_ends_with_the_revocation_answers() {
    let gpu = Gpu::new();
    let bundle = gpu.bundle(vec![gpu.evidence()]);
    let until_s = NOW_S + OCSP_ENDS_S + 1;
    gpu.world
        .assert_trusted_until(&bundle, &gpu.endorsements, NOW_S, until_s);
}

/// A revocation that is announced for later is not to be slept through.
#[test]
fn a_remembered_verdict_ends_where_another_revocation_answer_begins() {
    let gpu = Gpu::new();
    let later = Answer {
        this_update_s: NOW_S + 20,
        next_update_s: Some(NOW_S + 60),
        reason: Some(1),
        ..Answer::good(&gpu.lab.boot_rom, &gpu.lab.provisioner)
    };
    let mut endorsements = endorsements(&gpu.world, &gpu.lab);
    endorsements.ocsp.push(later.der().into());
    let bundle = gpu.bundle(vec![gpu.evidence()]);
    gpu.world
        .assert_trusted_until(&bundle, &endorsements.encode(), NOW_S, NOW_S + 20);
}

#[test]
fn a_remembered_verdict_ends_with_the_certificates_of_gpu_and_rim_signer() {
    let ends_in = |seconds: u64| {
        move |params: &mut rcgen::CertificateParams| {
            params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(NOW_S + seconds);
        }
    };
    let mut gpu = Gpu::new();
    let lab = &mut gpu.lab;
    lab.rim_signer = Signer::edited("Lab RIM L4", &Role::Leaf, Some(&lab.rim_authority), ends_in(40));
    lab.rims = lab.rims();
    gpu.endorsements = endorsements(&gpu.world, &gpu.lab).encode();
    let bundle = gpu.bundle(vec![gpu.evidence()]);
    gpu.world
        .assert_trusted_until(&bundle, &gpu.endorsements, NOW_S, NOW_S + 41);

    let lab = &mut gpu.lab;
    let role = Role::Firmware(FWID);
    lab.firmware = Signer::edited("GH100 A01 GSP FMC LF", &role, Some(&lab.boot_rom), ends_in(30));
    let bundle = gpu.bundle(vec![gpu.evidence()]);
    gpu.world
        .assert_trusted_until(&bundle, &gpu.endorsements, NOW_S, NOW_S + 31);
}
