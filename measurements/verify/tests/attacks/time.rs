//! What is too old, and when a verdict has to be forgotten.

use cocoon_evidence::Endorsements;
use cocoon_simulator::{COLLATERAL_LIFETIME_S, SIMULATED_TCB_EVALUATION_NUMBER};
use cocoon_verify::RefusalClass;
use serde_json::json;

use crate::{
    simulated_vendor::signed_again,
    world::{NOW_S, World, assert_refused, tls_report_data},
};

#[test]
fn an_expired_policy_accepts_nothing() {
    let world = World::new();
    let bundle = world.bundle();
    let report_data = tls_report_data(&bundle.events);
    let collateral = world.endorsements();
    assert!(
        world
            .judge_with(&bundle, &collateral, &report_data, NOW_S + 999)
            .1
            .is_ok()
    );
    let verdict = world.judge_with(&bundle, &collateral, &report_data, NOW_S + 1000);
    assert_refused(verdict, RefusalClass::Freshness, &["policy expiry"]);
}

#[test]
fn a_remembered_verdict_ends_with_the_first_thing_that_expires() {
    let mut world = World::new();
    for (policy_expires_s, until_s) in [
        (NOW_S + 1000, NOW_S + 1000),
        (u64::MAX / 4, NOW_S + COLLATERAL_LIFETIME_S),
    ] {
        world.terms.expires_s = policy_expires_s;
        world.assert_trusted_until(&world.bundle(), &world.endorsements(), NOW_S, until_s);
    }
}

#[test]
fn a_remembered_verdict_ends_with_the_grace_period_of_platform_or_quoting_enclave() {
    // An hour before NOW_S.
    const LEVEL_DATE: &str = "2027-01-15T07:00:00Z";
    let mut world = World::new();
    let collateral = world.platform.collateral(NOW_S).unwrap();
    let signer = (world.state.path(), "tcb-signing.key");
    let outdated = |document| {
        let collateral = signed_again(signer, &collateral, document, |document| {
            document["tcbLevels"][0]["tcbStatus"] = json!("OutOfDate");
            document["tcbLevels"][0]["tcbDate"] = json!(LEVEL_DATE);
        });
        Endorsements::of_tdx(collateral).encode()
    };
    let (platform, qe) = (outdated("tcb_info"), outdated("qe_identity"));
    for (endorsements, platform_grace_s, qe_grace_s, until_s) in [
        (&platform, 3700, 9000, NOW_S + 101),
        (&qe, 9000, 3800, NOW_S + 201),
        // The policy itself ends sooner.
        (&qe, 9000, 9000, NOW_S + 1000),
    ] {
        let tcb = &mut world.terms.tdx_mut().unwrap().tcb;
        (tcb.platform_grace_s, tcb.qe_grace_s) = (platform_grace_s, qe_grace_s);
        world.assert_trusted_until(&world.bundle(), endorsements, NOW_S, until_s);
    }
}

#[test]
fn expired_endorsements_are_refused_as_stale_and_not_as_forged() {
    let mut world = World::new();
    world.terms.expires_s = u64::MAX / 4;
    let bundle = world.bundle();
    let report_data = tls_report_data(&bundle.events);
    for now_s in [NOW_S + COLLATERAL_LIFETIME_S + 1, NOW_S - 2 * 3600] {
        let verdict = world.judge_with(&bundle, &world.endorsements(), &report_data, now_s);
        assert_refused(verdict, RefusalClass::Freshness, &["endorsement freshness"]);
    }
}

#[test]
fn a_tcb_evaluation_number_below_the_minimum_is_refused() {
    let mut world = World::new();
    world.terms.tdx_mut().unwrap().tcb.evaluation_number_min = SIMULATED_TCB_EVALUATION_NUMBER + 1;
    let bundle = world.bundle();
    world.assert_refused(&bundle, RefusalClass::Tcb, &["TCB evaluation number"]);
}

#[test]
fn an_old_policy_below_the_callers_floor_is_refused() {
    let mut world = World::new();
    world.terms.number = 7;
    world.floors.policy_number = 7;
    let bundle = world.bundle();
    assert!(world.judge(&bundle).1.is_ok());
    world.floors.policy_number = 8;
    world.assert_refused(&bundle, RefusalClass::Policy, &["policy number"]);
}

#[test]
fn old_endorsements_below_the_callers_floor_are_refused_although_the_policy_accepts_them() {
    let mut world = World::new();
    world.floors.tcb_evaluation_number = SIMULATED_TCB_EVALUATION_NUMBER + 1;
    let bundle = world.bundle();
    world.assert_refused(&bundle, RefusalClass::Tcb, &["TCB evaluation number"]);
}
