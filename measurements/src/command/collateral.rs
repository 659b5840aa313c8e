//! `collateral fetch`: a TDX quote in, the collateral that `verify` needs for it out.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use cocoon_evidence::Digest32;
use cocoon_measurements::collateral::{
    FetchError, Fetched, Fetcher, INTEL_PCS_URL, INTEL_ROOT_CRL_URL, Origin, Service, ServiceUrl,
};
use cocoon_verify::{
    Root,
    judgement::FailureClass,
    tdx::{CollateralKey, Quote},
};
use serde::Serialize;

use super::{
    Exit,
    input::{now_s, read_evidence},
    output::{Table, print_json, print_text, replace_file},
    verify::read_text,
};

/// Exit codes of `collateral fetch`, for its help.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0   fetched, verified and written
  1   the collateral or the output could not be written
  2   the command line is wrong
  3   the quote is missing, unreadable or malformed
  11  what the service gives is not signed by Intel, or not collateral
  12  the service gives nothing, or something expired, revoked or of another platform";

/// Longer than a certificate.
const ROOT_BYTES_MAX: usize = 16 * 1024;

#[derive(clap::Subcommand)]
pub(crate) enum Collateral {
    /// Fetch what Intel publishes about a quote's platform, verify it and write it, for `verify --collateral`.
    #[command(after_help = EXIT_CODES)]
    Fetch(Fetch),
}

#[derive(clap::Args)]
pub(crate) struct Fetch {
    /// A TDX quote of the platform: raw, hexadecimal, in an evidence bundle, a guest's certificate or dstack's JSON.
    #[arg(long, value_name = "FILE")]
    quote: PathBuf,
    /// Where to write the collateral; an existing file is replaced.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Which API: Intel's, or that of an operator's caching service.
    #[arg(long, value_enum, default_value_t = Api::Pcs)]
    service: Api,
    /// The service; Intel's if not given. Plain http only on this machine, or to a PCCS.
    #[arg(long, value_name = "URL", required_if_eq("service", "pccs"))]
    url: Option<ServiceUrl>,
    /// With pcs: where the root CA's revocation list is; Intel's if not given. A PCCS has its own.
    #[arg(long, value_name = "URL")]
    root_crl_url: Option<ServiceUrl>,
    /// Keep collateral in this folder, and do not ask the service while it is valid.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Give up if the service takes longer, all requests together.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    limit_s: u64,
    /// Judge dates as of this time instead of now.
    #[arg(long, value_name = "UNIX_SECONDS")]
    at: Option<u64>,
    /// Trust this root certificate instead of Intel's.
    #[arg(long, value_name = "PEM")]
    root: Option<PathBuf>,
    /// Print JSON (schema cocoon.collateral/1) instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Api {
    /// Intel's Provisioning Certification Service, version 4.
    Pcs,
    /// Intel's Provisioning Certification Caching Service, version 4.
    Pccs,
}

const SCHEMA: &str = "cocoon.collateral/1";

#[derive(Serialize)]
struct Report {
    schema: &'static str,
    service: &'static str,
    url: String,
    fmspc: String,
    ca: &'static str,
    from_cache: bool,
    evaluation_number: u32,
    valid_from_s: u64,
    valid_until_s: u64,
    out: String,
    sha256: Digest32,
}

/// Context of an error for which the command line is to blame.
#[derive(Debug, thiserror::Error)]
#[error("nothing was fetched")]
pub(super) struct Usage;

pub(crate) fn run(command: &Collateral) -> Result<Exit> {
    let Collateral::Fetch(arguments) = command;
    let service = service(arguments).context(Usage)?;
    let root = root(arguments.root.as_deref()).context(Usage)?;
    let key = key(&arguments.quote)?;
    let now_s = match arguments.at {
        Some(at_s) => at_s,
        None => now_s()?,
    };
    let mut fetcher = Fetcher::new(service.clone(), root, Duration::from_secs(arguments.limit_s));
    if let Some(folder) = &arguments.cache {
        fetcher = fetcher.keep_in(folder);
    }
    let fetched = fetcher.collateral(&key, now_s)?;
    replace_file(&arguments.out, &fetched.json)?;
    let report = report(arguments, &service, &key, &fetched);
    if arguments.json {
        print_json(&report)?;
    } else {
        print_text(&text(&report, &fetched))?;
    }
    Ok(Exit::Done)
}

/// How a failed fetch ends the program.
pub(super) fn exit(error: &FetchError) -> Exit {
    match error.class() {
        Some(FailureClass::Signature) => Exit::Signature,
        Some(FailureClass::Tcb | FailureClass::Policy) => Exit::Tcb,
        None => Exit::Output,
    }
}

fn service(arguments: &Fetch) -> Result<Service> {
    let or_intels = |given: &Option<ServiceUrl>, intels: &str| match given {
        Some(url) => url.clone(),
        None => intels.parse().expect("Intel's address is one"),
    };
    let base = or_intels(&arguments.url, INTEL_PCS_URL);
    match arguments.service {
        Api::Pcs => {
            let root_crl = or_intels(&arguments.root_crl_url, INTEL_ROOT_CRL_URL);
            Service::pcs(base, root_crl).context("cannot use --url or --root-crl-url")
        }
        Api::Pccs => {
            anyhow::ensure!(
                arguments.root_crl_url.is_none(),
                "--root-crl-url is for --service pcs: a PCCS has the list itself"
            );
            Ok(Service::pccs(base))
        }
    }
}

fn root(path: Option<&Path>) -> Result<Root> {
    match path {
        None => Ok(Root::intel()),
        Some(path) => {
            let pem = read_text(path, ROOT_BYTES_MAX)?;
            Root::given(&pem).with_context(|| format!("cannot use the root {}", path.display()))
        }
    }
}

fn key(path: &Path) -> Result<CollateralKey> {
    let bytes = read_evidence(path)?;
    let attempt = || format!("{} does not say which collateral it needs", path.display());
    let quote = Quote::parse(&bytes).with_context(attempt)?;
    CollateralKey::of(&quote).with_context(attempt)
}

fn report(arguments: &Fetch, service: &Service, key: &CollateralKey, fetched: &Fetched) -> Report {
    let validity = fetched.verified.validity();
    Report {
        schema: SCHEMA,
        service: service.kind().name(),
        url: service.url().to_string(),
        fmspc: hex::encode_upper(key.fmspc),
        ca: key.ca.name(),
        from_cache: fetched.origin == Origin::Cache,
        evaluation_number: fetched.verified.evaluation_number(),
        valid_from_s: validity.from_s(),
        valid_until_s: validity.until_s(),
        out: arguments.out.display().to_string(),
        sha256: Digest32::of(&fetched.json),
    }
}

fn text(report: &Report, fetched: &Fetched) -> String {
    let mut table = Table::default();
    table.row(["fmspc", &report.fmspc]);
    table.row(["ca", report.ca]);
    let origin = if report.from_cache { " (kept)" } else { "" };
    table.row(["from", &format!("{} {}{origin}", report.service, report.url)]);
    table.row(["tcb evaluation", &report.evaluation_number.to_string()]);
    if let Some(period) = fetched.verified.validity().first_to_end() {
        table.row(["ends first", &period.to_string()]);
    }
    table.row(["written", &report.out]);
    table.row(["sha256", &report.sha256.to_string()]);
    table.text("")
}
