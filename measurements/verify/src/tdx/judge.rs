//! One quote, judged offline: every check as a row, also those after one that failed.

use serde_json::Map;

use super::{
    certificate::Certificate,
    chain::PckChain,
    claims,
    collateral::{Collateral, CollateralError, VerifiedCollateral},
    pck::PckExtension,
    quote::Quote,
    report::{TdField, TdReport},
    rows::{Failure, Rows},
    tcb::{TcbError, TcbVerdict},
    td,
    terms::TdxTerms,
    validity::Validity,
    verify::{self, VerifyError},
};
use crate::{
    date::date_text,
    judgement::{FailureClass, Judgement},
    root::Root,
};

/// The fields that have a row of their own, with the names of the rows.
const REGISTERS: [(TdField, &str); 9] = [
    (TdField::MrTd, "register.mrtd"),
    (TdField::Rtmr0, "register.rtmr0"),
    (TdField::Rtmr1, "register.rtmr1"),
    (TdField::Rtmr2, "register.rtmr2"),
    (TdField::Rtmr3, "register.rtmr3"),
    (TdField::MrConfigId, "register.mr_config_id"),
    (TdField::MrOwner, "register.mr_owner"),
    (TdField::MrOwnerConfig, "register.mr_owner_config"),
    (TdField::ReportData, "register.report_data"),
];

/// Why rows cannot be judged.
const UNREAD: &str = "the quote cannot be read";
const UNVERIFIED: &str = "the collateral or the PCK certificate is not usable";

/// Judges a raw TDX quote (version 4 or 5) at `now_s`, seconds since 1970.
///
/// `collateral` is the JSON of dcap-qvl's `QuoteCollateralV3`; without it the quote fails. What `terms` do not state is
/// held against strict defaults, or listed as [`Status::Skip`](crate::judgement::Status::Skip) if there is none.
pub fn judge_tdx(
    evidence: &[u8],
    collateral: Option<&[u8]>,
    root: &Root,
    terms: &TdxTerms,
    now_s: u64,
) -> Judgement {
    let mut rows = Rows::default();
    let mut claimed = Map::new();
    let quote = judge_format(&mut rows, evidence);
    let quote = quote.as_ref();
    let platform = judge_pck(&mut rows, quote, root, now_s);
    let platform = platform.as_ref();
    judge_signatures(&mut rows, quote, platform);
    let collateral = judge_collateral(&mut rows, collateral, root, now_s);
    let collateral = collateral.as_ref();
    judge_revocation(&mut rows, collateral, platform);
    let tcb = judge_tcb(&mut rows, quote, collateral, platform);
    judge_terms(&mut rows, collateral, tcb.as_ref(), terms, now_s);
    let report = quote.and_then(Quote::td_report);
    td::judge(&mut rows, report.as_ref(), terms);
    judge_fields(&mut rows, report.as_ref(), terms);

    if let Some(quote) = quote {
        claims::quote(&mut claimed, quote);
    }
    if let Some(extension) = platform.and_then(|platform| platform.extension.as_ref()) {
        claims::platform(&mut claimed, extension);
    }
    if let Some(collateral) = collateral {
        claims::collateral(&mut claimed, collateral);
    }
    if let Some(tcb) = &tcb {
        claims::tcb(&mut claimed, tcb);
    }
    Judgement::new(rows.into_checks(), claimed)
}

fn judge_format<'a>(rows: &mut Rows, evidence: &'a [u8]) -> Option<Quote<'a>> {
    let quote = Quote::parse(evidence);
    let (id, expected) = (
        "quote.format",
        "a quote of version 4 or 5, every byte accounted for",
    );
    match &quote {
        Ok(quote) => {
            let mut text = format!("version {}, {} bytes", quote.version(), evidence.len());
            if quote.padding_bytes() > 0 {
                let padding = quote.padding_bytes();
                text += &format!(", the last {padding} of them the quoting service's zeros");
            }
            rows.pass(id, FailureClass::Signature, expected, text);
        }
        Err(error) => rows.fail(id, expected, Failure::new(FailureClass::Signature, error)),
    }
    match &quote {
        Ok(quote) => rows.judge(
            "quote.kind",
            FailureClass::Signature,
            "a TD report",
            quote.kind().name(),
            quote.td_report().is_some(),
        ),
        Err(_) => rows.skip("quote.kind", FailureClass::Signature, "a TD report", UNREAD),
    }
    quote.ok()
}

