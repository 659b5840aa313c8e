//! What a report states against what a policy expects.

use std::fmt::Display;

use cocoon_evidence::{Digest32, Digest48};

use super::{
    checklist::Checklist,
    guest_policy,
    product::{SnpProduct, SnpTcb},
    report::{SigningKey, SnpReport},
    terms::{SnpOwnerId, SnpSigningKeyTerm, SnpTerms},
};
use crate::{
    Bits64,
    judgement::FailureClass::{Policy, Tcb},
};

const NO_TERMS: &str = "no policy states what is expected";

/// REPORT_DATA by the nonce; everything else by the terms, or listed as not judged.
pub(super) fn judge_values(
    rows: &mut Checklist,
    report: &SnpReport,
    product: Option<SnpProduct>,
    terms: Option<&SnpTerms>,
    nonce: Option<&[u8]>,
) {
    judge_report_data(rows, report, nonce);
    let Some(terms) = terms else {
        return list_values(rows, report, product);
    };
    if let Err(error) = terms.check() {
        rows.judge(
            ("policy.terms", Policy),
            false,
            "terms that can be met",
            "refused",
            error,
        );
    }
    one_of(
        rows,
        "measurement",
        &terms.measurement,
        &Digest48(report.measurement()),
    );
    one_of(rows, "host-data", &terms.host_data, &Digest32(report.host_data()));
    one_of(
        rows,
        "guest.policy",
        &terms.guest_policy,
        &Bits64(report.policy()),
    );
    one_of(rows, "guest.vmpl", &terms.vmpl, &report.vmpl());
    one_of(
        rows,
        "family-id",
        &terms.family_id,
        &SnpOwnerId(report.family_id()),
    );
    one_of(rows, "image-id", &terms.image_id, &SnpOwnerId(report.image_id()));
    rows.judge(
        ("guest.svn", Policy),
        report.guest_svn() >= terms.guest_svn_min,
        format!("at least {}", terms.guest_svn_min),
        report.guest_svn(),
        "the guest is older than the policy accepts",
    );
    one_of(
        rows,
        "id-key-digest",
        &terms.id_key_digest,
        &Digest48(report.id_key_digest()),
    );
    let author = Digest48(report.author_key_digest());
    one_of(rows, "author-key-digest", &terms.author_key_digest, &author);
    let signing_key = match report.signing_key() {
        SigningKey::Vcek => SnpSigningKeyTerm::Vcek,
        SigningKey::Vlek => SnpSigningKeyTerm::Vlek,
    };
    rows.judge(
        ("report.signing-key-kind", Policy),
        terms.signing_key.contains(&signing_key),
        joined(terms.signing_key.iter().map(|key| key.name())),
        signing_key.name(),
        "the policy does not accept reports of this kind of key",
    );
    judge_platform_info(rows, report, terms);
    judge_floor(rows, report, product, terms);
}

fn judge_report_data(rows: &mut Checklist, report: &SnpReport, nonce: Option<&[u8]>) {
    let what = ("report-data", Policy);
    let actual = hex::encode(report.report_data());
    let Some(nonce) = nonce else {
        return rows.skip(what, "not stated", actual, "no nonce states what is expected");
    };
    let mut expected = [0; 64];
    let Some(start) = expected.get_mut(..nonce.len()) else {
        let found = format!("a nonce of {} bytes", nonce.len());
        return rows.judge(what, false, "at most 64 bytes", found, "report data has 64 bytes");
    };
    start.copy_from_slice(nonce);
    rows.judge(
        what,
        report.report_data() == expected,
        hex::encode(expected),
        actual,
        "the report was made for something else, or is a replay",
    );
}

fn judge_platform_info(rows: &mut Checklist, report: &SnpReport, terms: &SnpTerms) {
    let info = report.platform_info();
    let (required, allowed) = (terms.platform_info.required.0, terms.platform_info.allowed.0);
    rows.judge(
        ("platform.info", Policy),
        info & required == required && info & !allowed == 0,
        format!(
            "all of {}, none outside {}",
            terms.platform_info.required, terms.platform_info.allowed
        ),
        guest_policy::describe_platform(info),
        "the platform is set up otherwise than the policy accepts",
    );
}

/// All four versions have to reach the floor: the host may fall back to the committed one at any time, and the
/// launch may have happened under an older one.
fn judge_floor(rows: &mut Checklist, report: &SnpReport, product: Option<SnpProduct>, terms: &SnpTerms) {
    let what = ("tcb.minimum", Tcb);
    let Some(product) = product else {
        return rows.judge(
            what,
            false,
            "a known product",
            "unknown",
            "the product is not known",
        );
    };
    let Some(floor) = terms.tcb_min.get(&product) else {
        let expected = joined(terms.tcb_min.keys());
        return rows.judge(
            what,
            false,
            expected,
            product,
            "the policy does not accept this product",
        );
    };
    let versions = named_tcbs(report, product);
    let low = versions.iter().filter(|(_, tcb)| !tcb.at_least(floor));
    let low = low.map(|(name, _)| *name).collect::<Vec<_>>();
    rows.judge(
        what,
        low.is_empty(),
        format!("at least {floor}"),
        joined(versions.iter().map(|(name, tcb)| format!("{name} {tcb}"))),
        format!("older than the policy accepts: {}", low.join(", ")),
    );
}

fn named_tcbs(report: &SnpReport, product: SnpProduct) -> [(&'static str, SnpTcb); 4] {
    [
        ("reported", report.reported_tcb()),
        ("committed", report.committed_tcb()),
        ("current", report.current_tcb()),
        ("launch", report.launch_tcb()),
    ]
    .map(|(name, raw)| (name, SnpTcb::decode(raw, product)))
}

/// Without a policy: what is stated, none of it judged.
fn list_values(rows: &mut Checklist, report: &SnpReport, product: Option<SnpProduct>) {
    let mut list = |id: &str, class, actual: String| rows.skip((id, class), "not stated", actual, NO_TERMS);
    list("measurement", Policy, hex::encode(report.measurement()));
    list("host-data", Policy, hex::encode(report.host_data()));
    list("guest.policy", Policy, guest_policy::describe(report.policy()));
    list("family-id", Policy, hex::encode(report.family_id()));
    list("image-id", Policy, hex::encode(report.image_id()));
    list("guest.svn", Policy, report.guest_svn().to_string());
    list("id-key-digest", Policy, hex::encode(report.id_key_digest()));
    list(
        "author-key-digest",
        Policy,
        hex::encode(report.author_key_digest()),
    );
    list(
        "report.signing-key-kind",
        Policy,
        report.signing_key().name().to_lowercase(),
    );
    list(
        "platform.info",
        Policy,
        guest_policy::describe_platform(report.platform_info()),
    );
    let tcbs =
        product.map(|product| joined(named_tcbs(report, product).map(|(name, tcb)| format!("{name} {tcb}"))));
    list(
        "tcb.minimum",
        Tcb,
        tcbs.unwrap_or_else(|| hex::encode(report.reported_tcb())),
    );
}

fn one_of<T: Display + PartialEq>(rows: &mut Checklist, id: &str, accepted: &[T], actual: &T) {
    rows.judge(
        (id, Policy),
        accepted.contains(actual),
        joined(accepted),
        actual,
        "the policy does not accept this value",
    );
}

fn joined(items: impl IntoIterator<Item = impl Display>) -> String {
    let items = items.into_iter().map(|item| item.to_string());
    let text = items.collect::<Vec<_>>().join(", ");
    if text.is_empty() {
        "nothing".to_owned()
    } else {
        text
    }
}
