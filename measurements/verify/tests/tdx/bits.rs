//! No byte of a quote is free: every flipped bit, every truncation and everything that is added is refused, for each
//! of the bodies that a TDX quote can have.

use cocoon_verify::tdx::{Collateral, Quote, VerifiedCollateral, VerifiedPck};

use crate::inputs::{Case, Vectors};

/// A quote that verifies, and what is kept after that.
struct Genuine {
    case: Case,
    collateral: VerifiedCollateral,
    pck: VerifiedPck,
}

impl Genuine {
    fn new(case: Case) -> Self {
        let collateral = Collateral::parse(&case.collateral).unwrap();
        let collateral = collateral.verify(&case.root).unwrap();
        let quote = Quote::parse(&case.quote).unwrap();
        let pck = collateral.verify_pck(quote.pck_chain()).unwrap();
        let genuine = Self {
            pck,
            collateral,
            case,
        };
        assert!(genuine.accepts(&genuine.case.quote));
        genuine
    }

    /// With the PCK chain verified anew, and with the one that is kept.
    fn accepts(&self, bytes: &[u8]) -> bool {
        let Ok(quote) = Quote::parse(bytes) else {
            return false;
        };
        let now_s = self.case.now_s;
        let anew = self.collateral.verify_pck(quote.pck_chain());
        let anew = anew.and_then(|pck| pck.verify(&quote, now_s).map(drop));
        let kept = self.pck.verify(&quote, now_s);
        assert_eq!(
            anew.is_ok(),
            kept.is_ok(),
            "the kept PCK decides as a new one does"
        );
        kept.is_ok()
    }

    /// Every bit, shared among all cores.
    fn assert_no_bit_is_free(&self) {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for worker in 0..workers {
                scope.spawn(move || {
                    let mut quote = self.case.quote.clone();
                    for bit in (worker..quote.len() * 8).step_by(workers) {
                        quote[bit / 8] ^= 1 << (bit % 8);
                        assert!(!self.accepts(&quote), "bit {} of byte {}", bit % 8, bit / 8);
                        quote[bit / 8] ^= 1 << (bit % 8);
                    }
                });
            }
        });
    }

    fn assert_no_length_but_its_own(&self) {
        let quote = &self.case.quote;
        for length in 0..quote.len() {
            assert!(!self.accepts(&quote[..length]), "the first {length} bytes");
        }
        for byte in 0..=u8::MAX {
            for added in [1, 2, 3, 4, 16, 69, 71, 4096] {
                let longer = [quote.as_slice(), &vec![byte; added]].concat();
                assert!(!self.accepts(&longer), "{added} times {byte} after it");
            }
        }
    }

    /// The rows of a judgement, for a part of the bits: a whole judgement takes longer.
    fn assert_judgements_agree(&self) {
        let mut case = self.case.clone();
        for bit in (0..case.quote.len() * 8).step_by(211) {
            case.quote[bit / 8] ^= 1 << (bit % 8);
            let judgement = case.judge();
            assert!(
                judgement.failure().is_some(),
                "bit {} of byte {}",
                bit % 8,
                bit / 8
            );
            case.quote[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn no_bit_of_a_version_4_quote_is_free() {
    let Some(vectors) = Vectors::open() else { return };
    let genuine = Genuine::new(vectors.td10());
    genuine.assert_no_bit_is_free();
    genuine.assert_no_length_but_its_own();
    genuine.assert_judgements_agree();
}

#[test]
fn no_bit_of_a_version_5_quote_of_body_type_3_is_free() {
    let Some(vectors) = Vectors::open() else { return };
    let genuine = Genuine::new(vectors.td15());
    genuine.assert_no_bit_is_free();
    genuine.assert_no_length_but_its_own();
    genuine.assert_judgements_agree();
}

#[test]
fn no_bit_of_a_version_5_quote_of_body_type_4_is_free() {
    let Some(vectors) = Vectors::open() else { return };
    let genuine = Genuine::new(vectors.td15ex());
    genuine.assert_no_bit_is_free();
    genuine.assert_no_length_but_its_own();
    genuine.assert_judgements_agree();
}

#[test]
fn no_bit_of_the_zeros_that_intels_quoting_service_adds_is_free() {
    let Some(vectors) = Vectors::open() else { return };
    let mut case = vectors.td10();
    let length = case.quote.len();
    case.quote = vectors.read("tdx/phala/tdx_quote");
    let genuine = Genuine::new(case);
    let quote = &genuine.case.quote;
    for bit in length * 8..quote.len() * 8 {
        let mut flipped = quote.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(!genuine.accepts(&flipped), "bit {bit}");
    }
    for cut in length + 1..quote.len() {
        assert!(!genuine.accepts(&quote[..cut]), "the first {cut} bytes");
    }
}
