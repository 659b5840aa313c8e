//! From an address to a [`Session`]: connect, judge the certificate's evidence, judge fresh evidence. A
//! [`Verifier`](crate::Verifier) does the same and remembers it.

use std::{io, sync::Arc};

use bytes::Bytes;
use cocoon_evidence::{
    ENDORSEMENTS_BYTES_MAX, FRESH_BYTES_MAX, FreshBinding, FreshEvidence, FreshEvidenceError, TlsBinding,
};
use cocoon_protocol::{LaunchDocument, LaunchDocumentError};
use cocoon_verify::{Floors, Policy, Refusal, Report, TrustedGuest, appraise};
use hyper::Method;
use serde::Serialize;

use crate::{
    CertificateFault, Deadlines, Endpoint, ExchangeError, Leaf, Proof, Session, Step,
    exchange::Ask,
    proof::Moment,
    transport::{Connection, tls_config},
};

/// What was judged so far. On a refusal the last report holds the reason.
#[derive(Debug, Clone, Serialize)]
pub struct Verification {
    /// Evidence in the TLS certificate: binds its key, the usage key and the event log.
    pub certificate: Report,
    /// Evidence under this client's nonce, for this connection; `None` when it was not asked for any more.
    pub fresh: Option<Report>,
}

/// Why there is no session. Nothing but requests for evidence was sent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No TCP connection.
    #[error("cannot connect to {endpoint}")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The peer went away in the middle of the handshake.
    #[error("the connection was closed during the TLS handshake")]
    Dropped(#[source] io::Error),
    /// The peer does not speak TLS 1.3 as a guest does.
    #[error("the TLS 1.3 handshake failed")]
    Handshake(#[source] io::Error),
    /// The certificate does not have the form of a guest's; in the words of [`CertificateFault`].
    #[error("{0}")]
    CertificateForm(String),
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateFault),
    /// A request for evidence has no usable answer.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The fresh evidence is not an answer to the request for it.
    #[error("the fresh evidence cannot be read")]
    Evidence(#[source] FreshEvidenceError),
    /// The evidence was read, and does not meet the policy.
    #[error("{refusal}")]
    Refused {
        /// Which checks do not hold.
        refusal: Refusal,
        /// Everything that was judged.
        verification: Box<Verification>,
    },
    /// Both pieces of evidence are good, but of two guests, or of one before and after a restart.
    #[error("the fresh evidence is of another guest than the certificate's evidence")]
    AnotherGuest {
        /// Everything that was judged.
        verification: Box<Verification>,
    },
    /// The guest measured a launch document that this version does not understand.
    #[error("the guest's launch document cannot be used")]
    LaunchDocument(#[source] LaunchDocumentError),
    /// This machine's TLS library.
    #[error("TLS cannot be set up on this machine")]
    Tls(#[source] rustls::Error),
    /// This machine's random numbers.
    #[error("this machine gives no random numbers")]
    Random(#[source] io::Error),
}

/// Connects to a guest and verifies it, whatever was verified before. `floors` is what the caller remembers,
/// `now_s` the clock, seconds since 1970. Who connects more than once keeps a [`Verifier`](crate::Verifier) instead.
///
/// # Errors
/// See [`ConnectError`]; until this returns a session, no byte beyond the requests for evidence is sent.
pub async fn connect(
    endpoint: &Endpoint,
    policy: &Policy,
    floors: Floors,
    now_s: u64,
    deadlines: &Deadlines,
) -> Result<Session, ConnectError> {
    let tls = Arc::new(tls_config()?);
    let mut connection = Connection::dial(endpoint, &tls, deadlines).await?;
    let proof = prove(&mut connection, policy, floors, now_s, deadlines).await?;
    Session::over(connection, Arc::new(proof), *deadlines).await
}

/// Judges the evidence in the certificate and fresh evidence for this connection.
pub(crate) async fn prove(
    connection: &mut Connection,
    policy: &Policy,
    floors: Floors,
    now_s: u64,
    deadlines: &Deadlines,
) -> Result<Proof, ConnectError> {
    let started = Moment::at(now_s);
    let leaf = Leaf::parse(&connection.leaf_der, i64::try_from(now_s).unwrap_or(i64::MAX))?;
    let endorsements = fetch_endorsements(connection, deadlines).await?;
    let (certified, certificate_report) = judge_certificate(policy, floors, &leaf, &endorsements, now_s)?;
    let fresh = fetch_evidence(connection, deadlines).await?;

    let binding = FreshBinding {
        nonce: &connection.nonce,
        exporter: &connection.fresh_exporter,
        certificate: leaf.digest,
        role: policy.role(),
        log: fresh.bundle.events.replay(),
    };
    let appraisal = appraise(
        policy,
        floors,
        &fresh.bundle,
        &endorsements,
        &fresh.report_data(&binding.leaf()),
        now_s,
    );
    let verification = Verification {
        certificate: certificate_report,
        fresh: Some(appraisal.report.clone()),
    };
    let guest = match appraisal.into_trusted() {
        Ok(guest) => guest,
        Err(refusal) => return Err(refused(refusal, verification)),
    };
    if guest.events() != certified.events() || guest.usage_key() != certified.usage_key() {
        return Err(ConnectError::AnotherGuest {
            verification: Box::new(verification),
        });
    }
    let launch = LaunchDocument::parse(guest.launch_document()).map_err(ConnectError::LaunchDocument)?;
    Ok(Proof::new(guest, launch, verification, &leaf, started))
}

fn judge_certificate(
    policy: &Policy,
    floors: Floors,
    leaf: &Leaf,
    endorsements: &[u8],
    now_s: u64,
) -> Result<(TrustedGuest, Report), ConnectError> {
    let events = &leaf.bundle.events;
    let usage_key = events
        .payload(cocoon_evidence::EventKind::UsageKey)
        .unwrap_or_default();
    let binding = TlsBinding {
        spki: &leaf.spki,
        // A key of another length is refused by the appraisal of the event; it only has to be bound to nothing.
        usage_key: usage_key.try_into().unwrap_or(&[0; 32]),
        not_before_s: leaf.not_before_s,
        not_after_s: leaf.not_after_s,
        role: policy.role(),
        log: events.replay(),
    };
    let appraisal = appraise(
        policy,
        floors,
        &leaf.bundle,
        endorsements,
        &binding.report_data(),
        now_s,
    );
    let report = appraisal.report.clone();
    match appraisal.into_trusted() {
        Ok(guest) => Ok((guest, report)),
        Err(refusal) => Err(refused(
            refusal,
            Verification {
                certificate: report,
                fresh: None,
            },
        )),
    }
}

fn refused(refusal: Refusal, verification: Verification) -> ConnectError {
    ConnectError::Refused {
        refusal,
        verification: Box::new(verification),
    }
}

async fn fetch_endorsements(
    connection: &mut Connection,
    deadlines: &Deadlines,
) -> Result<Bytes, ExchangeError> {
    let ask = Ask {
        step: Step::Endorsements,
        method: Method::GET,
        path: "/.well-known/cocoon/endorsements",
        content_type: "application/json",
        body: Bytes::new(),
    };
    connection
        .exchange(ask, ENDORSEMENTS_BYTES_MAX, deadlines.exchange)
        .await
}

async fn fetch_evidence(
    connection: &mut Connection,
    deadlines: &Deadlines,
) -> Result<FreshEvidence, ConnectError> {
    let ask = Ask {
        step: Step::Evidence,
        method: Method::POST,
        path: "/.well-known/cocoon/evidence",
        content_type: "application/octet-stream",
        body: Bytes::copy_from_slice(&connection.nonce),
    };
    let bytes = connection
        .exchange(ask, FRESH_BYTES_MAX, deadlines.exchange)
        .await?;
    FreshEvidence::decode(&bytes).map_err(ConnectError::Evidence)
}
