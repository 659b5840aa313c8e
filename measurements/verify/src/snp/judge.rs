//! The order of the checks.

use std::fmt::Display;

use p384::ecdsa::signature::Verifier;
use serde_json::{Map, json};

use super::{
    certificate::p384_key,
    chain::{Chain, CrlVerdict},
    checklist::Checklist,
    claims::claims,
    endorsements::Endorsements,
    guest_policy,
    product::{SnpProduct, SnpTcb},
    report::{SigningKey, SnpReport},
    root::{SnpRoot, TrustedKey},
    terms::SnpTerms,
    values,
};
use crate::{
    date::date_text as date,
    judgement::{
        FailureClass::{Policy, Signature, Tcb},
        Judgement,
    },
};

/// A migration agent's report ID where no agent is bound to the guest.
const NO_MIGRATION_AGENT: [u8; 32] = [0xff; 32];

/// A report and what is needed to judge it.
#[derive(Debug, Clone, Copy)]
pub struct SnpInputs<'a> {
    /// The report, 1184 bytes.
    pub report: &'a [u8],
    /// Files with certificates and revocation lists, PEM or DER, in any order: the VCEK or VLEK; ASK or ASVK, and
    /// ARK. AMD's ASKs and ARKs may be left out, an ASVK not.
    pub endorsements: &'a [&'a [u8]],
    /// Whom to trust.
    pub root: &'a SnpRoot,
    /// What a policy expects of the guest; without it only the platform is judged.
    pub terms: Option<&'a SnpTerms>,
    /// What the report data must be: up to 64 bytes, the rest zero.
    pub nonce: Option<&'a [u8]>,
    /// Seconds since 1970.
    pub now_s: u64,
}

/// Judges a report. Every check is made that can be made, also after one that failed.
pub fn judge_snp(inputs: &SnpInputs) -> Judgement {
    let mut rows = Checklist::default();
    let report = rows.outcome(
        ("report.format", Signature),
        "1184 bytes as AMD defines them",
        SnpReport::parse(inputs.report),
    );
    let endorsements = endorsements(&mut rows, inputs);
    let signing_key = report.as_ref().map(SnpReport::signing_key);
    let chain = chain(&mut rows, inputs, &endorsements, signing_key);
    if let Some(chain) = &chain {
        judge_chain(&mut rows, inputs, &endorsements, chain);
    }
    let mut map = Map::new();
    if let Some(report) = &report {
        let product = product(report, chain.as_ref());
        match &chain {
            Some(chain) => judge_signer(&mut rows, report, chain, inputs.terms.is_some()),
            None => rows.skip(
                ("report.signature", Signature),
                "by the endorsement key",
                "not judged",
                "there is no chain to judge it by",
            ),
        }
        judge_tcb(&mut rows, report, product);
        judge_guest(&mut rows, report, inputs.terms.is_some());
        values::judge_values(&mut rows, report, product, inputs.terms, inputs.nonce);
        map = claims(report, product);
    }
    if let Some(chain) = &chain {
        map.insert("certificate_product".to_owned(), json!(chain.facts.product_name));
        map.insert("cloud_provider".to_owned(), json!(chain.facts.provider));
    }
    rows.into_judgement(map)
}

fn endorsements(rows: &mut Checklist, inputs: &SnpInputs) -> Endorsements {
    let (endorsements, errors) = Endorsements::read(inputs.endorsements);
    let outcome = match errors.first() {
        None => Ok(()),
        Some(_) => Err(list(&errors, "; ")),
    };
    rows.outcome(
        ("certificates.format", Signature),
        "certificates and revocation lists in DER or PEM",
        outcome,
    );
    endorsements
}

fn chain(
    rows: &mut Checklist,
    inputs: &SnpInputs,
    endorsements: &Endorsements,
    signing_key: Option<SigningKey>,
) -> Option<Chain> {
    let chain = Chain::assemble(endorsements, signing_key, inputs.root);
    // Something missing is missing collateral; something wrong is a wrong chain.
    let class = match &chain {
        Err(error) if error.is_missing() => Tcb,
        _ => Signature,
    };
    rows.outcome(
        ("chain.complete", class),
        "endorsement key, intermediate and root",
        chain,
    )
}

fn judge_chain(rows: &mut Checklist, inputs: &SnpInputs, endorsements: &Endorsements, chain: &Chain) {
    let trusted = inputs.root.trusts(&chain.root);
    rows.judge(
        ("chain.root", Signature),
        trusted.is_some(),
        inputs.root.describe(),
        chain.root.common_name(),
        "the chain ends in a key that is not trusted",
    );
    rows.outcome(
        ("chain.signatures", Signature),
        "root, intermediate and endorsement key, each signed by the one before",
        chain.verify_signatures(),
    );
    let forged = chain.forged_extras(endorsements, inputs.root);
    rows.judge(
        ("certificates.unused", Signature),
        forged.is_empty(),
        "signed by an authority at hand",
        if forged.is_empty() {
            "none forged".to_owned()
        } else {
            list(&forged, ", ")
        },
        "a certificate that the chain does not need was changed, or its issuer is missing",
    );
    judge_names(rows, chain, trusted);
    let (from, until) = chain.validity_s();
    rows.holds_to(until);
    let outdated = chain.outdated(inputs.now_s);
    rows.judge(
        ("chain.validity", Tcb),
        outdated.is_empty(),
        format!("{} to {}", date(from), date(until)),
        date(inputs.now_s),
        format!("not valid at that time: {}", outdated.join(", ")),
    );
    judge_revocation(rows, inputs, endorsements, chain);
}

