//! How long it takes to judge a SEV-SNP report and the evidence of a GPU, on one core, everything offline and nothing
//! kept: all rows, from the bytes of the files.
//!
//! `COCOON_VECTORS=FOLDER cargo bench -p cocoon-verify --bench vendors`. The fastest of all turns counts, so that other
//! work on the machine does not.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::{
    hint::black_box,
    path::PathBuf,
    time::{Duration, Instant},
};

use cocoon_verify::{
    judgement::{Judgement, Verdict},
    nvidia::{NvidiaInputs, NvidiaRoots, judge_nvidia, read_certificates},
    snp::{SnpInputs, SnpRoot, judge_snp},
};

/// 2025-10-01, inside the validity of all certificates.
const NOW_S: u64 = 1_759_276_800;
const TURNS: usize = 100;

fn main() {
    let Some(folder) = std::env::var_os("COCOON_VECTORS").map(PathBuf::from) else {
        eprintln!("skipped: COCOON_VECTORS does not name a folder with public test vectors");
        return;
    };
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    println!("{:<52} {:>12} {:>12}", "", "one takes", "in a second");
    for key in ["vcek", "vlek"] {
        let (report, certificate) = match key {
            "vcek" => ("snp/coco/test-report.bin", "snp/coco/test-vcek.der"),
            _ => ("snp/coco/test-vlek-report.bin", "snp/coco/test-vlek.der"),
        };
        let (report, root) = (read(report), SnpRoot::amd());
        let files = [read(certificate), read("snp/coco/milan_ask_ark_asvk.pem")];
        let files = files.each_ref().map(Vec::as_slice);
        row(&format!("SEV-SNP report of a {key}, with its chain"), || {
            judge_snp(&SnpInputs {
                report: &report,
                endorsements: &files,
                root: &root,
                terms: None,
                nonce: None,
                now_s: NOW_S,
            })
        });
    }
    let sdk = |name: &str| read(&format!("nvidia/sdk_testdata/{name}"));
    for (device, name) in [
        ("GH100", "hopper"),
        ("GB100", "blackwell"),
        ("NVSwitch", "switch"),
    ] {
        let report = sdk(&format!("{name}AttestationReport.txt"));
        let chain = sdk(&format!("{name}CertChain.txt"));
        row(&format!("NVIDIA report of a {device}, with its chain"), || {
            nvidia(&report, &read_certificates(&chain).unwrap())
        });
    }
    let evidence = read("nvidia/evidence/hopper_evidence.json");
    row("the same in NVIDIA's JSON, GH100", || nvidia(&evidence, &[]));
}

fn nvidia(evidence: &[u8], certificates: &[Vec<u8>]) -> Judgement {
    judge_nvidia(
        evidence,
        &NvidiaInputs {
            certificates,
            rims: &[],
            ocsp: &[],
            nonce: None,
            roots: &NvidiaRoots::pinned(),
            policy: None,
            guest: None,
            now_s: NOW_S,
        },
    )
}

fn row(name: &str, judge: impl Fn() -> Judgement) {
    let mut best = Duration::MAX;
    for _ in 0..TURNS {
        let start = Instant::now();
        let judgement = black_box(judge());
        best = best.min(start.elapsed());
        assert_eq!(judgement.verdict(), Verdict::Pass, "{name}");
    }
    let milliseconds = best.as_secs_f64() * 1e3;
    println!("{name:<52} {milliseconds:>9.3} ms {:>12.0}", 1e3 / milliseconds);
}
