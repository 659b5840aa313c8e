//! Hands each kind of evidence to its judge.

use anyhow::{Context as _, Result};
use cocoon_verify::{
    RawNvidia, RawSnp, RawTdx, Root, judge_raw_nvidia, judge_raw_snp, judge_raw_tdx, judgement::Judgement,
    nvidia::NvidiaRoots, snp::SnpRoot,
};

use super::{Inputs, Kind};

pub(super) fn judge(kind: Kind, inputs: &Inputs) -> Result<Judgement> {
    match kind {
        Kind::Tdx => tdx(inputs),
        Kind::Snp => snp(inputs),
        Kind::Nvidia => nvidia(inputs),
    }
}

const NO_ROOT: &str = "--root is not a root certificate";

fn tdx(inputs: &Inputs) -> Result<Judgement> {
    let root = inputs.root.as_deref().map(|bytes| {
        let pem = std::str::from_utf8(bytes).context("not PEM: not text")?;
        Ok::<_, anyhow::Error>(Root::given(pem)?)
    });
    let root = root.transpose().context(NO_ROOT)?;
    Ok(judge_raw_tdx(&RawTdx {
        quote: &inputs.evidence,
        collateral: inputs.collateral.as_deref(),
        root: root.as_ref(),
        nonce: inputs.nonce.as_deref(),
        policy: inputs.policy.as_ref(),
        now_s: inputs.now_s,
    }))
}

fn snp(inputs: &Inputs) -> Result<Judgement> {
    let root = match &inputs.root {
        Some(bytes) => SnpRoot::from_file(bytes).context(NO_ROOT)?,
        None => SnpRoot::amd(),
    };
    let endorsements: Vec<_> = inputs
        .certs
        .iter()
        .chain(&inputs.crls)
        .map(Vec::as_slice)
        .collect();
    Ok(judge_raw_snp(&RawSnp {
        report: &inputs.evidence,
        endorsements: &endorsements,
        root: &root,
        nonce: inputs.nonce.as_deref(),
        policy: inputs.policy.as_ref(),
        now_s: inputs.now_s,
    }))
}

fn nvidia(inputs: &Inputs) -> Result<Judgement> {
    let roots = NvidiaRoots::pinned();
    let roots = match &inputs.root {
        Some(bytes) => roots.with_device_root(bytes).context(NO_ROOT)?,
        None => roots,
    };
    Ok(judge_raw_nvidia(&RawNvidia {
        evidence: &inputs.evidence,
        certificates: &inputs.certs,
        rims: &inputs.rims,
        ocsp: &inputs.ocsp,
        roots: &roots,
        nonce: inputs.nonce.as_deref(),
        policy: inputs.policy.as_ref(),
        now_s: inputs.now_s,
    }))
}
