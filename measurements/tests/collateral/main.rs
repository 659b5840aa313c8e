//! Fetching collateral from a service on this machine: what Intel published for public quotes, in the form of its
//! services, and everything that a service, or somebody on the way, could say instead.
//! Without `COCOON_VECTORS` the tests that need vectors pass with a message.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod kept;
mod program;
mod server;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use cocoon_measurements::collateral::{
    FetchError, Fetched, Fetcher, HttpFailure, Origin, Service, UnusableCollateral,
};
use cocoon_verify::{
    Root,
    judgement::FailureClass,
    tdx::{Collateral, CollateralKey, CollateralKeyError, PckCa, Quote},
};
use serde_json::Value;

use server::{Answer, Routes, Server};

const LIMIT: Duration = Duration::from_secs(20);
const QUOTE: &str = "tdx/phala/tdx_quote_td15ex";
const FMSPC: &str = "B0C06F000000";
const KEY: CollateralKey = CollateralKey {
    fmspc: [0xb0, 0xc0, 0x6f, 0, 0, 0],
    ca: PckCa::Platform,
};

const PCK_CRL: &str = "/sgx/certification/v4/pckcrl?ca=platform&encoding=der";
const TCB_INFO: &str = "/tdx/certification/v4/tcb?fmspc=B0C06F000000";
const QE_IDENTITY: &str = "/tdx/certification/v4/qe/identity";
/// At Intel it is at another host, in a PCCS at the second.
const ROOT_CRL: &str = "/IntelSGXRootCA.der";
const PCCS_ROOT_CRL: &str = "/sgx/certification/v4/rootcacrl";

fn vector(name: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("COCOON_VECTORS") else {
        eprintln!("skipped: COCOON_VECTORS does not name a folder with public test vectors");
        return None;
    };
    let path = Path::new(&folder).join(name);
    assert!(path.exists(), "{} is missing", path.display());
    Some(path)
}

/// What was published with a public quote, and the times at which it is valid.
struct Published {
    document: Value,
    from_s: u64,
    until_s: u64,
}

impl Published {
    fn open() -> Option<Self> {
        let json = fs::read(vector(&format!("{QUOTE}_collateral.json"))?).unwrap();
        let verified = Collateral::parse(&json).unwrap().verify(&Root::intel()).unwrap();
        Some(Self {
            document: serde_json::from_slice(&json).unwrap(),
            from_s: verified.validity().from_s(),
            until_s: verified.validity().until_s(),
        })
    }

    fn text(&self, key: &str) -> &str {
        self.document[key].as_str().unwrap()
    }

    fn der(&self, key: &str) -> Vec<u8> {
        hex::decode(self.text(key)).unwrap()
    }

    fn signed(&self, document: &str, name: &str) -> Vec<u8> {
        let signature = self.text(&format!("{document}_signature"));
        let body = self.text(document);
        format!("{{\"{name}\":{body},\"signature\":\"{signature}\"}}").into()
    }

    /// As Intel's service answers.
    fn pcs(&self) -> Routes {
        let chain = |key| url_encoded(self.text(key));
        Routes::from([
            (
                PCK_CRL.to_owned(),
                Answer::Page(
                    vec![("SGX-PCK-CRL-Issuer-Chain", chain("pck_crl_issuer_chain"))],
                    self.der("pck_crl"),
                ),
            ),
            (
                TCB_INFO.to_owned(),
                Answer::Page(
                    vec![("TCB-Info-Issuer-Chain", chain("tcb_info_issuer_chain"))],
                    self.signed("tcb_info", "tcbInfo"),
                ),
            ),
            (
                QE_IDENTITY.to_owned(),
                Answer::Page(
                    vec![(
                        "SGX-Enclave-Identity-Issuer-Chain",
                        chain("qe_identity_issuer_chain"),
                    )],
                    self.signed("qe_identity", "enclaveIdentity"),
                ),
            ),
            (
                ROOT_CRL.to_owned(),
                Answer::Page(Vec::new(), self.der("root_ca_crl")),
            ),
        ])
    }

    /// As a PCCS answers: lists in hexadecimal, and an older name of a header field.
    fn pccs(&self) -> Routes {
        let mut routes = self.pcs();
        let hexadecimal = |answer: Answer| match answer {
            Answer::Page(headers, body) => Answer::Page(headers, hex::encode(body).into()),
            other => other,
        };
        let list = routes.remove(ROOT_CRL).unwrap();
        routes.insert(PCCS_ROOT_CRL.to_owned(), hexadecimal(list));
        let list = routes.remove(PCK_CRL).unwrap();
        routes.insert(PCK_CRL.to_owned(), hexadecimal(list));
        if let Some(Answer::Page(headers, _)) = routes.get_mut(TCB_INFO) {
            headers[0].0 = "SGX-TCB-Info-Issuer-Chain";
        }
        routes
    }

