//! A raw SEV-SNP report, with or without a policy.

use super::{RootChoice, event_checks, machine_check, policy_checks, root_check};
use crate::{
    judgement::Judgement,
    policy::{PlatformKind, Policy},
    snp::{SnpInputs, SnpRoot, judge_snp},
};

/// What a raw SNP report is judged with.
#[derive(Debug, Clone, Copy)]
pub struct RawSnp<'a> {
    /// The report.
    pub report: &'a [u8],
    /// Files with certificates and revocation lists, PEM or DER, in any order.
    pub endorsements: &'a [&'a [u8]],
    /// Where the chain must end.
    pub root: &'a SnpRoot,
    /// What the report data must be: up to 64 bytes, zeros follow.
    pub nonce: Option<&'a [u8]>,
    /// What is accepted; without it only the platform is judged.
    pub policy: Option<&'a Policy>,
    /// Seconds since 1970.
    pub now_s: u64,
}

/// Judges a raw SNP report: the platform, and with a policy also what the report says of the guest.
pub fn judge_raw_snp(input: &RawSnp<'_>) -> Judgement {
    let judgement = judge_snp(&SnpInputs {
        report: input.report,
        endorsements: input.endorsements,
        root: input.root,
        terms: input.policy.and_then(|policy| policy.terms().snp()),
        nonce: input.nonce,
        now_s: input.now_s,
    });
    let mut checks = Vec::new();
    if let Some(policy) = input.policy {
        checks.extend(policy_checks(policy, Some(PlatformKind::Snp), input.now_s));
        checks.extend(machine_check(policy, judgement.claims().get("chip_id")));
        checks.extend(event_checks());
    }
    let choice = RootChoice {
        expected: SnpRoot::amd().describe(),
        actual: input.root.describe(),
        same: input.root.is_amds(),
    };
    checks.extend(root_check(choice, input.policy));
    // AMD's roots and those that a caller names are those of processors; no simulator makes SNP reports.
    judgement.with(checks, ("simulated", false.into()))
}
