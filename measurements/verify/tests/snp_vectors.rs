//! Public SEV-SNP reports and certificates that nobody in this project wrote, from the folder that `COCOON_VECTORS`
//! names. Without it the tests pass with a message; if it is set, a missing file fails.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod public_vectors;

use std::{path::PathBuf, thread};

use cocoon_verify::{
    judgement::{FailureClass, Judgement, Status, Verdict},
    snp::{SNP_REPORT_BYTES, SnpInputs, SnpRoot, judge_snp},
};
use sev::{
    certs::snp::{Certificate, Chain, Verifiable},
    firmware::guest::AttestationReport,
    parser::ByteParser,
};

/// 2025-06-01T00:00:00Z, when every certificate of these vectors is valid.
const NOW_S: u64 = 1_748_736_000;

struct Vectors(PathBuf);

impl Vectors {
    fn open() -> Option<Self> {
        public_vectors::folder().map(Self)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        public_vectors::read(&self.0.join("snp").join(name))
    }

    /// The report of each pair, and the certificate that belongs to it.
    fn pairs(&self) -> [(Vec<u8>, Vec<u8>); 3] {
        let hexadecimal = self.read("virtee_sev/report_milan.hex");
        [
            (self.read("coco/test-report.bin"), self.read("coco/test-vcek.der")),
            (
                hex::decode(hexadecimal.trim_ascii()).unwrap(),
                self.read("virtee_sev/vcek_milan.der"),
            ),
            (
                self.read("coco/test-vlek-report.bin"),
                self.read("coco/test-vlek.der"),
            ),
        ]
    }
}

fn judge_at(report: &[u8], files: &[&[u8]], now_s: u64) -> Judgement {
    judge_snp(&SnpInputs {
        report,
        endorsements: files,
        root: &SnpRoot::amd(),
        terms: None,
        nonce: None,
        now_s,
    })
}

fn judge(report: &[u8], files: &[&[u8]]) -> Judgement {
    judge_at(report, files, NOW_S)
}

fn failed(judgement: &Judgement) -> Vec<&str> {
    let failed = judgement
        .checks()
        .iter()
        .filter(|check| check.status == Status::Fail);
    failed.map(|check| check.id.as_str()).collect()
}

#[test]
fn real_reports_under_a_vcek_verify_with_amds_roots() {
    let Some(vectors) = Vectors::open() else { return };
    let authorities = vectors.read("coco/milan_ask_ark_asvk.pem");
    let chain = vectors.read("virtee_sev/cert_chain_milan");
    for (report, vcek) in &vectors.pairs()[..2] {
        for files in [
            vec![vcek.as_slice()],
            vec![&authorities, vcek],
            vec![vcek, &chain, &authorities],
        ] {
            let judgement = judge(report, &files);
            assert_eq!(judgement.verdict(), Verdict::Pass, "{judgement:#?}");
            assert_eq!(judgement.claims()["certificate_product"], "Milan-B0");
        }
    }
}

#[test]
fn a_real_report_under_a_vlek_verifies() {
    let Some(vectors) = Vectors::open() else { return };
    let authorities = vectors.read("coco/milan_ask_ark_asvk.pem");
    let [_, _, (report, vlek)] = vectors.pairs();
    let judgement = judge(&report, &[&vlek, &authorities]);
    assert_eq!(judgement.verdict(), Verdict::Pass, "{judgement:#?}");
    // Software at VMPL 1 asked for it, about which only a policy can judge.
    let vmpl = judgement.checks().iter().find(|check| check.id == "guest.vmpl");
    assert_eq!(vmpl.map(|check| check.status), Some(Status::Skip));
    assert_eq!(
        judgement.claims()["cloud_provider"],
        "CN=cc-us-east-2.amazonaws.com"
    );
    let without_asvk = judge(&report, &[&vlek]);
    assert_eq!(failed(&without_asvk), ["chain.complete"]);
    assert_eq!(without_asvk.failure(), Some(FailureClass::Tcb));
    // The VLEK ran out at the end of 2025.
    let late = judge_at(&report, &[&vlek, &authorities], 1_767_225_600);
    assert_eq!(failed(&late), ["chain.validity"]);
}

#[test]
fn forged_vceks_are_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let report = vectors.read("coco/test-report.bin");
    for name in [
        "coco/test-vcek-invalid-legacy.der",
        "coco/test-vcek-invalid-new.der",
    ] {
        let judgement = judge(&report, &[&vectors.read(name)]);
        assert!(
            failed(&judgement).contains(&"chain.signatures"),
            "{name}: {judgement:#?}"
        );
        assert_eq!(judgement.failure(), Some(FailureClass::Signature));
    }
}

#[test]
fn another_chips_or_products_certificates_are_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let pairs = vectors.pairs();
    let foreign = judge(&pairs[0].0, &[&pairs[1].1]);
    assert_eq!(failed(&foreign), ["report.signature", "certificate.chip-id"]);
    let genoa = vectors.read("coco/genoa_ask_ark_asvk.pem");
    // Another product's authorities beside the right one are ignored.
    assert_eq!(
        judge(&pairs[0].0, &[&pairs[0].1, &genoa]).verdict(),
        Verdict::Pass
    );
    let vlek = judge(&pairs[2].0, &[&pairs[2].1, &genoa]);
    assert!(failed(&vlek).contains(&"chain.complete"));
}