fn judge_names(rows: &mut Checklist, chain: &Chain, trusted: Option<TrustedKey>) {
    let what = ("chain.product", Signature);
    let Some(trusted) = trusted else {
        return rows.skip(
            what,
            "the root's product",
            &chain.facts.product_name,
            "the root is not trusted",
        );
    };
    let product_agrees = match trusted {
        TrustedKey::Amd(product) => chain.facts.product == product,
        TrustedKey::Given => true,
    };
    let issuer = chain.issuer_name();
    let expected_issuer = chain.expected_issuer(trusted).unwrap_or_else(|| issuer.clone());
    rows.judge(
        what,
        product_agrees && issuer == expected_issuer,
        format!("issued by {expected_issuer}"),
        format!("{}, issued by {issuer}", chain.facts.product_name),
        "product, kind of key and issuer do not belong together",
    );
}

fn judge_revocation(rows: &mut Checklist, inputs: &SnpInputs, endorsements: &Endorsements, chain: &Chain) {
    let what = ("chain.revocation", Tcb);
    let expected = "not on a current list of the root";
    let crls = chain.crls(endorsements);
    if endorsements.crls.is_empty() {
        return rows.skip(what, expected, "no list", "no revocation list was handed in");
    }
    if crls.is_empty() {
        let detail = format!("no list was issued by {}", chain.root.common_name());
        return rows.judge(what, false, expected, "another root's list", detail);
    }
    for (_, until) in crls.iter().map(|crl| crl.validity_s()) {
        rows.holds_to(until.unwrap_or_default());
    }
    let verdicts = crls.iter().map(|crl| chain.check_crl(crl, inputs.now_s));
    let found = verdicts.filter_map(Result::err).collect::<Vec<_>>();
    // A forged list is a failure of what was handed in, like an outdated one: there is no list to rely on.
    let texts = found.iter().map(describe_crl).collect::<Vec<_>>();
    let actual = match found
        .iter()
        .find(|verdict| matches!(verdict, CrlVerdict::Revoked(_)))
    {
        Some(_) => "revoked",
        None if found.is_empty() => expected,
        None => "no list to rely on",
    };
    rows.judge(what, found.is_empty(), expected, actual, texts.join("; "));
}

fn describe_crl(verdict: &CrlVerdict) -> String {
    match verdict {
        CrlVerdict::NotTheRoots(error) => error.clone(),
        CrlVerdict::Endless => "the list does not say when the next one comes".to_owned(),
        CrlVerdict::Outdated { from, until } => {
            format!("the list is valid from {} to {}", date(*from), date(*until))
        }
        CrlVerdict::Revoked(name) => format!("the root revoked the {name}"),
    }
}

/// The product, from the report where it says so, or from the certificate.
fn product(report: &SnpReport, chain: Option<&Chain>) -> Option<SnpProduct> {
    match report.cpuid() {
        Some([family, model, _]) => SnpProduct::from_cpuid(family, model),
        None => chain.map(|chain| chain.facts.product),
    }
}

/// The endorsement key against the report that it is said to have signed.
///
/// With terms there is no row for what such evidence cannot say: terms state the accepted kinds of keys, and the
/// certificate names the product that their floors are for.
fn judge_signer(rows: &mut Checklist, report: &SnpReport, chain: &Chain, has_terms: bool) {
    let facts = &chain.facts;
    rows.judge(
        ("report.signing-key", Signature),
        report.signing_key() == facts.kind,
        report.signing_key().name(),
        facts.kind.name(),
        "the report says that another kind of key signed it",
    );
    rows.outcome(
        ("report.signature", Signature),
        "by the endorsement key",
        verify_report(report, chain),
    );
    match report.cpuid() {
        Some([family, model, _]) => {
            let product = SnpProduct::from_cpuid(family, model);
            rows.judge(
                ("report.product", Signature),
                product == Some(facts.product),
                facts.product,
                product.map_or_else(
                    || format!("family {family:#x} model {model:#x}"),
                    |product| product.to_string(),
                ),
                "the certificate is another product's",
            );
        }
        None if has_terms => {}
        None => rows.skip(
            ("report.product", Signature),
            facts.product,
            "not stated",
            "a report of version 2 does not name its product; the certificate does",
        ),
    }
    if facts.chip_id.is_some() || !has_terms {
        judge_chip(rows, report, chain);
    }
    let reported = SnpTcb::decode(report.reported_tcb(), facts.product);
    rows.judge(
        ("certificate.tcb", Tcb),
        reported == facts.tcb,
        reported,
        facts.tcb,
        "the certificate is for another security version than the report's REPORTED_TCB",
    );
}

