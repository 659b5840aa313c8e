//! The same for any Rust program: a connector for hyper-util's client, which then speaks to verified guests only.
//!
//! ```no_run
//! use std::{sync::Arc, time::Duration};
//!
//! use bytes::Bytes;
//! use cocoon::{Connector, Deadlines, Verifier};
//! use http_body_util::Empty;
//! use hyper_util::{client::legacy::Client, rt::{TokioExecutor, TokioTimer}};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let policy = cocoon_verify::Policy::parse(&std::fs::read_to_string("policy.toml")?)?;
//! let verifier = Verifier::new(policy, cocoon_verify::Floors::default(), Deadlines::default())?;
//! let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new())
//!     .pool_timer(TokioTimer::new())
//!     .pool_idle_timeout(Duration::from_secs(60))
//!     .build(Connector::new(Arc::new(verifier)));
//! let models = client.get("https://127.0.0.1:8443/v1/models".parse()?).await?;
//! println!("{}", models.status());
//! # Ok(())
//! # }
//! ```
//!
//! `client/examples/hyper_client.rs` is a whole program. Whatever takes a tower service from a [`Uri`] to a stream can
//! have it. reqwest cannot: it makes its connections itself and takes layers around its own connector only, so programs
//! with reqwest go through `cocoon proxy`, which is plain HTTP on loopback.
//!
//! A pooled connection sends nothing after [`crate::FRESH_FOR`]: such a request fails before its first byte left
//! and can be sent again, which connects anew. What a request costs has to be granted on its own connection
//! ([`crate::Purse`]), so paid requests go through [`crate::Session`] or `cocoon proxy`.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::Uri;
use hyper_util::rt::TokioIo;
use tower_service::Service;

use crate::{AttestedStream, ConnectError, Endpoint, ParseEndpointError, Verifier};

/// Opens verified connections to the host and port of a URL.
#[derive(Debug, Clone)]
pub struct Connector(Arc<Verifier>);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    /// Not `https://HOST:PORT`.
    #[error(transparent)]
    Url(#[from] ParseEndpointError),
    /// Not reached or not verified.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

impl Connector {
    /// Verifies, and remembers proofs, with `verifier`.
    pub fn new(verifier: Arc<Verifier>) -> Self {
        Self(verifier)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<AttestedStream>;
    type Error = ConnectorError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let verifier = Arc::clone(&self.0);
        Box::pin(async move {
            let endpoint = Endpoint::try_from(&uri)?;
            Ok(TokioIo::new(verifier.connect_stream(&endpoint).await?))
        })
    }
}