/// The PCK chain of the quote; whether it is trusted, the rows say.
struct Platform {
    chain: PckChain,
    extension: Option<PckExtension>,
}

fn judge_pck(rows: &mut Rows, quote: Option<&Quote<'_>>, root: &Root, now_s: u64) -> Option<Platform> {
    let chain = quote.map(|quote| PckChain::parse(quote.pck_chain(), &[]));
    let format = chain.as_ref().map(|chain| match chain {
        Ok(chain) => Ok(format!("\"{}\"", chain.leaf.name())),
        Err(error) => Err(Failure::new(FailureClass::Signature, error)),
    });
    let expected = "PCK certificate, PCK CA and root, exactly encoded";
    rows.result("pck.format", FailureClass::Signature, expected, format, UNREAD);
    let chain = chain.and_then(Result::ok);

    let trusted = chain.as_ref().map(|chain| match check_chain(chain, root) {
        Ok(()) => Ok(format!("signed by \"{}\", and that by the root", chain.ca.name())),
        Err(error) => Err(Failure::from(&error)),
    });
    rows.result(
        "pck.chain",
        FailureClass::Signature,
        &root.label(),
        trusted,
        UNREAD,
    );

    let validity = chain.as_ref().map(|chain| {
        let mut validity = Validity::default();
        validity.add_certificate("the root CA certificate", &chain.root);
        validity.add_certificate("the PCK CA certificate", &chain.ca);
        validity.add_certificate("the PCK certificate", &chain.leaf);
        validity
    });
    judge_validity(rows, "pck.validity", validity.as_ref(), now_s);

    let extension = chain.as_ref().map(|chain| verify::extension(&chain.leaf));
    let platform = extension.as_ref().map(|extension| match extension {
        Ok(pck) => Ok(format!("FMSPC {}", hex::encode_upper(pck.fmspc))),
        Err(error) => Err(Failure::from(error)),
    });
    let expected = "the platform's FMSPC, PCE-ID and security versions";
    rows.result(
        "pck.platform",
        FailureClass::Signature,
        expected,
        platform,
        UNREAD,
    );
    Some(Platform {
        chain: chain?,
        extension: extension.and_then(Result::ok),
    })
}

fn check_chain(chain: &PckChain, root: &Root) -> Result<(), VerifyError> {
    let root = Certificate::parse(root.der()).map_err(|error| VerifyError::Untrusted(error.to_string()))?;
    verify::check_leaf(chain, &root)?;
    verify::check_ca(chain, &root)
}

fn judge_signatures(rows: &mut Rows, quote: Option<&Quote<'_>>, platform: Option<&Platform>) {
    let judged = |checked: Result<(), VerifyError>, text: &str| match checked {
        Ok(()) => Ok(text.to_owned()),
        Err(error) => Err(Failure::from(&error)),
    };
    let by_pck = quote.zip(platform).map(|(quote, platform)| {
        judged(
            verify::check_qe_report(quote, platform.chain.leaf.key()),
            "signed",
        )
    });
    let expected = "signed by the PCK";
    rows.result(
        "qe-report.signature",
        FailureClass::Signature,
        expected,
        by_pck,
        UNREAD,
    );
    let binding = quote.map(|quote| judged(verify::check_qe_binding(quote), "bound"));
    let expected = "binds the attestation key and the QE authentication data";
    rows.result(
        "qe-report.binding",
        FailureClass::Signature,
        expected,
        binding,
        UNREAD,
    );
    let signature = quote.map(|quote| judged(verify::check_quote(quote), "signed"));
    let expected = "signed by the attestation key";
    rows.result(
        "quote.signature",
        FailureClass::Signature,
        expected,
        signature,
        UNREAD,
    );
}

