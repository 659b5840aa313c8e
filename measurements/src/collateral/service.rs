//! Intel's Provisioning Certification Service (PCS API version 4) and the caching service that Intel gives to
//! operators (PCCS API version 4): which addresses, which header fields, which encodings.

use std::{fmt, net::IpAddr, str::FromStr};

use cocoon_verify::tdx::{COLLATERAL_BYTES_MAX, CollateralKey, CollateralPart};
use percent_encoding::percent_decode;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use ureq::http::{HeaderMap, Uri};

use super::{
    FetchError,
    http::{Answer, Client},
};

/// Intel's public service.
pub const INTEL_PCS_URL: &str = "https://api.trustedservices.intel.com";

/// The root CA's list: the distribution point that Intel's certificates name. PCS has no address for it, PCCS does.
pub const INTEL_ROOT_CRL_URL: &str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der";

/// What Intel's own clients are configured with; everything asked for below it is given by the API.
const SGX_BASE: &str = "/sgx/certification/v4";
const TDX_BASE: &str = "/tdx/certification/v4";

/// No part is longer than all parts together may be.
const ANSWER_BYTES_MAX: usize = COLLATERAL_BYTES_MAX;

/// Which API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceKind {
    /// Intel's.
    Pcs,
    /// An operator's.
    Pccs,
}

impl ServiceKind {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pcs => "pcs",
            Self::Pccs => "pccs",
        }
    }
}

/// The address of a service, up to the API's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceUrl(Uri);

/// Why an address is not a service's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceUrlError {
    /// Not an address.
    #[error("it is not an address like https://host[:port][/path]")]
    Malformed,
    /// Answers would travel readable and changeable.
    #[error("plain http is for this machine and for a PCCS; use https")]
    Plain,
}

impl FromStr for ServiceUrl {
    type Err = ServiceUrlError;

    /// No user name, password, query or fragment: they would stand in messages and in the cache's key.
    fn from_str(text: &str) -> Result<Self, ServiceUrlError> {
        let uri: Uri = text
            .trim_end_matches('/')
            .parse()
            .map_err(|_| ServiceUrlError::Malformed)?;
        let host_only = uri
            .authority()
            .is_some_and(|authority| !authority.as_str().contains('@') && !authority.host().is_empty());
        let web = matches!(uri.scheme_str(), Some("https" | "http"));
        if host_only && web && uri.query().is_none() && !text.contains('#') {
            Ok(Self(uri))
        } else {
            Err(ServiceUrlError::Malformed)
        }
    }
}

impl fmt::Display for ServiceUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.to_string().trim_end_matches('/'))
    }
}

impl ServiceUrl {
    fn is_https(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }

    fn is_loopback(&self) -> bool {
        let host = self.0.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }

    /// The address of `path`; who gives a PCCS often gives the API's base, as Intel's clients want it.
    fn at(&self, path: &str) -> Uri {
        let whole = self.to_string();
        let base = whole.strip_suffix(SGX_BASE).unwrap_or(&whole);
        let joined = format!("{base}{path}");
        joined.parse().expect("paths of the API are URL characters")
    }
}

/// A service, ready to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    base: ServiceUrl,
    /// `None`: the PCCS has it.
    root_crl: Option<ServiceUrl>,
}

impl Service {
    /// PCS, or a mirror of it.
    ///
    /// # Errors
    /// Plain http to another machine.
    pub fn pcs(base: ServiceUrl, root_crl: ServiceUrl) -> Result<Self, ServiceUrlError> {
        if [&base, &root_crl]
            .iter()
            .any(|url| !url.is_https() && !url.is_loopback())
        {
            return Err(ServiceUrlError::Plain);
        }
        Ok(Self {
            base,
            root_crl: Some(root_crl),
        })
    }

    /// A PCCS; plain http is the caller's explicit choice in its address.
    pub fn pccs(base: ServiceUrl) -> Self {
        Self { base, root_crl: None }
    }

    /// Which API.
    pub fn kind(&self) -> ServiceKind {
        match self.root_crl {
            Some(_) => ServiceKind::Pcs,
            None => ServiceKind::Pccs,
        }
    }

    /// Where.
    pub fn url(&self) -> &ServiceUrl {
        &self.base
    }

    pub(super) fn addresses(&self) -> String {
        match &self.root_crl {
            Some(root_crl) => format!("{}\n{root_crl}", self.base),
            None => self.base.to_string(),
        }
    }

    /// Four requests, put together in the form of dcap-qvl. Nothing is authentic yet.
    pub(super) fn collateral(&self, client: &mut Client, key: &CollateralKey) -> Result<Vec<u8>, FetchError> {
        let fmspc = hex::encode_upper(key.fmspc);
        let ca = key.ca.name();
        let pck_crl = ask(
            client,
            CollateralPart::PckCrl,
            &self.base.at(&format!("{SGX_BASE}/pckcrl?ca={ca}&encoding=der")),
            |answer| {
                let chain = issuer_chain(&answer.headers, &["SGX-PCK-CRL-Issuer-Chain"])?;
                Ok((revocation_list(answer.body), chain))
            },
        )?;
        let tcb_info = ask(
            client,
            CollateralPart::TcbInfo,
            &self.base.at(&format!("{TDX_BASE}/tcb?fmspc={fmspc}")),
            |answer| {
                let chain = issuer_chain(
                    &answer.headers,
                    &["TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"],
                )?;
                let signed: SignedTcbInfo = serde_json::from_slice(&answer.body)?;
                Ok((signed.tcb_info.get().to_owned(), signed.signature, chain))
            },
        )?;
        let qe_identity = ask(
            client,
            CollateralPart::QeIdentity,
            &self.base.at(&format!("{TDX_BASE}/qe/identity")),
            |answer| {
                let chain = issuer_chain(&answer.headers, &["SGX-Enclave-Identity-Issuer-Chain"])?;
                let signed: SignedIdentity = serde_json::from_slice(&answer.body)?;
                Ok((signed.enclave_identity.get().to_owned(), signed.signature, chain))
            },
        )?;
        let root_crl = match &self.root_crl {
            Some(url) => url.0.clone(),
            None => self.base.at(&format!("{SGX_BASE}/rootcacrl")),
        };
        let root_crl = ask(client, CollateralPart::RootCrl, &root_crl, |answer| {
            Ok(revocation_list(answer.body))
        })?;
        let document = Document {
            pck_crl_issuer_chain: pck_crl.1,
            root_ca_crl: hex::encode(root_crl),
            pck_crl: hex::encode(pck_crl.0),
            tcb_info_issuer_chain: tcb_info.2,
            tcb_info: tcb_info.0,
            tcb_info_signature: tcb_info.1,
            qe_identity_issuer_chain: qe_identity.2,
            qe_identity: qe_identity.0,
            qe_identity_signature: qe_identity.1,
        };
        Ok(serde_json::to_vec_pretty(&document).expect("texts can be written as JSON"))
    }
}

