//! Complete bundles from a simulated platform: what a client accepts, and one test for each attack that it must
//! notice.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod binding;
mod events;
mod gpu;
mod machines;
#[path = "../nvidia_lab/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod nvidia_lab;
mod quote;
mod registers;
mod signed_policy;
#[path = "../simulated_vendor/mod.rs"]
mod simulated_vendor;
mod snp;
#[path = "../snp_forge/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod snp_forge;
mod time;
mod twice;
mod world;

use cocoon_verify::{Appraiser, PlatformId, Verdict};
use proptest::prelude::*;

use world::{DOCUMENT, NOW_S, USAGE_KEY, World, quote_bytes, tls_report_data};

#[test]
fn the_honest_guest_is_trusted_and_every_row_says_simulated() {
    let world = World::new();
    let (report, trusted) = world.judge(&world.bundle());
    let guest = trusted.unwrap();
    assert!(report.is_accepted());
    assert!(guest.is_simulated());
    assert_eq!(guest.usage_key(), &USAGE_KEY);
    assert_eq!(guest.launch_document(), DOCUMENT);
    let PlatformId::Tdx { fmspc, ppid } = guest.platform() else {
        panic!("the platform is TDX");
    };
    assert_eq!((*fmspc, ppid.len()), (*b"SIM\0\0\0", 16));
    let not_simulated: Vec<_> = report
        .checks
        .iter()
        .filter(|check| check.verdict != Verdict::Simulated)
        .map(|check| (check.name.as_ref(), check.verdict))
        .collect();
    assert_eq!(
        not_simulated,
        [
            ("policy number", Verdict::Pass),
            ("policy expiry", Verdict::Pass),
            ("endorsements", Verdict::Pass),
            ("quote format", Verdict::Pass),
            ("collateral", Verdict::Pass)
        ]
    );
    for name in [
        "MRTD",
        "RTMR0",
        "RTMR1",
        "RTMR2",
        "RTMR3",
        "TD attributes",
        "report data",
    ] {
        assert_eq!(report.check(name).unwrap().verdict, Verdict::Simulated, "{name}");
    }
}

#[test]
fn changing_the_report_does_not_make_a_guest_trusted() {
    let world = World::new();
    let mut bundle = world.bundle();
    quote_bytes(&mut bundle)[200] ^= 1;
    let report_data = tls_report_data(&bundle.events);
    let policy = world.policy();
    let mut appraiser = Appraiser::new(&policy, world.floors, &world.endorsements(), NOW_S);
    let mut appraisal = appraiser.appraise(&bundle, &report_data);
    appraisal
        .report
        .checks
        .iter_mut()
        .for_each(|check| check.verdict = Verdict::Pass);
    assert!(appraisal.into_trusted().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn hostile_quotes_and_endorsements_never_panic(
        quote in prop::collection::vec(any::<u8>(), 0..6000),
        endorsements in prop::collection::vec(any::<u8>(), 0..600),
        now_s in any::<u64>(),
    ) {
        let world = World::new();
        let mut bundle = world.bundle();
        *quote_bytes(&mut bundle) = quote;
        let report_data = tls_report_data(&bundle.events);
        prop_assert!(world.judge_with(&bundle, &endorsements, &report_data, now_s).1.is_err());
    }

    #[test]
    fn a_damaged_quote_never_panics(
        start in 0_usize..5000, bytes in prop::collection::vec(any::<u8>(), 1..40), now_s in any::<u64>(),
    ) {
        let world = World::new();
        let mut bundle = world.bundle();
        let honest = quote_bytes(&mut bundle).clone();
        let end = (start + bytes.len()).min(honest.len());
        let start = start.min(end);
        quote_bytes(&mut bundle).splice(start..end, bytes);
        let report_data = tls_report_data(&bundle.events);
        let trusted = world.judge_with(&bundle, &world.endorsements(), &report_data, now_s).1;
        let in_time = (NOW_S - 3600..NOW_S + 1000).contains(&now_s);
        prop_assert!(trusted.is_err() || in_time);
    }
}
