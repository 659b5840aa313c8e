//! TCP and TLS 1.3 to a guest ([`Dialled`]), and HTTP/1.1 inside ([`Connection`]). A connection over a bare TLS stream
//! is encrypted to *somebody*; who that is [`crate::Verifier`] finds out, which then makes one over an
//! [`AttestedStream`](crate::AttestedStream). HTTP is spoken only where something is asked: a connection to a key that
//! is proven is a TLS handshake and nothing else.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use cocoon_evidence::{FreshBinding, NONCE_BYTES};
use cocoon_protocol::SessionProof;
use http_body_util::Full;
use hyper::client::conn::http1::{self, Parts};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    CertificateFault, ConnectError, Endpoint, ExchangeError, Step, certificate::FormVerifier,
    exchange::within,
};

/// HTTP response heads beyond these are refused by hyper.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 64;

/// How long each step may take. A guest under software emulation needs seconds for a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Looking up the name and connecting.
    pub connect: Duration,
    /// TLS handshake.
    pub handshake: Duration,
    /// One request without generation, from its first to the last byte of its answer.
    pub exchange: Duration,
    /// From the request to the first text of its answer, queueing included; of an answer that is streamed.
    pub first_text: Duration,
    /// From one text of an answer to the next, or to its receipt. Padding and other bytes that bring no text do not
    /// count.
    pub next_text: Duration,
    /// A whole answer.
    pub answer: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            handshake: Duration::from_secs(20),
            exchange: Duration::from_secs(30),
            first_text: Duration::from_secs(180),
            next_text: Duration::from_secs(60),
            answer: Duration::from_secs(3600),
        }
    }
}

/// Runs the HTTP connection; ends with it. Its result is the stream, if the connection ended in order.
#[derive(Debug)]
struct Driver<S>(JoinHandle<Option<Parts<TokioIo<S>>>>);

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A TLS session with a holder of the private key of its certificate, on which nothing is under way.
#[derive(Debug)]
pub(crate) struct Dialled {
    tls: TlsStream<TcpStream>,
    /// As requests name it.
    host: String,
}

/// What fresh evidence for one TLS session is held against.
#[derive(Debug, Clone)]
pub(crate) struct Challenge {
    /// The peer's certificate.
    pub(crate) leaf_der: Vec<u8>,
    /// Made for this session, after its handshake.
    pub(crate) nonce: [u8; NONCE_BYTES],
    /// Goes into [`FreshBinding`].
    pub(crate) exporter: [u8; 32],
}

impl Dialled {
    pub(crate) async fn dial(
        endpoint: &Endpoint,
        tls: &Arc<ClientConfig>,
        deadlines: &Deadlines,
    ) -> Result<Self, ConnectError> {
        let address = (endpoint.host(), endpoint.port());
        let tcp = within(Step::Connect, deadlines.connect, TcpStream::connect(address))
            .await?
            .map_err(|source| ConnectError::Unreachable {
                endpoint: endpoint.to_string(),
                source,
            })?;
        // Nothing but latency is at stake; a kernel that refuses it is no reason to stop.
        let _ = tcp.set_nodelay(true);
        let handshake = TlsConnector::from(Arc::clone(tls)).connect(endpoint.server_name(), tcp);
        let tls = within(Step::Handshake, deadlines.handshake, handshake)
            .await?
            .map_err(handshake_error)?;
        let host = endpoint.to_string().trim_start_matches("https://").to_owned();
        Ok(Self { tls, host })
    }

    /// The peer's certificate, DER.
    pub(crate) fn leaf_der(&self) -> Result<&[u8], CertificateFault> {
        let certificates = self.tls.get_ref().1.peer_certificates();
        let leaf = certificates.and_then(<[_]>::first);
        leaf.map(AsRef::as_ref).ok_or(CertificateFault::Malformed)
    }

    /// A new one, for this session.
    pub(crate) fn challenge(&self) -> Result<Challenge, ConnectError> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|error| ConnectError::Random(error.into()))?;
        Ok(Challenge {
            leaf_der: self.leaf_der()?.to_vec(),
            nonce,
            exporter: self.export(FreshBinding::EXPORTER_LABEL, Some(&nonce))?,
        })
    }

    /// Goes into [`SessionProof`].
    pub(crate) fn session_exporter(&self) -> Result<[u8; 32], ConnectError> {
        self.export(SessionProof::EXPORTER_LABEL, None)
    }

    fn export(&self, label: &[u8], context: Option<&[u8]>) -> Result<[u8; 32], ConnectError> {
        let session = self.tls.get_ref().1;
        let exported = session.export_keying_material([0; 32], label, context);
        exported.map_err(ConnectError::Tls)
    }

    /// The stream itself, for whoever speaks HTTP on their own.
    pub(crate) fn into_stream(self) -> TlsStream<TcpStream> {
        self.tls
    }

    /// HTTP over the stream, wrapped.
    pub(crate) async fn speak<S>(
        self,
        wrap: impl FnOnce(TlsStream<TcpStream>) -> S,
    ) -> Result<Connection<S>, ExchangeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (http, driver) = speak_http(wrap(self.tls)).await?;
        Ok(Connection {
            http,
            host: self.host,
            driver,
        })
    }
}