/// Judges each case on two threads; the cases that were not refused.
fn accepted(cases: usize, judge: impl Fn(usize) -> Judgement + Sync) -> Vec<usize> {
    let judge = &judge;
    thread::scope(|scope| {
        let half = |from: usize| {
            scope.spawn(move || {
                let cases = (from..cases).step_by(2);
                cases
                    .filter(|case| judge(*case).verdict() == Verdict::Pass)
                    .collect::<Vec<_>>()
            })
        };
        let halves = [half(0), half(1)];
        halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
    })
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

#[test]
fn every_single_bit_flip_of_a_report_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let [(report, vcek), ..] = vectors.pairs();
    assert_eq!(judge(&report, &[&vcek]).verdict(), Verdict::Pass);
    let free = accepted(SNP_REPORT_BYTES * 8, |bit| {
        judge(&flipped(&report, bit), &[&vcek])
    });
    assert!(free.is_empty(), "free bits: {free:?}");
}

#[test]
fn every_single_bit_flip_of_a_certificate_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let [(report, vcek), ..] = vectors.pairs();
    let free = accepted(vcek.len() * 8, |bit| judge(&report, &[&flipped(&vcek, bit)]));
    assert!(free.is_empty(), "free bits: {free:?}");
}

#[test]
fn every_single_bit_flip_of_an_authority_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let [(report, vcek), ..] = vectors.pairs();
    let chain = vectors.read("virtee_sev/cert_chain_milan");
    let chain = String::from_utf8(chain).unwrap();
    let blocks = chain
        .split_inclusive("-----END CERTIFICATE-----\n")
        .collect::<Vec<_>>();
    for block in &blocks[..2] {
        let (_, der) = der::pem::decode_vec(block.as_bytes()).unwrap();
        assert_eq!(judge(&report, &[&vcek, &der]).verdict(), Verdict::Pass);
        // One bit of each byte: seven of eight more would take as many times as long and show nothing else.
        let free = accepted(der.len(), |byte| {
            judge(&report, &[&vcek, &flipped(&der, byte * 8 + byte % 8)])
        });
        assert!(free.is_empty(), "free bytes: {free:?}");
    }
}

#[test]
fn every_truncation_and_anything_behind_is_refused() {
    let Some(vectors) = Vectors::open() else { return };
    let [(report, vcek), ..] = vectors.pairs();
    for length in 0..report.len() {
        let judgement = judge(&report[..length], &[]);
        assert!(failed(&judgement).contains(&"report.format"), "{length} bytes");
    }
    for byte in [0, 0xff] {
        let longer = [report.as_slice(), &[byte]].concat();
        assert_eq!(failed(&judge(&longer, &[&vcek])), ["report.format"]);
        let longer = [vcek.as_slice(), &[byte]].concat();
        assert_eq!(
            failed(&judge(&report, &[&longer])),
            ["certificates.format", "chain.complete"]
        );
    }
    for length in 0..vcek.len() {
        let judgement = judge(&report, &[&vcek[..length]]);
        assert!(
            failed(&judgement).contains(&"certificates.format"),
            "{length} bytes"
        );
    }
}

/// Whether `sev` accepts chain and signature; `None` if it cannot read the report.
fn sev_verdict(report: &[u8], vek: &[u8], ask: &Certificate) -> Option<bool> {
    let report = AttestationReport::from_bytes(report).ok()?;
    let chain = Chain {
        ca: sev::certs::snp::ca::Chain {
            ark: sev::certs::snp::builtin::milan::ark().unwrap(),
            ask: ask.clone(),
        },
        vek: Certificate::from_der(vek).unwrap(),
    };
    Some((&chain, &report).verify().is_ok())
}

#[test]
fn agrees_with_sev_on_chain_and_signature() {
    let Some(vectors) = Vectors::open() else { return };
    let authorities = vectors.read("coco/milan_ask_ark_asvk.pem");
    let pem = String::from_utf8(authorities.clone()).unwrap();
    let blocks = pem
        .split_inclusive("-----END CERTIFICATE-----\n")
        .collect::<Vec<_>>();
    let [ask, _, asvk] = [0, 1, 2].map(|index| Certificate::from_pem(blocks[index].as_bytes()).unwrap());
    let pairs = vectors.pairs();
    let mut veks = pairs.iter().map(|(_, vek)| vek.clone()).collect::<Vec<_>>();
    veks.push(vectors.read("coco/test-vcek-invalid-legacy.der"));
    veks.push(vectors.read("coco/test-vcek-invalid-new.der"));
    for (report, _) in &pairs {
        for (index, vek) in veks.iter().enumerate() {
            // A signed byte, a byte of the signature, and the report as it is.
            for byte in [None, Some(0x90), Some(0x2a0)] {
                let report = byte.map_or(report.clone(), |byte| flipped(report, byte * 8));
                let theirs = sev_verdict(&report, vek, if index == 2 { &asvk } else { &ask });
                let judgement = judge(&report, &[vek, &authorities]);
                let rows = failed(&judgement);
                let ours = ![
                    "report.format",
                    "chain.complete",
                    "chain.signatures",
                    "report.signature",
                ]
                .iter()
                .any(|row| rows.contains(row));
                assert_eq!(Some(ours), theirs, "{index} {byte:?} {judgement:#?}");
            }
        }
    }
}
