//! The stream that a verified connection is: TLS to a guest, and the proof of who it is.
//!
//! It lets nothing out once the proof is too old. An answer that is on its way may still be read to its end: what
//! it answers left while the proof was good.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use crate::{Proof, clock, proof::Moment};

/// Bytes to and from a guest that meets the policy. Made by this crate only, after verification.
#[derive(Debug)]
pub struct AttestedStream {
    tls: TlsStream<TcpStream>,
    proof: Arc<Proof>,
}

impl AttestedStream {
    pub(crate) fn new(tls: TlsStream<TcpStream>, proof: Arc<Proof>) -> Self {
        Self { tls, proof }
    }

    /// Who is at the other end.
    pub fn proof(&self) -> &Arc<Proof> {
        &self.proof
    }
}

impl AsyncRead for AttestedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buffer)
    }
}

impl AsyncWrite for AttestedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.proof.is_fresh(Moment::at(clock::now_s())) {
            let reason = "the guest's evidence is too old for anything to be sent; connect again";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason)));
        }
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// For hyper-util's pool.
impl Connection for AttestedStream {
    fn connected(&self) -> Connected {
        Connected::new().extra(Arc::clone(&self.proof))
    }
}