/// HTTP over a TLS session.
#[derive(Debug)]
pub(crate) struct Connection<S = TlsStream<TcpStream>> {
    pub(crate) http: http1::SendRequest<Full<Bytes>>,
    pub(crate) host: String,
    driver: Driver<S>,
}

impl Connection {
    /// The same TLS session without HTTP. There must be no request on its way.
    pub(crate) async fn fall_silent(self, limit: Duration) -> Result<Dialled, ExchangeError> {
        let tls = reclaim(self.http, self.driver, limit).await?;
        Ok(Dialled { tls, host: self.host })
    }
}

async fn speak_http<S>(stream: S) -> Result<(http1::SendRequest<Full<Bytes>>, Driver<S>), ExchangeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (http, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| ExchangeError::Broken {
            step: Step::Handshake,
            source,
        })?;
    // An error surfaces at the request that it breaks.
    let driver = tokio::spawn(async move { connection.without_shutdown().await.ok() });
    Ok((http, Driver(driver)))
}

/// Ends HTTP and takes the stream back.
async fn reclaim<S>(
    http: http1::SendRequest<Full<Bytes>>,
    mut driver: Driver<S>,
    limit: Duration,
) -> Result<S, ExchangeError> {
    // The driver ends when nobody can send a request any more. How soon is not left to the node: everybody else who
    // connects to its key waits until this connection is done.
    drop(http);
    let parts = within(Step::Evidence, limit, &mut driver.0).await?.ok().flatten();
    match parts {
        // Bytes that nobody asked for would be taken for the answer to the next request.
        Some(parts) if parts.read_buf.is_empty() => Ok(parts.io.into_inner()),
        _ => Err(ExchangeError::Malformed {
            step: Step::Evidence,
            reason: "the node closed the connection, or sent more than it was asked for".into(),
        }),
    }
}

/// How every TLS session with a guest is made.
pub(crate) fn tls_config() -> Result<ClientConfig, ConnectError> {
    // A recorded conversation stays closed to a quantum computer where the guest can do ML-KEM too.
    let provider = Arc::new(CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    });
    let no_p256 = || rustls::Error::General("the crypto provider has no ECDSA P-256".into());
    let verifier = FormVerifier::new(provider.clone())
        .ok_or_else(no_p256)
        .map_err(ConnectError::Tls)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ConnectError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // Every session is verified from the start: none is resumed, nothing is sent early.
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn handshake_error(error: io::Error) -> ConnectError {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => {
            match other.0.downcast_ref::<CertificateFault>() {
                // The fault sits behind an Arc; its kinds that occur here carry no source and can be said again.
                Some(fault) => ConnectError::CertificateForm(fault.to_string()),
                None => ConnectError::Handshake(error),
            }
        }
        Some(_) => ConnectError::Handshake(error),
        None => ConnectError::Dropped(error),
    }
}

#[cfg(test)]
mod tests {
    use hyper::{Request, header::HOST};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Everybody else who connects to its key waits meanwhile.
    #[tokio::test]
    async fn a_node_that_answers_and_takes_no_more_of_the_request_is_given_up() {
        let (ours, mut node) = tokio::io::duplex(64);
        let (mut http, driver) = speak_http(ours).await.unwrap();
        let request = Request::post("/")
            .header(HOST, "node")
            .body(Full::from(vec![0; 4096]))
            .unwrap();
        let answer = async {
            node.read_exact(&mut [0; 16]).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            node.write_all(answer).await.unwrap();
        };
        tokio::join!(http.send_request(request), answer).0.unwrap();
        let error = reclaim(http, driver, Duration::from_millis(200))
            .await
            .unwrap_err();
        let stalled = matches!(
            error,
            ExchangeError::Stalled {
                step: Step::Evidence,
                after_ms: 200
            }
        );
        assert!(stalled, "{error:?}");
    }
}
