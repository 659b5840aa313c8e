//! From an address to a [`Session`]: connect, judge the certificate's evidence, judge fresh evidence. A
//! [`Verifier`](crate::Verifier) does the same and remembers it.

use std::{io, sync::Arc};

use bytes::Bytes;
use cocoon_evidence::{
    BUNDLE_BYTES_MAX, CertifiedEvidence, ENDORSEMENTS_BYTES_MAX, FRESH_BYTES_MAX, FreshEvidenceError,
};
use cocoon_protocol::LaunchDocumentError;
use cocoon_verify::{Floors, Policy, Refusal};
use hyper::Method;

use crate::{
    CertificateFault, Deadlines, Endpoint, ExchangeError, Leaf, Proof, Record, SeenError, Session, Step,
    Verification,
    exchange::Ask,
    proof::Moment,
    transport::{Connection, Dialled, tls_config},
};

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
    /// A saved record that breaks off, because the guest was refused when it was made.
    #[error("the record holds no further evidence: the guest was refused before it was asked for")]
    Incomplete,
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
    /// The guest meets the policy, but by what cannot be remembered; then nothing is accepted.
    #[error(transparent)]
    Seen(#[from] SeenError),
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
    connect_recorded(endpoint, policy, floors, now_s, deadlines)
        .await
        .1
}

/// The same, with everything that the verdict rests upon; `None` if it did not come to evidence.
pub async fn connect_recorded(
    endpoint: &Endpoint,
    policy: &Policy,
    floors: Floors,
    now_s: u64,
    deadlines: &Deadlines,
) -> (Option<Record>, Result<Session, ConnectError>) {
    let dialled = async {
        let tls = Arc::new(tls_config()?);
        Dialled::dial(endpoint, &tls, deadlines).await
    };
    let dialled = match dialled.await {
        Ok(dialled) => dialled,
        Err(error) => return (None, Err(error)),
    };
    let (record, proven) = prove(dialled, endpoint, policy, floors, now_s, deadlines).await;
    let session = match proven {
        Ok((dialled, proof)) => Session::over(dialled, Arc::new(proof), *deadlines).await,
        Err(error) => Err(error),
    };
    (record, session)
}

/// Judges the evidence in the certificate and fresh evidence for this session. Gives back the session, if its guest is
/// proven, and what was judged, if it came to that.
pub(crate) async fn prove(
    dialled: Dialled,
    endpoint: &Endpoint,
    policy: &Policy,
    floors: Floors,
    now_s: u64,
    deadlines: &Deadlines,
) -> (Option<Record>, Result<(Dialled, Proof), ConnectError>) {
    let made = Moment::at(now_s);
    let challenge = match dialled.challenge() {
        Ok(challenge) => challenge,
        Err(error) => return (None, Err(error)),
    };
    let mut record = Record::new(endpoint.to_string(), &challenge, now_s);
    let proven = async {
        // What cannot be a guest's certificate is not asked for anything.
        let leaf = Leaf::parse(&challenge.leaf_der, i64::try_from(now_s).unwrap_or(i64::MAX))?;
        let mut connection = dialled.speak(|tls| tls).await?;
        if matches!(leaf.evidence, CertifiedEvidence::ByDigest(_)) {
            let named = fetch_named(&mut connection, deadlines).await?;
            // Before anything else is asked for.
            leaf.bundle(Some(&named))?;
            record.named_evidence = Some(named.into());
        }
        record.endorsements = Some(fetch_endorsements(&mut connection, deadlines).await?.into());
        let certified = record.judge_certificate(leaf, policy, floors)?;
        let evidence = fetch_evidence(&mut connection, &challenge.nonce, deadlines).await?;
        record.evidence = Some(evidence.into());
        let proof = record.judge_fresh(certified, policy, made)?;
        Ok((connection.fall_silent(deadlines.exchange).await?, proof))
    }
    .await;
    (Some(record), proven)
}

async fn fetch_named(connection: &mut Connection, deadlines: &Deadlines) -> Result<Bytes, ExchangeError> {
    let ask = Ask {
        step: Step::NamedEvidence,
        method: Method::GET,
        path: "/.well-known/cocoon/certificate-evidence",
        content_type: "application/octet-stream",
        body: Bytes::new(),
    };
    connection
        .exchange(ask, BUNDLE_BYTES_MAX, deadlines.exchange)
        .await
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
    nonce: &[u8],
    deadlines: &Deadlines,
) -> Result<Bytes, ExchangeError> {
    let ask = Ask {
        step: Step::Evidence,
        method: Method::POST,
        path: "/.well-known/cocoon/evidence",
        content_type: "application/octet-stream",
        body: Bytes::copy_from_slice(nonce),
    };
    connection
        .exchange(ask, FRESH_BYTES_MAX, deadlines.exchange)
        .await
}