fn judge_collateral(
    rows: &mut Rows,
    bytes: Option<&[u8]>,
    root: &Root,
    now_s: u64,
) -> Option<VerifiedCollateral> {
    let (id, expected) = (
        "collateral.format",
        "TCB info, QE identity and revocation lists, in JSON",
    );
    let examined = match bytes.map(Collateral::parse) {
        None => {
            let missing = "missing: without it nothing is known about the platform's security version";
            rows.fail(id, expected, Failure::new(FailureClass::Tcb, missing));
            None
        }
        Some(Err(error)) => {
            rows.fail(id, expected, Failure::new(FailureClass::Signature, error));
            None
        }
        Some(Ok(collateral)) => {
            let text = format!("{} bytes", bytes.map_or(0, <[u8]>::len));
            rows.pass(id, FailureClass::Signature, expected, text);
            Some(collateral.examine(root))
        }
    };
    let parts = examined.as_ref().map(|examined| match examined {
        Ok(examined) => [
            examined
                .tcb_info
                .as_ref()
                .map(|info| info.id.clone())
                .map_err(Clone::clone),
            examined
                .qe_identity
                .as_ref()
                .map(|identity| identity.id.clone())
                .map_err(Clone::clone),
            examined
                .root_crl
                .as_ref()
                .map(|list| format!("number {}", list.number))
                .map_err(Clone::clone),
            examined
                .pck_crl
                .as_ref()
                .map(|list| format!("number {}", list.number))
                .map_err(Clone::clone),
        ],
        Err(error) => std::array::from_fn(|_| Err(error.clone())),
    });
    let ids = [
        "tcb-info.signature",
        "qe-identity.signature",
        "root-crl.signature",
        "pck-crl.signature",
    ];
    let results: [Option<Result<String, CollateralError>>; 4] =
        parts.map_or([const { None }; 4], |parts| parts.map(Some));
    for (id, result) in ids.into_iter().zip(results) {
        let result = result.map(|result| result.map_err(|error| Failure::new(error.class(), error)));
        let expected = "signed by somebody whom the root trusts";
        rows.result(
            id,
            FailureClass::Signature,
            expected,
            result,
            "there is no usable collateral",
        );
    }
    let verified = examined.and_then(|examined| examined.ok()?.into_verified().ok());
    let validity = verified.as_ref().map(VerifiedCollateral::validity);
    judge_validity(rows, "collateral.validity", validity, now_s);
    verified
}

fn judge_validity(rows: &mut Rows, id: &str, validity: Option<&Validity>, now_s: u64) {
    let expected = validity.map_or_else(
        || "within the validity of every part".to_owned(),
        |validity| {
            format!(
                "{} to {}",
                date_text(validity.from_s()),
                date_text(validity.until_s())
            )
        },
    );
    let result = validity.map(|validity| match validity.check(now_s) {
        Ok(()) => Ok(date_text(now_s)),
        Err(error) => Err(Failure::new(FailureClass::Tcb, error)),
    });
    rows.result(id, FailureClass::Tcb, &expected, result, UNVERIFIED);
}

fn judge_revocation(rows: &mut Rows, collateral: Option<&VerifiedCollateral>, platform: Option<&Platform>) {
    let result = collateral.zip(platform).map(|(collateral, platform)| {
        match collateral.check_revocation(&platform.chain) {
            Ok(()) => Ok("not revoked".to_owned()),
            Err(error) => Err(Failure::from(&error)),
        }
    });
    let expected = "not on a revocation list of its CA";
    rows.result("pck.revocation", FailureClass::Tcb, expected, result, UNVERIFIED);
}

