//! Where quotes and collateral come from.

use std::path::PathBuf;

use cocoon_verify::{
    Root,
    judgement::{Judgement, Status},
    tdx::{TdxTerms, judge_tdx},
};
use serde_json::{Value, json};

use crate::public_vectors;

/// When the collateral of phala/tdx_quote is valid; published with the quote.
pub(crate) const TD10_S: u64 = 1_750_332_747;
/// 2026-10-08T06:00:00Z, for phala/tdx_quote_td15ex.
pub(crate) const TD15EX_S: u64 = 1_791_439_200;
/// For phala/tdx_quote_outdated; published with the quote.
pub(crate) const TD15_S: u64 = 1_771_415_931;
/// For phala/sgx_quote; published with the quote.
pub(crate) const SGX_S: u64 = 1_750_334_171;

/// A quote with all that it takes to judge it.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) quote: Vec<u8>,
    pub(crate) collateral: Vec<u8>,
    pub(crate) root: Root,
    pub(crate) now_s: u64,
}

impl Case {
    pub(crate) fn judge(&self) -> Judgement {
        self.judge_with(&TdxTerms::default())
    }

    pub(crate) fn judge_with(&self, terms: &TdxTerms) -> Judgement {
        judge_tdx(&self.quote, Some(&self.collateral), &self.root, terms, self.now_s)
    }

    /// Changes one part of the collateral.
    pub(crate) fn with(&self, key: &str, value: Value) -> Self {
        let mut collateral: Value = serde_json::from_slice(&self.collateral).unwrap();
        collateral[key] = value;
        let collateral = serde_json::to_vec(&collateral).unwrap();
        Self {
            collateral,
            ..self.clone()
        }
    }

    pub(crate) fn part(&self, key: &str) -> String {
        let collateral: Value = serde_json::from_slice(&self.collateral).unwrap();
        collateral[key].as_str().unwrap().to_owned()
    }
}

pub(crate) struct Vectors(PathBuf);

impl Vectors {
    pub(crate) fn open() -> Option<Self> {
        public_vectors::folder().map(Self)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        public_vectors::read(&self.0.join(name))
    }

    pub(crate) fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    fn phala(&self, name: &str, now_s: u64) -> Case {
        Case {
            quote: without_padding(self.read(&format!("tdx/phala/{name}"))),
            collateral: self.read(&format!("tdx/phala/{name}_collateral.json")),
            root: Root::intel(),
            now_s,
        }
    }

    /// Version 4.
    pub(crate) fn td10(&self) -> Case {
        self.phala("tdx_quote", TD10_S)
    }

    /// Version 5, body type 3; below every TCB level.
    pub(crate) fn td15_outdated(&self) -> Case {
        self.phala("tdx_quote_outdated", TD15_S)
    }

    /// Version 5, body type 3, of the same platform model as that collateral: up to date.
    pub(crate) fn td15(&self) -> Case {
        Case {
            quote: self.read("tdx/quotes/google_quote_v5_sample.dat"),
            ..self.td15_outdated()
        }
    }

    /// Version 5, body type 4.
    pub(crate) fn td15ex(&self) -> Case {
        self.phala("tdx_quote_td15ex", TD15EX_S)
    }

    /// Version 3, an enclave's.
    pub(crate) fn sgx(&self) -> Case {
        self.phala("sgx_quote", SGX_S)
    }

    /// Intel's own sample, under its own root.
    pub(crate) fn intel_sample(&self) -> Case {
        let text = |name: &str| self.text(&format!("tdx/intel_qvl_sample_testroot/{name}"));
        let hex = |name: &str| hex::encode(self.read(&format!("tdx/intel_qvl_sample_testroot/{name}")));
        let (tcb_info, tcb_info_signature) = signed_json(&text("tcbInfo.json"), "tcbInfo");
        let (qe_identity, qe_identity_signature) = signed_json(&text("qeIdentity.json"), "enclaveIdentity");
        let collateral = json!({
            "pck_crl_issuer_chain": text("pckSignChain.pem"),
            "root_ca_crl": hex("rootCaCrl.der"),
            "pck_crl": hex("intermediateCaCrl.der"),
            "tcb_info_issuer_chain": text("tcbSignChain.pem"),
            "tcb_info": tcb_info,
            "tcb_info_signature": tcb_info_signature,
            "qe_identity_issuer_chain": text("tcbSignChain.pem"),
            "qe_identity": qe_identity,
            "qe_identity_signature": qe_identity_signature,
            "pck_certificate_chain": text("pckCert.pem") + &text("pckSignChain.pem"),
        });
        Case {
            quote: self.read("tdx/intel_qvl_sample_testroot/quote.dat"),
            collateral: serde_json::to_vec(&collateral).unwrap(),
            root: Root::given(&text("trustedRootCaCert.pem")).unwrap(),
            now_s: 1_640_000_000,
        }
    }
}

/// The signed bytes of `{"NAME":{...},"signature":"..."}`, which are those between the name and the signature.
fn signed_json(text: &str, name: &str) -> (String, String) {
    let body = text.trim().strip_prefix(&format!("{{\"{name}\":")).unwrap();
    let (body, signature) = body.rsplit_once(",\"signature\":\"").unwrap();
    (body.to_owned(), signature.trim_end_matches("\"}").to_owned())
}

/// A quote without the zeros that follow some of the files.
pub(crate) fn without_padding(mut quote: Vec<u8>) -> Vec<u8> {
    let u32_at = |offset: usize| u32::from_le_bytes(quote[offset..offset + 4].try_into().unwrap()) as usize;
    let signed_bytes = match quote[0] {
        3 => 48 + 384,
        4 => 48 + 584,
        _ => 48 + 6 + u32_at(50),
    };
    let length = signed_bytes + 4 + u32_at(signed_bytes);
    assert!(quote[length..].iter().all(|byte| *byte == 0));
    quote.truncate(length);
    quote
}

/// The ids of the rows that failed.
pub(crate) fn failed(judgement: &Judgement) -> Vec<&str> {
    ids(judgement, Status::Fail)
}

pub(crate) fn skipped(judgement: &Judgement) -> Vec<&str> {
    ids(judgement, Status::Skip)
}

fn ids(judgement: &Judgement, status: Status) -> Vec<&str> {
    let rows = judgement.checks().iter().filter(|check| check.status == status);
    rows.map(|check| check.id.as_str()).collect()
}

/// What the row with this id found.
pub(crate) fn actual<'a>(judgement: &'a Judgement, id: &str) -> &'a str {
    let row = judgement.checks().iter().find(|check| check.id == id);
    &row.unwrap_or_else(|| panic!("no row {id}")).actual
}
