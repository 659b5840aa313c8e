//! `verify`: judges one raw piece of evidence offline, and says so in its exit code.
//!
//! The judges are `cocoon-verify`'s; this module reads the files they need. A file that cannot be read is a wrong
//! command line; what stands in a file is the judges' business, also when it is nonsense.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use cocoon_verify::{
    POLICY_BYTES_MAX, POLICY_SIGNATURE_BYTES_MAX, Policy, PolicyKey,
    judgement::{FailureClass, Judgement},
};

use super::{
    Exit,
    input::{now_s, read_bounded},
    output::{print_json, print_text},
};

mod evidence;
mod judge;
mod table;

/// Exit codes of `verify`, for its help.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0   verified
  2   the command line is wrong, or a file that it names cannot be read
  10  attributes, or values that the policy does not accept
  11  signature, certificate chain or format: the evidence is not the vendor's
  12  security version, expiry, revocation or missing collateral
With several faults: 2 before 11 before 12 before 10.";

#[derive(clap::Args)]
pub(crate) struct Verify {
    /// What the evidence is. It is never guessed from the bytes.
    #[arg(long, value_enum)]
    kind: Kind,
    /// A TDX quote, SNP report or NVIDIA report (raw or hexadecimal), or NVIDIA's JSON.
    #[arg(long, value_name = "FILE")]
    evidence: PathBuf,
    /// Certificates, PEM or DER: VCEK or VLEK with ASK or ASVK and ARK; NVIDIA's device chain. A TDX quote
    /// holds its own.
    #[arg(long, value_name = "FILE")]
    certs: Vec<PathBuf>,
    /// TDX: TCB info, QE identity and revocation lists, in dcap-qvl's JSON.
    #[arg(long, value_name = "FILE")]
    collateral: Option<PathBuf>,
    /// NVIDIA: reference integrity manifests of driver and VBIOS, XML.
    #[arg(long, value_name = "FILE")]
    rim: Vec<PathBuf>,
    /// SNP: revocation lists, PEM or DER.
    #[arg(long, value_name = "FILE")]
    crl: Vec<PathBuf>,
    /// NVIDIA: OCSP responses, DER.
    #[arg(long, value_name = "FILE")]
    ocsp: Vec<PathBuf>,
    /// What the report data must be (TDX, SNP: up to 64 bytes, zeros follow), or the nonce of the request (NVIDIA).
    #[arg(long, value_name = "HEX", value_parser = parse_nonce)]
    nonce: Option<Nonce>,
    /// Judge as of this time instead of now.
    #[arg(long, value_name = "UNIX_SECONDS")]
    at: Option<u64>,
    /// Trust this root certificate instead of the vendor's.
    #[arg(long, value_name = "PEM")]
    root: Option<PathBuf>,
    /// What to accept, as `predict` writes it; without it registers are listed, but not compared.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Accept the policy only if this key signed it, in FILE.sig beside it; may be given several times.
    #[arg(long, value_name = "HEX", requires = "policy")]
    policy_key: Vec<PolicyKey>,
    /// Print JSON (schema cocoon.verify/1) instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Intel TDX quote, version 4 or 5.
    Tdx,
    /// AMD SEV-SNP report.
    Snp,
    /// NVIDIA Hopper, Blackwell or NVSwitch.
    Nvidia,
}

#[derive(Debug, Clone)]
struct Nonce(Vec<u8>);

/// Everything that is judged or judged by, as it stood in the files.
struct Inputs {
    evidence: Vec<u8>,
    certs: Vec<Vec<u8>>,
    collateral: Option<Vec<u8>>,
    rims: Vec<Vec<u8>>,
    crls: Vec<Vec<u8>>,
    ocsp: Vec<Vec<u8>>,
    nonce: Option<Vec<u8>>,
    root: Option<Vec<u8>>,
    policy: Option<Policy>,
    now_s: u64,
}

/// Context of an error for which the command line is to blame.
#[derive(Debug, thiserror::Error)]
#[error("nothing was verified")]
pub(super) struct Usage;

pub(crate) fn run(arguments: &Verify) -> Result<Exit> {
    let inputs = inputs(arguments).context(Usage)?;
    let judgement = judge::judge(arguments.kind, &inputs).context(Usage)?;
    if arguments.json {
        print_json(&judgement)?;
    } else {
        print_text(&table::text(&judgement, inputs.policy.is_some()))?;
    }
    Ok(exit(&judgement))
}

fn exit(judgement: &Judgement) -> Exit {
    match judgement.failure() {
        None => Exit::Done,
        Some(FailureClass::Policy) => Exit::Differs,
        Some(FailureClass::Signature) => Exit::Signature,
        Some(FailureClass::Tcb) => Exit::Tcb,
    }
}

fn inputs(arguments: &Verify) -> Result<Inputs> {
    let all = |paths: &[PathBuf]| {
        let files = paths.iter().map(|path| evidence::read(path));
        files.collect::<Result<Vec<_>>>()
    };
    let one = |path: &Option<PathBuf>| path.as_deref().map(evidence::read).transpose();
    Ok(Inputs {
        evidence: evidence::from_hex(evidence::read(&arguments.evidence)?),
        certs: all(&arguments.certs).context("cannot use --certs")?,
        collateral: one(&arguments.collateral).context("cannot use --collateral")?,
        rims: all(&arguments.rim).context("cannot use --rim")?,
        crls: all(&arguments.crl).context("cannot use --crl")?,
        ocsp: all(&arguments.ocsp).context("cannot use --ocsp")?,
        nonce: arguments.nonce.clone().map(|nonce| nonce.0),
        root: one(&arguments.root).context("cannot use --root")?,
        policy: match &arguments.policy {
            Some(path) => Some(load_policy(path, &arguments.policy_key)?),
            None => None,
        },
        now_s: match arguments.at {
            Some(at_s) => at_s,
            None => now_s()?,
        },
    })
}

/// A policy that one of `keys` signed, or with no keys one's own file.
pub(super) fn load_policy(path: &Path, keys: &[PolicyKey]) -> Result<Policy> {
    let attempt = || format!("cannot use the policy {}", path.display());
    let text = read_text(path, POLICY_BYTES_MAX)?;
    if keys.is_empty() {
        return Policy::parse(&text).with_context(attempt);
    }
    let signatures = read_text(&signature_path(path), POLICY_SIGNATURE_BYTES_MAX)?;
    Policy::parse_signed(&text, &signatures, keys).with_context(attempt)
}

/// Where the signatures of a policy are: beside it, with `.sig` after the name.
pub(super) fn signature_path(policy: &Path) -> PathBuf {
    let mut path = policy.as_os_str().to_owned();
    path.push(".sig");
    path.into()
}

pub(super) fn read_text(path: &Path, bytes_max: usize) -> Result<String> {
    let bytes = read_bounded(path, bytes_max)?;
    String::from_utf8(bytes).with_context(|| format!("{} is not text", path.display()))
}

fn parse_nonce(text: &str) -> Result<Nonce, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    match hex::decode(digits) {
        Ok(bytes) if bytes.is_empty() || bytes.len() > 64 => Err("1 to 64 bytes are needed".to_owned()),
        Ok(bytes) => Ok(Nonce(bytes)),
        Err(error) => Err(format!("not hexadecimal: {error}")),
    }
}
