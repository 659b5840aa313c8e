//! Registers and attributes that are not what the policy states.

use cocoon_evidence::Digest48;
use cocoon_simulator::{InitialRegisters, SIMULATED_TD_ATTRIBUTES, SIMULATED_XFAM};
use cocoon_verify::{Bits64, Expect, Fault, RefusalClass, TdTerms, Verdict};

use crate::world::{World, boot, honest_events, quoted, registers, tls_report_data};

#[test]
fn each_wrong_register_is_named_alone() {
    let other = Digest48::of(b"evil");
    let honest = registers();
    let cases: [(&str, InitialRegisters); 4] = [
        (
            "MRTD",
            InitialRegisters {
                mrtd: other,
                ..honest
            },
        ),
        (
            "RTMR0",
            InitialRegisters {
                rtmr0: other,
                ..honest
            },
        ),
        (
            "RTMR1",
            InitialRegisters {
                rtmr1: other,
                ..honest
            },
        ),
        (
            "RTMR2",
            InitialRegisters {
                rtmr2: other,
                ..honest
            },
        ),
    ];
    let world = World::new();
    for (name, registers) in cases {
        let mut td = world.platform.start_td(registers);
        let events = boot(&mut td, &honest_events());
        let report_data = tls_report_data(&events);
        let bundle = quoted(&mut td, events, report_data);
        world.assert_refused(&bundle, RefusalClass::Policy, &[name]);
    }
}

#[test]
fn what_the_host_sets_when_it_makes_the_td_is_compared() {
    let mut world = World::new();
    let bundle = world.bundle();
    let other = Expect::exact(Digest48::of(b"other"));
    let tdx = world.terms.tdx_mut().unwrap();
    tdx.registers.mr_config_id = other.clone();
    tdx.registers.mr_owner = other.clone();
    tdx.registers.mr_owner_config = other;
    world.assert_refused(
        &bundle,
        RefusalClass::Policy,
        &["MRCONFIGID", "MROWNER", "MROWNERCONFIG"],
    );
}

#[test]
fn td_attributes_and_xfam_are_compared_exactly() {
    let mut world = World::new();
    world.terms.tdx_mut().unwrap().td = TdTerms {
        attributes: Expect::exact(Bits64(SIMULATED_TD_ATTRIBUTES | 1 << 30)),
        xfam: Expect::exact(Bits64(SIMULATED_XFAM | 1 << 11)),
    };
    let bundle = world.bundle();
    world.assert_refused(&bundle, RefusalClass::Policy, &["TD attributes", "XFAM"]);
}

#[test]
fn a_guest_is_never_trusted_on_a_register_that_the_policy_does_not_compare() {
    let mut world = World::new();
    world.terms.tdx_mut().unwrap().registers.rtmr1 = Expect::AnyInsecure;
    let (report, trusted) = world.judge(&world.bundle());
    assert_eq!(report.check("RTMR1").unwrap().verdict, Verdict::Skip);
    let refusal = trusted.unwrap_err();
    assert_eq!(refusal.class, RefusalClass::Policy);
    assert_eq!(refusal.checks[0].fault, Fault::Policy);
}

#[test]
fn a_match_names_the_profile_that_leads_to_the_value() {
    let mut world = World::new();
    let values = [("qemu-8.2", Digest48::of(b"x")), ("qemu-9.2", registers().rtmr0)];
    world.terms.tdx_mut().unwrap().registers.rtmr0 = Expect::by_profile(values);
    let (report, trusted) = world.judge(&world.bundle());
    assert!(report.check("RTMR0").unwrap().actual.ends_with(" (qemu-9.2)"));
    assert!(trusted.is_ok());
}