    #[track_caller]
    fn assert_same(&self, fetched: &Fetched) {
        let json: Value = serde_json::from_slice(&fetched.json).unwrap();
        for (key, value) in json.as_object().unwrap() {
            assert_eq!(value, &self.document[key], "{key}");
        }
        assert_eq!(json.as_object().unwrap().len(), 9);
    }
}

fn url_encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn pcs(server: &Server) -> Service {
    let root_crl = format!("{}{ROOT_CRL}", server.url());
    Service::pcs(server.url().parse().unwrap(), root_crl.parse().unwrap()).unwrap()
}

fn fetcher(service: Service) -> Fetcher {
    Fetcher::new(service, Root::intel(), LIMIT)
}

/// Replaces one answer of an honest service.
#[track_caller]
fn refused(published: &Published, path: &str, answer: Answer) -> FetchError {
    let mut routes = published.pcs();
    assert!(routes.insert(path.to_owned(), answer).is_some());
    let server = Server::start(routes);
    let result = fetcher(pcs(&server)).collateral(&KEY, published.from_s);
    result.unwrap_err()
}

/// What a service that answers everything so leads to.
#[track_caller]
fn failure(answer: &Answer, limit: Duration) -> HttpFailure {
    let server = Server::start(Routes::from([(PCK_CRL.to_owned(), answer.clone())]));
    let error = Fetcher::new(pcs(&server), Root::intel(), limit)
        .collateral(&KEY, 0)
        .unwrap_err();
    assert_eq!(error.class(), Some(FailureClass::Tcb));
    match error {
        FetchError::Http { source, .. } => source.failure,
        other => panic!("{other:?}"),
    }
}

