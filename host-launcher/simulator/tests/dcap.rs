//! What the simulated platform signs passes an unmodified DCAP verifier, and only under its own root.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use cocoon_evidence::{Digest48, Register, Rtmr};
use cocoon_protocol::simulated::{FromPlatform, ToPlatform};
use cocoon_simulator::{
    COLLATERAL_LIFETIME_S, InitialRegisters, SIMULATED_TD_ATTRIBUTES, SIMULATED_XFAM, SimulatedPlatform,
    SimulatedTd,
};
use dcap_qvl::{QuoteCollateralV3, quote::TDReport10, verify::QuoteVerifier};

const NOW_S: u64 = 1_800_000_000;

fn registers() -> InitialRegisters {
    InitialRegisters {
        mrtd: Digest48::of(b"firmware"),
        rtmr0: Digest48::of(b"hardware"),
        rtmr1: Digest48::of(b"kernel"),
        rtmr2: Digest48::of(b"command line"),
    }
}

fn quote(td: &mut SimulatedTd, report_data: [u8; 64]) -> Vec<u8> {
    match td.handle(ToPlatform::Quote { report_data }) {
        FromPlatform::Quote { quote } => quote,
        other => panic!("{other:?}"),
    }
}

fn verify(
    verifier: &SimulatedPlatform,
    prover: &SimulatedPlatform,
    quote: &[u8],
    now_s: u64,
) -> Result<(String, TDReport10), String> {
    let root = dcap_root(verifier.root_pem());
    let collateral: QuoteCollateralV3 = serde_json::from_slice(&prover.collateral(NOW_S).unwrap()).unwrap();
    let verified = QuoteVerifier::new(root)
        .verify(quote, &collateral, now_s)
        .map_err(|error| format!("{error:#}"))?;
    Ok((verified.status, *verified.report.as_td10().unwrap()))
}

fn dcap_root(pem: &str) -> Vec<u8> {
    use base64::Engine as _;
    let text: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

#[test]
fn a_quote_verifies_and_says_what_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    let platform = SimulatedPlatform::open_or_create(dir.path(), NOW_S).unwrap();
    let mut td = platform.start_td(registers());
    let digest = Digest48::of(b"event");
    let extend = |register| ToPlatform::Extend { register, digest };
    assert_eq!(td.handle(extend(Rtmr::Rtmr3)), FromPlatform::Extended);
    let quote = quote(&mut td, [7; 64]);

    let (status, report) = verify(&platform, &platform, &quote, NOW_S).unwrap();
    assert_eq!(status, "UpToDate");
    assert_eq!(report.mr_td, *registers().mrtd.as_bytes());
    assert_eq!(report.rt_mr0, *registers().rtmr0.as_bytes());
    assert_eq!(report.rt_mr1, *registers().rtmr1.as_bytes());
    assert_eq!(report.rt_mr2, *registers().rtmr2.as_bytes());
    assert_eq!(report.rt_mr3, *Register::replay([&digest]).value().as_bytes());
    assert_eq!(report.report_data, [7; 64]);
    assert_eq!(report.td_attributes, SIMULATED_TD_ATTRIBUTES.to_le_bytes());
    assert_eq!(report.xfam, SIMULATED_XFAM.to_le_bytes());
}

#[test]
fn the_guest_cannot_extend_what_was_measured_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let platform = SimulatedPlatform::open_or_create(dir.path(), NOW_S).unwrap();
    let mut td = platform.start_td(registers());
    for register in [Rtmr::Rtmr0, Rtmr::Rtmr1, Rtmr::Rtmr2] {
        let answer = td.handle(ToPlatform::Extend {
            register,
            digest: Digest48::of(b"event"),
        });
        assert!(matches!(answer, FromPlatform::Failed { .. }), "{register:?}");
    }
    let quote = quote(&mut td, [0; 64]);
    let (_, report) = verify(&platform, &platform, &quote, NOW_S).unwrap();
    assert_eq!(report.rt_mr2, *registers().rtmr2.as_bytes());
}

#[test]
fn a_platform_opened_again_is_the_same_platform() {
    let dir = tempfile::tempdir().unwrap();
    let first = SimulatedPlatform::open_or_create(dir.path(), NOW_S).unwrap();
    let second = SimulatedPlatform::open_or_create(dir.path(), NOW_S + 1000).unwrap();
    assert_eq!(first.root_pem(), second.root_pem());
    let file = std::fs::read_to_string(dir.path().join("root.pem")).unwrap();
    assert_eq!(file, first.root_pem());
    let old = quote(&mut first.start_td(registers()), [1; 64]);
    assert_eq!(quote(&mut second.start_td(registers()), [1; 64]), old);
    verify(&second, &first, &old, NOW_S).unwrap();
}

#[test]
fn another_state_directory_is_another_root() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [ours, foreign] = dirs
        .each_ref()
        .map(|dir| SimulatedPlatform::open_or_create(dir.path(), NOW_S).unwrap());
    assert_ne!(ours.root_pem(), foreign.root_pem());
    let quote = quote(&mut foreign.start_td(registers()), [1; 64]);
    assert!(verify(&ours, &foreign, &quote, NOW_S).is_err());
    assert!(verify(&ours, &ours, &quote, NOW_S).is_err());
    assert!(verify(&foreign, &foreign, &quote, NOW_S).is_ok());
}

#[test]
fn collateral_expires() {
    let dir = tempfile::tempdir().unwrap();
    let platform = SimulatedPlatform::open_or_create(dir.path(), NOW_S).unwrap();
    let quote = quote(&mut platform.start_td(registers()), [1; 64]);
    assert!(verify(&platform, &platform, &quote, NOW_S + COLLATERAL_LIFETIME_S - 1).is_ok());
    assert!(verify(&platform, &platform, &quote, NOW_S + COLLATERAL_LIFETIME_S + 1).is_err());
}

#[test]
fn a_clock_that_is_not_set_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for now_s in [0, u64::MAX] {
        let error = SimulatedPlatform::open_or_create(dir.path(), now_s).unwrap_err();
        assert!(error.to_string().contains("clock"), "{error}");
    }
}
