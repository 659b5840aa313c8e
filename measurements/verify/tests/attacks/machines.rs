//! Machines that a policy names, whatever their vendor says of them.

use cocoon_evidence::Platform;
use cocoon_verify::{
    HardwareTerms, MachineId, MachineTerms, PlatformId, Policy, PolicyError, RawSnp, RawTdx, RefusalClass,
    Verdict, judge_raw_snp, judge_raw_tdx,
    judgement::{Judgement, Status},
    snp::SnpSigningKeyTerm,
};

use crate::{
    snp::Snp,
    snp_forge::CHIP,
    world::{NOW_S, World, quote_bytes, tls_report_data},
};

/// Of the simulated platform.
fn this_machine(world: &World) -> MachineId {
    let PlatformId::Tdx { ppid, .. } = world.judge(&world.bundle()).1.unwrap().platform().clone() else {
        panic!("the platform is TDX");
    };
    MachineId(ppid)
}

fn accepted(ids: &[&MachineId]) -> MachineTerms {
    MachineTerms {
        accepted: Some(ids.iter().copied().cloned().collect()),
        refused: None,
    }
}

fn refused(ids: &[&MachineId]) -> MachineTerms {
    MachineTerms {
        accepted: None,
        refused: Some(ids.iter().copied().cloned().collect()),
    }
}

fn machine_row(judgement: &Judgement) -> Status {
    let mut rows = judgement.checks().iter();
    rows.find(|check| check.id == "policy.machine").unwrap().status
}

#[test]
fn a_machine_that_the_policy_refuses_or_does_not_list_is_refused() {
    let mut world = World::new();
    let (this, other) = (this_machine(&world), MachineId(vec![9; 16]));
    for (terms, is_accepted) in [
        (accepted(&[&other, &this]), true),
        (refused(&[&other]), true),
        (accepted(&[&other]), false),
        (refused(&[&other, &this]), false),
        (
            MachineTerms {
                accepted: Some(vec![this.clone()]),
                refused: Some(vec![this.clone()]),
            },
            false,
        ),
    ] {
        world.terms.machines = Some(terms);
        let mut bundle = world.bundle();
        if is_accepted {
            let (report, trusted) = world.judge(&bundle);
            assert!(trusted.is_ok(), "{report:#?}");
            assert_eq!(report.check("machine").unwrap().verdict, Verdict::Simulated);
        } else {
            world.assert_refused(&bundle, RefusalClass::Policy, &["machine"]);
        }
        let policy = world.policy();
        let judgement = judge_raw_tdx(&RawTdx {
            quote: quote_bytes(&mut bundle),
            collateral: Some(&world.platform.collateral(NOW_S).unwrap()),
            root: None,
            nonce: None,
            policy: Some(&policy),
            now_s: NOW_S,
        });
        let expected = if is_accepted { Status::Pass } else { Status::Fail };
        assert_eq!(machine_row(&judgement), expected);
    }
}

#[test]
fn an_unproven_machine_is_no_accepted_one() {
    let mut world = World::new();
    world.terms.machines = Some(accepted(&[&this_machine(&world)]));
    let mut bundle = world.bundle();
    quote_bytes(&mut bundle)[200] ^= 1;
    let (report, trusted) = world.judge(&bundle);
    assert_eq!(report.check("machine").unwrap().verdict, Verdict::Skip);
    assert_eq!(trusted.unwrap_err().class, RefusalClass::Signature);
}

#[test]
fn chips_of_amd_are_named_likewise() {
    let mut snp = Snp::new();
    let (this, other) = (MachineId(CHIP.to_vec()), MachineId(vec![9; 64]));
    for terms in [accepted(&[&other]), refused(&[&this])] {
        snp.world.terms.machines = Some(terms);
        snp.assert_refused(&snp.bundle(), RefusalClass::Policy, &["machine"]);
    }
    for terms in [accepted(&[&other]), accepted(&[&this])] {
        let expected = if terms.accepted == Some(vec![this.clone()]) {
            Status::Pass
        } else {
            Status::Fail
        };
        snp.world.terms.machines = Some(terms);
        let Platform::Snp { report } = snp.bundle().platform else {
            panic!("the bundle is for SNP");
        };
        let judgement = judge_raw_snp(&RawSnp {
            report: &report,
            endorsements: &[],
            root: &snp.world.roots.snp,
            nonce: None,
            policy: Some(&snp.world.policy()),
            now_s: crate::snp_forge::NOW_S,
        });
        assert_eq!(machine_row(&judgement), expected);
    }
    let bundle = snp.bundle();
    let report_data = tls_report_data(&bundle.events);
    let now_s = crate::snp_forge::NOW_S;
    let (report, trusted) = snp
        .world
        .judge_with(&bundle, &snp.endorsements(), &report_data, now_s);
    assert!(trusted.is_ok(), "{report:#?}");
}

/// A provider whose key leaked could give a report any chip's id.
#[test]
fn machines_cannot_be_named_where_a_providers_key_is_accepted() {
    use SnpSigningKeyTerm::{Vcek, Vlek};
    let mut terms = Snp::new().world.terms;
    terms.machines = Some(accepted(&[&MachineId(CHIP.to_vec())]));
    for (keys, usable) in [(vec![Vcek], true), (vec![Vlek], false), (vec![Vcek, Vlek], false)] {
        let HardwareTerms::Snp(snp) = &mut terms.hardware else {
            panic!("the policy is for SNP");
        };
        snp.signing_key = keys;
        let policy = Policy::new(terms.clone());
        assert_eq!(policy.is_ok(), usable);
        assert!(usable || matches!(policy, Err(PolicyError::MachineKey)));
    }
}
