//! HTTP as far as it is needed: some GET requests with one deadline for all of them and a bound for each answer.
//! Redirects are not followed, so an answer comes from the host and by the protocol that the user named.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::crypto::aws_lc_rs;
use ureq::{
    Agent,
    http::{HeaderMap, Uri, header::LOCATION},
    tls::{Certificate, RootCerts, TlsConfig},
};

/// Why an address gave nothing.
#[derive(Debug, thiserror::Error)]
#[error("cannot fetch {url}")]
pub struct HttpError {
    /// The address.
    pub url: String,
    /// Why.
    #[source]
    pub failure: HttpFailure,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum HttpFailure {
    /// All requests together took too long.
    #[error("no complete answer within {0:?}")]
    Deadline(Duration),
    /// Not 200.
    #[error("status {0}")]
    Status(u16),
    /// Somewhere else.
    #[error("status {status} to {}; redirects are not followed", to.as_deref().unwrap_or("nowhere"))]
    Redirect {
        /// Which.
        status: u16,
        /// Where.
        to: Option<String>,
    },
    /// More than any honest answer has.
    #[error("the answer is longer than {0} bytes")]
    TooLarge(usize),
    /// This machine trusts no certificate authority.
    #[error(
        "no root certificates of TLS on this machine; install them (ca-certificates), or name a PEM file in SSL_CERT_FILE"
    )]
    NoTrustAnchors,
    /// Name resolution, connection, TLS, or an answer that is not HTTP or ends early.
    #[error(transparent)]
    Transport(Box<ureq::Error>),
}

pub(super) struct Client {
    limit: Duration,
    deadline: Instant,
    /// Made when the first address needs it: plain HTTP does without root certificates.
    agents: [Option<Agent>; 2],
}

pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Client {
    /// `limit`: for all requests together, from now.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            deadline: Instant::now() + limit,
            agents: [None, None],
        }
    }

    pub(super) fn get(&mut self, url: &Uri, bytes_max: usize) -> Result<Answer, HttpError> {
        self.request(url, bytes_max).map_err(|failure| HttpError {
            url: url.to_string(),
            failure,
        })
    }

    fn request(&mut self, url: &Uri, bytes_max: usize) -> Result<Answer, HttpFailure> {
        let limit = self.limit;
        let failure = |error| failure(error, limit, bytes_max);
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(HttpFailure::Deadline(limit));
        }
        let request = self.agent(url)?.get(url).config().timeout_global(Some(left));
        let mut response = request.build().call().map_err(failure)?;
        let status = response.status();
        if status.is_redirection() {
            let to = response.headers().get(LOCATION);
            return Err(HttpFailure::Redirect {
                status: status.as_u16(),
                to: to.map(|to| printable(&String::from_utf8_lossy(to.as_bytes()))),
            });
        }
        if status != 200 {
            return Err(HttpFailure::Status(status.as_u16()));
        }
        let headers = std::mem::take(response.headers_mut());
        // One byte more than is allowed tells a full answer from one that goes on.
        let body = response.body_mut().with_config().limit(bytes_max as u64 + 1);
        let body = body.read_to_vec().map_err(failure)?;
        if body.len() > bytes_max {
            return Err(HttpFailure::TooLarge(bytes_max));
        }
        Ok(Answer { headers, body })
    }

    fn agent(&mut self, url: &Uri) -> Result<&Agent, HttpFailure> {
        let tls = url.scheme_str() == Some("https");
        let slot = &mut self.agents[usize::from(tls)];
        if slot.is_none() {
            *slot = Some(agent(tls)?);
        }
        Ok(slot.as_ref().expect("made above"))
    }
}

fn agent(tls: bool) -> Result<Agent, HttpFailure> {
    let builder = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .https_only(tls)
        .user_agent(concat!("cocoon-measure/", env!("CARGO_PKG_VERSION")));
    let builder = if tls {
        builder.tls_config(tls_config()?)
    } else {
        // Plain HTTP is for a service nearby, not for a proxy's.
        builder.proxy(None)
    };
    Ok(builder.build().new_agent())
}

/// The roots of the system, so that an organisation's own service needs no option here.
fn tls_config() -> Result<TlsConfig, HttpFailure> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(HttpFailure::NoTrustAnchors);
    }
    let roots: Vec<_> = found
        .certs
        .iter()
        .map(|der| Certificate::from_der(der).to_owned())
        .collect();
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&roots))
        .unversioned_rustls_crypto_provider(Arc::new(aws_lc_rs::default_provider()))
        .build())
}

fn failure(error: ureq::Error, limit: Duration, bytes_max: usize) -> HttpFailure {
    match error {
        ureq::Error::Timeout(_) => HttpFailure::Deadline(limit),
        ureq::Error::BodyExceedsLimit(_) => HttpFailure::TooLarge(bytes_max),
        other => HttpFailure::Transport(Box::new(other)),
    }
}

/// A terminal shows it, and it came over the network.
fn printable(text: &str) -> String {
    const CHARS_MAX: usize = 200;
    text.chars()
        .take(CHARS_MAX)
        .flat_map(char::escape_default)
        .collect()
}
