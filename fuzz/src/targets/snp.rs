//! AMD SEV-SNP: reports and the certificates that endorse them.

use cocoon_verify::snp::{SnpInputs, SnpReport, SnpRoot, judge_snp, parse_untrusted};

/// Long enough for every report.
const REPORT_BYTES: usize = cocoon_verify::snp::SNP_REPORT_BYTES;
const NOW_S: u64 = 1_750_332_747;

/// A report and, as a file of certificates, the same bytes.
pub fn snp_report(bytes: &[u8]) -> bool {
    parse_untrusted(bytes);
    let accepted = SnpReport::parse(bytes).is_ok();
    assert!(!accepted || bytes.len() == REPORT_BYTES);
    accepted
}

/// The judge: a report, and behind it a file of certificates.
pub fn snp_judgement(bytes: &[u8]) -> bool {
    let (report, certificates) = bytes.split_at(REPORT_BYTES.min(bytes.len()));
    let endorsements: &[&[u8]] = &[certificates];
    let judgement = judge_snp(&SnpInputs {
        report,
        endorsements,
        root: &SnpRoot::amd(),
        terms: None,
        nonce: None,
        now_s: NOW_S,
    });
    let _ = judgement.verdict();
    SnpReport::parse(report).is_ok()
}
