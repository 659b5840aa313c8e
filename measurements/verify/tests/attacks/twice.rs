//! Several bundles judged by one appraiser: what it verified for one never decides about another.

use cocoon_evidence::{Endorsements, EvidenceBundle};
use cocoon_simulator::COLLATERAL_LIFETIME_S;
use cocoon_verify::{Appraiser, Policy, RefusalClass};

use crate::world::{NOW_S, World, assert_refused, outcome, quote_bytes, tls_report_data};

/// Places in a quote of version 4: the TD report, and behind the signed part the lengths of the signature data and of
/// the QE report's certification data.
const TD_REPORT: usize = 48;
const SIGNATURE_DATA_BYTES: usize = 632;
const CERTIFICATION_DATA_BYTES: usize = SIGNATURE_DATA_BYTES + 4 + 128 + 2;
const QE_REPORT_SIGNATURE: usize = CERTIFICATION_DATA_BYTES + 4 + 384;

/// Whatever was judged first, the next is judged as if it were alone.
#[track_caller]
pub(crate) fn assert_independent<'a>(bundles: &[EvidenceBundle], appraiser: impl Fn() -> Appraiser<'a>) {
    let judge = |appraiser: &mut Appraiser<'_>, bundle: &EvidenceBundle| {
        let appraisal = appraiser.appraise(bundle, &tls_report_data(&bundle.events));
        format!("{appraisal:?}")
    };
    let alone = bundles.iter().map(|bundle| judge(&mut appraiser(), bundle));
    let alone: Vec<_> = alone.collect();
    for first in bundles {
        let mut appraiser = appraiser();
        judge(&mut appraiser, first);
        for (bundle, alone) in bundles.iter().zip(&alone) {
            assert_eq!(&judge(&mut appraiser, bundle), alone);
        }
    }
}

fn changed(bundle: &EvidenceBundle, change: impl FnOnce(&mut Vec<u8>)) -> EvidenceBundle {
    let mut bundle = bundle.clone();
    change(quote_bytes(&mut bundle));
    bundle
}

/// Where the quote's PCK chain begins.
fn chain_start(quote: &[u8]) -> usize {
    let begin = b"-----BEGIN";
    quote
        .windows(begin.len())
        .position(|window| window == begin)
        .unwrap()
}

/// `bundle` with the PCK chain of `other`, and every length right.
fn with_chain_of(bundle: &EvidenceBundle, other: &EvidenceBundle) -> EvidenceBundle {
    let other = quote_bytes(&mut other.clone()).clone();
    let chain = &other[chain_start(&other)..];
    changed(bundle, |quote| {
        let start = chain_start(quote);
        let before = quote.len();
        quote.truncate(start);
        quote.extend_from_slice(chain);
        for offset in [SIGNATURE_DATA_BYTES, CERTIFICATION_DATA_BYTES, start - 4] {
            let length: &mut [u8; 4] = (&mut quote[offset..offset + 4]).try_into().unwrap();
            let bytes = u32::from_le_bytes(*length) as usize + start + chain.len() - before;
            *length = (bytes as u32).to_le_bytes();
        }
    })
}

#[test]
fn a_pck_that_was_verified_vouches_for_no_other_chain_and_no_other_quote() {
    let (world, foreign) = (World::new(), World::new());
    let (honest, theirs) = (world.bundle(), foreign.bundle());
    let chain = chain_start(quote_bytes(&mut honest.clone()));
    let bundles = [
        honest.clone(),
        world.bundle(),
        with_chain_of(&honest, &honest),
        theirs.clone(),
        with_chain_of(&honest, &theirs),
        with_chain_of(&theirs, &honest),
        changed(&honest, |quote| quote[chain + 100] ^= 1),
        changed(&honest, |quote| quote[TD_REPORT] ^= 1),
        changed(&honest, |quote| quote[QE_REPORT_SIGNATURE] ^= 1),
        changed(&honest, |quote| quote.truncate(1000)),
    ];
    let accepted = bundles.each_ref().map(|bundle| world.judge(bundle).1.is_ok());
    let expected = [true, true, true, false, false, false, false, false, false, false];
    assert_eq!(accepted, expected);
    let (policy, endorsements) = (world.policy(), world.endorsements());
    assert_independent(&bundles, || world.appraiser(&policy, &endorsements, NOW_S));
}

#[test]
fn what_was_verified_does_not_outlive_policy_endorsements_and_second() {
    let mut world = World::new();
    world.terms.expires_s = u64::MAX / 4;
    let (bundle, endorsements) = (world.bundle(), world.endorsements());
    let report_data = tls_report_data(&bundle.events);
    let (policy, foreign) = (world.policy(), World::new().policy());
    let mut changed = Endorsements::decode(&endorsements).unwrap();
    let document = changed.tdx.windows(9).position(|window| window == b"tcb_info\"");
    let mut document = changed.tdx[document.unwrap()..].iter_mut();
    // Another digit, so that it stays JSON.
    *document.find(|byte| byte.is_ascii_digit()).unwrap() ^= 1;
    let changed = changed.encode();
    let late_s = NOW_S + COLLATERAL_LIFETIME_S + 1;

    let judge = |policy: &Policy, endorsements: &[u8], now_s| {
        let mut appraiser = world.appraiser(policy, endorsements, now_s);
        appraiser.appraise(&bundle, &report_data);
        outcome(appraiser.appraise(&bundle, &report_data))
    };
    for (policy, endorsements, now_s, class, row) in [
        (
            &policy,
            &endorsements,
            late_s,
            RefusalClass::Freshness,
            "endorsement freshness",
        ),
        (
            &policy,
            &changed,
            NOW_S,
            RefusalClass::Signature,
            "quote signature",
        ),
        (
            &foreign,
            &endorsements,
            NOW_S,
            RefusalClass::Signature,
            "quote signature",
        ),
    ] {
        assert!(judge(&world.policy(), &world.endorsements(), NOW_S).1.is_ok());
        assert_refused(judge(policy, endorsements, now_s), class, &[row]);
    }
}