fn verify_report(report: &SnpReport, chain: &Chain) -> Result<(), String> {
    let key = p384_key(&chain.vek).map_err(|error| error.to_string())?;
    let (r, s) = report.scalars();
    let signature = sev::certs::snp::ecdsa::Signature::new(r, s);
    let signature = p384::ecdsa::Signature::try_from(&signature).map_err(|error| error.to_string())?;
    // SHA-384 over everything before the signature.
    key.verify(report.signed(), &signature)
        .map_err(|_| "the endorsement key did not sign these bytes".to_owned())
}

fn judge_chip(rows: &mut Checklist, report: &SnpReport, chain: &Chain) {
    let what = ("certificate.chip-id", Signature);
    let chip_id = hex::encode(report.chip_id());
    let Some(certified) = &chain.facts.chip_id else {
        return rows.skip(
            what,
            "none",
            chip_id,
            "a VLEK is a cloud provider's, not a chip's",
        );
    };
    let mut expected = [0; 64];
    expected[..certified.len().min(64)].copy_from_slice(&certified[..certified.len().min(64)]);
    let masked = report.chip_id() == [0; 64];
    rows.judge(
        what,
        report.chip_id() == expected && !masked,
        hex::encode(expected),
        chip_id,
        match masked {
            true => "the host masks the chip's identifier",
            false => "the certificate is another chip's",
        },
    );
}

fn judge_tcb(rows: &mut Checklist, report: &SnpReport, product: Option<SnpProduct>) {
    let Some(product) = product else {
        let why = "the product is not known";
        return rows.skip(
            ("tcb.order", Tcb),
            "REPORTED and COMMITTED up to CURRENT",
            "not judged",
            why,
        );
    };
    rows.outcome(
        ("report.tcb-format", Signature),
        "reserved bytes zero",
        report.check_tcbs(product),
    );
    let [current, reported, committed] = [
        report.current_tcb(),
        report.reported_tcb(),
        report.committed_tcb(),
    ]
    .map(|raw| SnpTcb::decode(raw, product));
    // The host chooses REPORTED up to what is committed, and commits up to what runs (56860, chapter "TCB").
    rows.judge(
        ("tcb.order", Tcb),
        current.at_least(&reported) && current.at_least(&committed),
        "REPORTED and COMMITTED up to CURRENT",
        format!("reported {reported}; committed {committed}; current {current}"),
        "the platform reports a newer version than it runs",
    );
}

/// What the strict defaults refuse without being told.
fn judge_guest(rows: &mut Checklist, report: &SnpReport, has_terms: bool) {
    let policy = report.policy();
    let described = guest_policy::describe(policy);
    rows.judge(
        ("guest.policy-bits", Policy),
        guest_policy::is_known(policy),
        "bit 17 set, bits 26 to 63 clear",
        &described,
        "bits that AMD reserves have another value",
    );
    rows.judge(
        ("guest.debug", Policy),
        !guest_policy::allows_debug(policy),
        "not allowed",
        allowed(guest_policy::allows_debug(policy)),
        "the host may read and change the guest's memory",
    );
    let bound = report.report_id_ma() != NO_MIGRATION_AGENT;
    rows.judge(
        ("guest.migration-agent", Policy),
        !guest_policy::allows_migration(policy) && !bound,
        "not allowed, none bound",
        match bound {
            true => "bound",
            false => allowed(guest_policy::allows_migration(policy)),
        },
        "a migration agent may move the guest to another machine",
    );
    rows.judge(
        ("platform.info-bits", Policy),
        guest_policy::platform_is_known(report.platform_info()),
        "bit 6 and bits 8 to 63 clear",
        guest_policy::describe_platform(report.platform_info()),
        "bits that AMD reserves are set",
    );
    if !has_terms {
        judge_level(rows, report.vmpl());
    }
}

/// AMD 56860, ATTESTATION_REPORT.VMPL: 0 to 3, or all ones if the host asked for the report.
fn judge_level(rows: &mut Checklist, vmpl: u32) {
    let what = ("guest.vmpl", Policy);
    match vmpl {
        1..=3 => rows.skip(
            what,
            0,
            vmpl,
            "less privileged software than the guest's firmware asked for this report, as a kernel under an SVSM \
             does; no policy says whether that is meant",
        ),
        _ => rows.judge(
            what,
            vmpl == 0,
            0,
            vmpl,
            "not the guest but the host asked for this report, or nobody can have",
        ),
    }
}

fn allowed(yes: bool) -> &'static str {
    match yes {
        true => "allowed",
        false => "not allowed",
    }
}

fn list(items: &[impl Display], separator: &str) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(separator)
}