/// The whole chain of causes, as the program prints it.
fn printed(error: FetchError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

#[test]
fn what_intel_published_arrives_unchanged_from_both_kinds_of_service() {
    let Some(published) = Published::open() else {
        return;
    };
    let server = Server::start(published.pcs());
    let fetched = fetcher(pcs(&server)).collateral(&KEY, published.from_s).unwrap();
    published.assert_same(&fetched);
    assert_eq!(fetched.origin, Origin::Service);
    assert_eq!(server.asked(), [PCK_CRL, TCB_INFO, QE_IDENTITY, ROOT_CRL]);

    let server = Server::start(published.pccs());
    let service = Service::pccs(server.url().parse().unwrap());
    let fetched = fetcher(service).collateral(&KEY, published.from_s).unwrap();
    published.assert_same(&fetched);
    assert_eq!(server.asked(), [PCK_CRL, TCB_INFO, QE_IDENTITY, PCCS_ROOT_CRL]);
}

#[test]
fn a_quote_says_which_collateral_it_needs() {
    for (name, fmspc) in [
        (QUOTE, FMSPC),
        ("tdx/phala/tdx_quote", FMSPC),
        ("tdx/phala/tdx_quote_outdated", "90C06F000000"),
    ] {
        let Some(path) = vector(name) else { return };
        let bytes = fs::read(path).unwrap();
        let key = CollateralKey::of(&Quote::parse(&bytes).unwrap()).unwrap();
        assert_eq!(key.to_string(), format!("FMSPC {fmspc}, platform CA"), "{name}");
    }
    let bytes = fs::read(vector("tdx/phala/sgx_quote").unwrap()).unwrap();
    let key = CollateralKey::of(&Quote::parse(&bytes).unwrap());
    assert_eq!(key, Err(CollateralKeyError::Sgx));
}

#[test]
fn errors_of_the_service_are_errors() {
    for status in [204, 400, 404, 429, 500, 503] {
        let failure = failure(&Answer::Status(status), LIMIT);
        assert!(
            matches!(failure, HttpFailure::Status(found) if found == status),
            "{failure}"
        );
    }
}

#[test]
fn a_redirect_is_not_followed() {
    let other = Server::start(Routes::new());
    for to in [
        format!("{}/list", other.url()),
        "file:///etc/hostname".into(),
        "https://localhost/".into(),
    ] {
        let failure = failure(&Answer::Redirect(to.clone()), LIMIT);
        assert!(
            matches!(&failure, HttpFailure::Redirect { status: 302, to: Some(found) } if *found == to),
            "{failure}"
        );
    }
    assert_eq!(other.asked(), [""; 0]);
}

#[test]
fn an_answer_that_ends_early_is_refused() {
    for answer in [Answer::Truncated, Answer::Noise] {
        let failure = failure(&answer, LIMIT);
        assert!(matches!(failure, HttpFailure::Transport(_)), "{failure}");
    }
}

#[test]
fn an_answer_without_end_is_cut_off() {
    let failure = failure(&Answer::Endless, LIMIT);
    assert!(matches!(failure, HttpFailure::TooLarge(_)), "{failure}");
}

#[test]
fn a_service_that_drips_meets_the_deadline() {
    let failure = failure(&Answer::Drips, Duration::from_millis(400));
    assert!(matches!(failure, HttpFailure::Deadline(_)), "{failure}");
}

#[test]
fn nobody_listens() {
    let gone = Server::start(Routes::new());
    let service = pcs(&gone);
    drop(gone);
    let error = fetcher(service).collateral(&KEY, 0).unwrap_err();
    // Refused, or reset: a program that another test starts holds a copy of the listener until it runs.
    assert!(
        matches!(&error, FetchError::Http { source, .. } if matches!(source.failure, HttpFailure::Transport(_))),
        "{error:?}"
    );
    let text = printed(error);
    assert!(text.contains("make sure that it can be reached"), "{text}");
    assert!(text.contains(PCK_CRL), "{text}");
}

#[test]
fn wrong_content_is_refused() {
    let Some(published) = Published::open() else {
        return;
    };
    let chain = vec![(
        "TCB-Info-Issuer-Chain",
        url_encoded(published.text("tcb_info_issuer_chain")),
    )];
    let pages: [(&str, Vec<_>, &[u8]); 6] = [
        (TCB_INFO, chain.clone(), b"<html>log in</html>"),
        (TCB_INFO, chain.clone(), b"{\"tcbInfo\":{}}"),
        (TCB_INFO, chain.clone(), b""),
        (TCB_INFO, Vec::new(), b"{\"tcbInfo\":{},\"signature\":\"00\"}"),
        (
            QE_IDENTITY,
            chain,
            b"{\"enclaveIdentity\":{},\"signature\":\"00\"}",
        ),
        (
            TCB_INFO,
            vec![("TCB-Info-Issuer-Chain", "%ff%fe".to_owned())],
            b"{\"tcbInfo\":{},\"signature\":\"00\"}",
        ),
    ];
    for (path, headers, body) in pages {
        let error = refused(&published, path, Answer::Page(headers, body.to_vec()));
        assert!(matches!(error, FetchError::Answer { .. }), "{error:?}");
        assert_eq!(error.class(), Some(FailureClass::Signature));
    }
    let error = refused(&published, ROOT_CRL, Answer::Page(Vec::new(), b"3082".to_vec()));
    assert_eq!(error.class(), Some(FailureClass::Signature), "{error:?}");
}

#[test]
fn forged_parts_are_refused() {
    let Some(published) = Published::open() else {
        return;
    };
    let honest = published.pcs();
    let forge = |path: &str, from: &[u8], to: &[u8]| {
        let Answer::Page(headers, body) = honest[path].clone() else {
            panic!("{path}")
        };
        let at = body
            .windows(from.len())
            .position(|window| window == from)
            .unwrap();
        let forged = [&body[..at], to, &body[at + from.len()..]].concat();
        refused(&published, path, Answer::Page(headers, forged))
    };
    let crl = published.der("pck_crl");
    let last = [crl[crl.len() - 8..].to_vec(), vec![0; 8]];
    for error in [
        forge(TCB_INFO, b"OutOfDate", b"UpToDate "),
        forge(TCB_INFO, b"2026-11-07", b"2027-11-07"),
        forge(QE_IDENTITY, b"\"UpToDate\"", b"\"Revoked\" "),
        forge(PCK_CRL, &last[0], &last[1]),
    ] {
        assert!(
            matches!(error, FetchError::Unusable(UnusableCollateral::Unauthentic(_))),
            "{error:?}"
        );
        assert_eq!(error.class(), Some(FailureClass::Signature));
    }
}

#[test]
fn genuine_collateral_of_another_platform_is_refused() {
    let Some(published) = Published::open() else {
        return;
    };
    let other = CollateralKey {
        fmspc: [0x90, 0xc0, 0x6f, 0, 0, 0],
        ..KEY
    };
    let mut routes = published.pcs();
    let answer = routes.remove(TCB_INFO).unwrap();
    routes.insert(TCB_INFO.replace(FMSPC, "90C06F000000"), answer);
    let server = Server::start(routes);
    let error = fetcher(pcs(&server))
        .collateral(&other, published.from_s)
        .unwrap_err();
    assert!(
        matches!(error, FetchError::Unusable(UnusableCollateral::Other(_))),
        "{error:?}"
    );

    let processor = CollateralKey {
        ca: PckCa::Processor,
        ..KEY
    };
    let mut routes = published.pcs();
    let answer = routes.remove(PCK_CRL).unwrap();
    routes.insert(PCK_CRL.replace("platform", "processor"), answer);
    let server = Server::start(routes);
    let error = fetcher(pcs(&server))
        .collateral(&processor, published.from_s)
        .unwrap_err();
    assert!(
        matches!(error, FetchError::Unusable(UnusableCollateral::Other(_))),
        "{error:?}"
    );
}

#[test]
fn expired_collateral_of_a_service_is_refused() {
    let Some(published) = Published::open() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(published.pcs());
    let fetcher = fetcher(pcs(&server)).keep_in(folder.path());
    for now_s in [published.from_s - 1, published.until_s + 1] {
        let error = fetcher.collateral(&KEY, now_s).unwrap_err();
        assert!(
            matches!(error, FetchError::Unusable(UnusableCollateral::Validity(_))),
            "{error:?}"
        );
        assert_eq!(error.class(), Some(FailureClass::Tcb));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is kept");
}