/// Why an answer makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Who signed is missing.
    #[error("its header has no {0}")]
    NoIssuerChain(&'static str),
    /// Who signed is not text.
    #[error("the {0} in its header is not URL-encoded text")]
    IssuerChain(&'static str),
    /// Not a signed document.
    #[error("not a signed document: {0}")]
    Document(#[from] serde_json::Error),
}

fn ask<T>(
    client: &mut Client,
    part: CollateralPart,
    url: &Uri,
    read: impl FnOnce(Answer) -> Result<T, AnswerError>,
) -> Result<T, FetchError> {
    let answer = client
        .get(url, ANSWER_BYTES_MAX)
        .map_err(|source| FetchError::Http { part, source })?;
    read(answer).map_err(|source| FetchError::Answer {
        part,
        url: url.to_string(),
        source,
    })
}

/// `names`: the first that is there counts; the second is what version 3 and older services call it.
fn issuer_chain(headers: &HeaderMap, names: &[&'static str]) -> Result<String, AnswerError> {
    let found = names
        .iter()
        .find_map(|&name| headers.get(name).map(|value| (name, value)));
    let (name, value) = found.ok_or(AnswerError::NoIssuerChain(names[0]))?;
    let text = percent_decode(value.as_bytes()).decode_utf8();
    Ok(text.map_err(|_| AnswerError::IssuerChain(name))?.into_owned())
}

/// DER, or the same in hexadecimal, as a PCCS has it. DER of a list is never all hexadecimal digits: its length
/// takes a byte above 127.
fn revocation_list(body: Vec<u8>) -> Vec<u8> {
    hex::decode(body.trim_ascii()).unwrap_or(body)
}

/// The signature is over the document's bytes as they stand in the answer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SignedTcbInfo<'a> {
    #[serde(borrow)]
    tcb_info: &'a RawValue,
    signature: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SignedIdentity<'a> {
    #[serde(borrow)]
    enclave_identity: &'a RawValue,
    signature: String,
}

/// dcap-qvl's `QuoteCollateralV3`.
#[derive(Serialize)]
struct Document {
    pck_crl_issuer_chain: String,
    root_ca_crl: String,
    pck_crl: String,
    tcb_info_issuer_chain: String,
    tcb_info: String,
    tcb_info_signature: String,
    qe_identity_issuer_chain: String,
    qe_identity: String,
    qe_identity_signature: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<ServiceUrl, ServiceUrlError> {
        text.parse()
    }

    #[test]
    fn the_base_of_the_api_may_be_given_or_not() {
        for base in [
            "https://pccs.example:8081",
            "https://pccs.example:8081/",
            "https://pccs.example:8081/sgx/certification/v4/",
        ] {
            let whole = url(base).unwrap().at("/tdx/certification/v4/qe/identity");
            assert_eq!(
                whole,
                "https://pccs.example:8081/tdx/certification/v4/qe/identity"
            );
        }
        let below = url("https://mirror.example/intel")
            .unwrap()
            .at("/sgx/certification/v4/x");
        assert_eq!(below, "https://mirror.example/intel/sgx/certification/v4/x");
    }

    #[test]
    fn addresses_with_secrets_or_other_schemes_are_refused() {
        for text in [
            "",
            "pccs.example",
            "/path",
            "ftp://pccs.example",
            "file:///etc/passwd",
            "https://user:secret@pccs.example",
            "https://pccs.example/?token=1",
            "https://pccs.example/#part",
            "https://pccs .example",
        ] {
            assert_eq!(url(text), Err(ServiceUrlError::Malformed), "{text}");
        }
    }

    #[test]
    fn plain_http_is_for_this_machine_and_for_a_pccs() {
        let secure = url(INTEL_ROOT_CRL_URL).unwrap();
        for (text, allowed) in [
            ("https://mirror.example", true),
            ("http://127.0.0.1:80", true),
            ("http://[::1]:80", true),
            ("http://localhost", true),
            ("http://mirror.example", false),
            ("http://127.0.0.1.example", false),
            ("http://10.0.0.1", false),
        ] {
            let base = url(text).unwrap();
            let swapped = Service::pcs(secure.clone(), base.clone());
            assert_eq!(
                Service::pcs(base.clone(), secure.clone()).is_ok(),
                allowed,
                "{text}"
            );
            assert_eq!(swapped.is_ok(), allowed, "{text}");
            assert_eq!(Service::pccs(base).kind(), ServiceKind::Pccs);
        }
    }
}