fn judge_tcb(
    rows: &mut Rows,
    quote: Option<&Quote<'_>>,
    collateral: Option<&VerifiedCollateral>,
    platform: Option<&Platform>,
) -> Option<TcbVerdict> {
    let extension = platform.and_then(|platform| platform.extension.as_ref());
    let appraised = quote.zip(collateral).zip(extension);
    let appraised: Option<Result<TcbVerdict, TcbError>> =
        appraised.map(|((quote, collateral), extension)| collateral.appraise(quote, extension));
    let result = appraised.as_ref().map(|appraised| match appraised {
        Ok(tcb) => {
            let mut text = format!(
                "platform {}, quoting enclave {}",
                tcb.platform.status, tcb.qe.status
            );
            if let Some(current) = &tcb.current {
                text += &format!(", platform now {}", current.status);
            }
            Ok(text)
        }
        Err(error) => Err(Failure::new(error.class(), error)),
    });
    let expected = "Intel's TDX module and quoting enclave, on a level that Intel lists";
    rows.result("tcb.level", FailureClass::Tcb, expected, result, UNVERIFIED);
    appraised?.ok()
}

fn judge_terms(
    rows: &mut Rows,
    collateral: Option<&VerifiedCollateral>,
    tcb: Option<&TcbVerdict>,
    terms: &TdxTerms,
    now_s: u64,
) {
    let accepted: Vec<_> = terms.tcb_accepted.iter().map(|status| status.name()).collect();
    let result = tcb.map(|tcb| {
        let (accepted, graced) = terms.judge_status(tcb, now_s);
        let mut text = tcb.status.name().to_owned();
        if graced != tcb.status {
            text += &format!(", with the grace period {graced}");
        }
        if !tcb.advisories.is_empty() {
            text += &format!(" ({})", tcb.advisories.join(", "));
        }
        if accepted {
            Ok(text)
        } else {
            Err(Failure::new(FailureClass::Tcb, text))
        }
    });
    rows.result(
        "tcb.status",
        FailureClass::Tcb,
        &accepted.join(" or "),
        result,
        UNVERIFIED,
    );
    let expected = format!("at least {}", terms.evaluation_number_min);
    let id = "tcb.evaluation-number";
    match collateral.map(VerifiedCollateral::evaluation_number) {
        Some(number) => {
            let holds = number >= terms.evaluation_number_min;
            rows.judge(id, FailureClass::Tcb, &expected, &number.to_string(), holds);
        }
        None => rows.skip(id, FailureClass::Tcb, &expected, UNVERIFIED),
    }
}

fn judge_fields(rows: &mut Rows, report: Option<&TdReport<'_>>, terms: &TdxTerms) {
    let stated = terms
        .fields
        .keys()
        .filter(|field| REGISTERS.iter().all(|(known, _)| known != *field));
    let others = stated.map(|field| (*field, format!("field.{}", field.name())));
    let registers = REGISTERS.map(|(field, id)| (field, id.to_owned()));
    for (field, id) in registers.into_iter().chain(others) {
        let value = report.and_then(|report| report.field(field));
        match (terms.fields.get(&field), value) {
            (None, value) => {
                let actual = value.map(hex::encode).unwrap_or_default();
                rows.unjudged(&id, &actual, "no policy states what it has to be");
            }
            (Some(any_of), Some(value)) => {
                let holds = any_of.iter().any(|accepted| accepted == value);
                rows.judge(
                    &id,
                    FailureClass::Policy,
                    &any(any_of),
                    &hex::encode(value),
                    holds,
                );
            }
            (Some(any_of), None) => {
                let missing = Failure::new(FailureClass::Policy, "the quote does not have this field");
                rows.fail(&id, &any(any_of), missing);
            }
        }
    }
}

fn any(values: &[Vec<u8>]) -> String {
    if values.is_empty() {
        return "nothing is accepted".to_owned();
    }
    values.iter().map(hex::encode).collect::<Vec<_>>().join(" or ")
}
