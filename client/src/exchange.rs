//! One bounded request and its answer, with a deadline.

use std::{fmt, future::Future, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};

use crate::{api, transport::Connection};

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Name lookup and TCP.
    Connect,
    /// TLS.
    Handshake,
    /// `GET /.well-known/cocoon/certificate-evidence`.
    NamedEvidence,
    /// `GET /.well-known/cocoon/endorsements`.
    Endorsements,
    /// `POST /.well-known/cocoon/evidence`.
    Evidence,
    /// `POST /v1/cocoon/grant`.
    Grant,
    /// `POST /v1/chat/completions`.
    Chat,
    /// From the request to the first text of its answer.
    FirstText,
    /// From one text of the answer to the next.
    NextText,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Handshake => "the TLS handshake",
            Self::NamedEvidence => "fetching the evidence that the certificate names",
            Self::Endorsements => "fetching endorsements",
            Self::Evidence => "asking for fresh evidence",
            Self::Grant => "offering the grant",
            Self::Chat => "the chat request",
            Self::FirstText => "the first text of the answer",
            Self::NextText => "the next text of the answer",
        })
    }
}

/// Why a request has no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The other side took too long.
    #[error("{step} took longer than {after_ms} ms")]
    Stalled {
        /// Doing what.
        step: Step,
        /// The deadline.
        after_ms: u128,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("{step} failed: the connection broke")]
    Broken {
        /// Doing what.
        step: Step,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// An answer longer than it may be.
    #[error("{step} failed: the answer is longer than {bytes_max} bytes")]
    TooLarge {
        /// Doing what.
        step: Step,
        /// The bound.
        bytes_max: usize,
    },
    /// The guest refuses.
    #[error("{step} was answered {status}: {message}")]
    Status {
        /// Doing what.
        step: Step,
        /// HTTP status.
        status: u16,
        /// Which refusal it is, for programs, if the guest says so.
        code: Option<String>,
        /// In the guest's words, made safe to print.
        message: String,
    },
    /// Understood as HTTP, not as what was asked for.
    #[error("{step} failed: {reason}")]
    Malformed {
        /// Doing what.
        step: Step,
        /// What is wrong with it.
        reason: String,
    },
}

pub(crate) async fn within<T>(
    step: Step,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, ExchangeError> {
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| ExchangeError::Stalled {
            step,
            after_ms: limit.as_millis(),
        })
}

/// A request to the guest.
pub(crate) struct Ask {
    pub(crate) step: Step,
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) body: Bytes,
}

impl<S> Connection<S> {
    /// Sends a request; the answer's body is still to be read.
    pub(crate) async fn send(&mut self, ask: Ask) -> Result<Response<Incoming>, ExchangeError> {
        let step = ask.step;
        let broken = |source| ExchangeError::Broken { step, source };
        let request = Request::builder()
            .method(ask.method)
            .uri(ask.path)
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, ask.content_type)
            .body(Full::new(ask.body))
            .map_err(|error| ExchangeError::Malformed {
                step,
                reason: error.to_string(),
            })?;
        self.http.ready().await.map_err(broken)?;
        self.http.send_request(request).await.map_err(broken)
    }

    /// Sends a request and reads its whole answer, which must be 200.
    pub(crate) async fn exchange(
        &mut self,
        ask: Ask,
        bytes_max: usize,
        limit: Duration,
    ) -> Result<Bytes, ExchangeError> {
        let step = ask.step;
        within(step, limit, async {
            let response = self.send(ask).await?;
            let status = response.status();
            if status == StatusCode::OK {
                read(step, response.into_body(), bytes_max).await
            } else {
                Err(status_error(step, status, response.into_body()).await)
            }
        })
        .await?
    }
}

/// Reads a refusal's body for its message.
pub(crate) async fn status_error(step: Step, status: StatusCode, body: Incoming) -> ExchangeError {
    let body = read(step, body, api::ERROR_BYTES_MAX).await.unwrap_or_default();
    let refusal = api::refusal(&body);
    ExchangeError::Status {
        step,
        status: status.as_u16(),
        code: refusal.code,
        message: refusal.message,
    }
}

async fn read(step: Step, body: Incoming, bytes_max: usize) -> Result<Bytes, ExchangeError> {
    match Limited::new(body, bytes_max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ExchangeError::TooLarge { step, bytes_max }),
        Err(error) => Err(match error.downcast::<hyper::Error>() {
            Ok(source) => ExchangeError::Broken {
                step,
                source: *source,
            },
            Err(other) => ExchangeError::Malformed {
                step,
                reason: other.to_string(),
            },
        }),
    }
}
