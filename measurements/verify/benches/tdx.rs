//! How close verifying TDX quotes comes to the P-256 checks that it cannot avoid, beside dcap-qvl, on one core.
//!
//! `COCOON_VECTORS=FOLDER cargo bench -p cocoon-verify --bench tdx`. Each row is measured in turns with as many plain
//! P-256 checks of the same library as it makes itself; the fastest of all turns counts, so that other work on the
//! machine does not.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::{
    hint::black_box,
    path::PathBuf,
    time::{Duration, Instant},
};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use cocoon_verify::{
    Root,
    tdx::{Collateral, Quote, TdxTerms, judge_tdx},
};
use dcap_qvl::{QuoteCollateralV3, verify::QuoteVerifier};

/// When the collateral of phala/tdx_quote is valid.
const NOW_S: u64 = 1_750_332_747;
const TURNS: usize = 400;

fn main() {
    let Some(folder) = std::env::var_os("COCOON_VECTORS").map(PathBuf::from) else {
        eprintln!("skipped: COCOON_VECTORS does not name a folder with public test vectors");
        return;
    };
    let read = |name: &str| std::fs::read(folder.join("tdx/phala").join(name)).unwrap();
    let (bytes, json) = (read("tdx_quote"), read("tdx_quote_collateral.json"));
    let root = Root::intel();
    let quote = Quote::parse(&bytes).unwrap();
    let verify_collateral = || Collateral::parse(&json).unwrap().verify(&root).unwrap();
    let collateral = verify_collateral();
    let pck = collateral.verify_pck(quote.pck_chain()).unwrap();

    let key = [&[4], quote.attestation_key().as_slice()].concat();
    let check = || {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key);
        black_box(key.verify(quote.signed(), quote.signature())).unwrap();
    };
    println!(
        "{:<52} {:>10} {:>12} {:>7}",
        "", "quotes/s", "P-256 limit", "ratio"
    );
    row("nothing cached (9 checks)", 9, &check, &|| {
        let quote = Quote::parse(&bytes).unwrap();
        let pck = verify_collateral().verify_pck(quote.pck_chain()).unwrap();
        black_box(pck.verify(&quote, NOW_S).unwrap());
    });
    row(
        "collateral and its PCK CA verified before (3 checks)",
        3,
        &check,
        &|| {
            let quote = Quote::parse(&bytes).unwrap();
            let pck = collateral.verify_pck(quote.pck_chain()).unwrap();
            black_box(pck.verify(&quote, NOW_S).unwrap());
        },
    );
    row(
        "PCK and QE report verified before, too (1 check)",
        1,
        &check,
        &|| {
            let quote = Quote::parse(&bytes).unwrap();
            black_box(pck.verify(&quote, NOW_S).unwrap());
        },
    );
    row(
        "judge_tdx, nothing cached, all rows (10 checks)",
        10,
        &check,
        &|| {
            black_box(judge_tdx(&bytes, Some(&json), &root, &TdxTerms::default(), NOW_S));
        },
    );
    let theirs: QuoteCollateralV3 = serde_json::from_slice(&json).unwrap();
    let verifier = QuoteVerifier::new_prod();
    row(
        "dcap-qvl 0.7.1, RustCrypto (9 checks, no cache)",
        9,
        &check,
        &|| {
            black_box(verifier.verify(&bytes, &theirs, NOW_S).unwrap());
        },
    );
}

fn row(name: &str, checks: usize, check: &dyn Fn(), verify: &dyn Fn()) {
    let (mut limit, mut found) = (Duration::MAX, Duration::MAX);
    for _ in 0..TURNS {
        limit = limit.min(time(|| (0..checks).for_each(|_| check())));
        found = found.min(time(verify));
    }
    let (found, limit) = (found.as_secs_f64(), limit.as_secs_f64());
    println!(
        "{name:<52} {:>10.0} {:>12.0} {:>6.1}%",
        1.0 / found,
        1.0 / limit,
        100.0 * limit / found
    );
}

fn time(work: impl Fn()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}
