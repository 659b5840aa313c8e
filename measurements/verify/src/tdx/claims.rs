//! What a quote says, for the JSON of a judgement.

use serde_json::{Map, Value, json};

use super::{
    attributes,
    collateral::VerifiedCollateral,
    pck::PckExtension,
    quote::Quote,
    tcb::{TcbLevel, TcbVerdict},
};
use crate::date::date_text;

pub(crate) fn quote(claims: &mut Map<String, Value>, quote: &Quote<'_>) {
    claims.insert("quote_version".into(), json!(quote.version()));
    claims.insert("body".into(), json!(quote.kind().name()));
    claims.insert("qe_id".into(), json!(hex::encode(quote.qe_id())));
    if let Some(report) = quote.td_report() {
        for (field, value) in report.fields() {
            claims.insert(field.name().into(), json!(hex::encode(value)));
        }
        claims.insert(
            "td_attribute_names".into(),
            json!(attributes::names(report.attributes())),
        );
    }
    if let Some(report) = quote.enclave_report() {
        claims.insert("mr_enclave".into(), json!(hex::encode(report.mr_enclave())));
        claims.insert("mr_signer".into(), json!(hex::encode(report.mr_signer())));
        claims.insert("isv_prod_id".into(), json!(report.isv_prod_id()));
        claims.insert("isv_svn".into(), json!(report.isv_svn()));
        claims.insert("report_data".into(), json!(hex::encode(report.report_data())));
    }
}

pub(crate) fn platform(claims: &mut Map<String, Value>, pck: &PckExtension) {
    claims.insert(
        "platform".into(),
        json!({
            "fmspc": hex::encode_upper(pck.fmspc),
            "ppid": hex::encode(pck.ppid),
            "pce_id": hex::encode_upper(pck.pce_id),
            "pce_svn": pck.pce_svn,
            "cpu_svn": hex::encode(pck.cpu_svn),
            "sgx_type": pck.sgx_type,
            "platform_instance_id": pck.platform_instance_id.map(hex::encode),
            "dynamic_platform": pck.dynamic_platform,
            "cached_keys": pck.cached_keys,
            "smt_enabled": pck.smt_enabled,
        }),
    );
}

pub(crate) fn collateral(claims: &mut Map<String, Value>, collateral: &VerifiedCollateral) {
    let parts = collateral.parts();
    claims.insert(
        "collateral".into(),
        json!({
            "valid_from": date_text(collateral.validity().from_s()),
            "valid_until": date_text(collateral.validity().until_s()),
            "tcb_info_evaluation_number": parts.tcb_info.evaluation_number,
            "qe_identity_evaluation_number": parts.qe_identity.evaluation_number,
            "root_crl_number": parts.root_crl.number,
            "pck_crl_number": parts.pck_crl.number,
        }),
    );
}

pub(crate) fn tcb(claims: &mut Map<String, Value>, tcb: &TcbVerdict) {
    let level = |level: &TcbLevel| {
        json!({
            "status": level.status,
            "date": date_text(level.date_s),
            "advisories": level.advisories,
        })
    };
    claims.insert(
        "tcb".into(),
        json!({
            "status": tcb.status,
            "advisories": tcb.advisories,
            "platform": level(&tcb.platform),
            "platform_now": tcb.current.as_ref().map(level),
            "quoting_enclave": level(&tcb.qe),
        }),
    );
}
