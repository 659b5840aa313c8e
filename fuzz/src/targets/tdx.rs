//! Intel TDX: quotes, collateral, certificates.

use cocoon_verify::Root;
use cocoon_verify::tdx::{Collateral, Quote, TdxTerms, judge_tdx};

/// A time at which most of the vectors' collateral is valid.
const NOW_S: u64 = 1_750_332_747;

/// The quote alone: what is accepted accounts for each of its bytes.
pub fn tdx_quote(bytes: &[u8]) -> bool {
    let Ok(quote) = Quote::parse(bytes) else {
        return false;
    };
    let _ = (quote.td_report(), quote.enclave_report());
    let _ = (quote.signed(), quote.pck_chain(), quote.qe_authentication());
    let mut longer = bytes.to_vec();
    longer.push(1);
    assert!(Quote::parse(&longer).is_err(), "a trailing byte is free");
    true
}

/// The judge, with the certificates that the quote carries, and without collateral.
pub fn tdx_judgement(bytes: &[u8]) -> bool {
    let judgement = judge_tdx(bytes, None, &Root::intel(), &TdxTerms::default(), NOW_S);
    assert!(judgement.failure().is_some(), "a quote without collateral passes");
    Quote::parse(bytes).is_ok()
}

/// JSON collateral: its parts, their certificates and revocation lists.
pub fn tdx_collateral(bytes: &[u8]) -> bool {
    let Ok(collateral) = Collateral::parse(bytes) else {
        return false;
    };
    let _ = collateral.verify(&Root::intel());
    true
}
