//! No bit of a report or of its chain is free, and no byte can be left out or added.

use std::sync::atomic::{AtomicUsize, Ordering};

use cocoon_verify::judgement::FailureClass;
use cocoon_verify::nvidia::Report;

use crate::inputs::{Judge, Vectors, assert_passes};

#[test]
fn no_byte_of_a_report_is_free() {
    let Some(vectors) = Vectors::open() else { return };
    let judge = Judge::with(vectors.certificates("sdk_testdata/switchCertChain.txt"));
    let report = vectors.report("sdk_testdata/switchAttestationReport.txt");
    assert_passes(&judge.judge(&report));
    // Every bit takes minutes without optimisation; COCOON_EXHAUSTIVE asks for it.
    let step = if std::env::var_os("COCOON_EXHAUSTIVE").is_some() {
        1
    } else {
        61
    };
    let flips = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let mut report = report.clone();
                loop {
                    let bit = flips.fetch_add(step, Ordering::Relaxed);
                    if bit >= report.len() * 8 {
                        return;
                    }
                    report[bit / 8] ^= 1 << (bit % 8);
                    assert_eq!(
                        judge.judge(&report).failure(),
                        Some(FailureClass::Signature),
                        "bit {bit}"
                    );
                    report[bit / 8] ^= 1 << (bit % 8);
                }
            });
        }
    });
    for length in 0..report.len() {
        assert!(Report::parse(&report[..length]).is_err(), "{length} bytes");
    }
    for byte in 0..=u8::MAX {
        let mut longer = report.clone();
        longer.push(byte);
        assert!(Report::parse(&longer).is_err(), "one more byte, {byte}");
    }
}

#[test]
fn no_byte_of_a_chain_is_free() {
    let Some(vectors) = Vectors::open() else { return };
    let chain = vectors.certificates("sdk_testdata/hopperCertChain.txt");
    let report = vectors.read("sdk_testdata/hopperAttestationReport.txt");
    let step = if std::env::var_os("COCOON_EXHAUSTIVE").is_some() {
        1
    } else {
        127
    };
    for index in 0..chain.len() {
        for bit in (0..chain[index].len() * 8).step_by(step) {
            let mut judge = Judge::with(chain.clone());
            judge.certificates[index][bit / 8] ^= 1 << (bit % 8);
            let judgement = judge.judge(&report);
            assert_eq!(
                judgement.failure(),
                Some(FailureClass::Signature),
                "certificate {index}, bit {bit}"
            );
        }
    }
}
