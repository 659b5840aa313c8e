//! One TLS session with two users: HTTP, which reads and writes it, and handlers, which ask for its keying material.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;

use crate::{closing::LastAnswer, transport::BoxStream};

/// The TLS stream, used by HTTP for its bytes and by handlers for its exporter. The lock is held only within
/// one poll.
#[derive(Clone)]
pub(crate) struct SharedTls(Arc<Mutex<TlsStream<BoxStream>>>);

impl SharedTls {
    pub(crate) fn new(tls: TlsStream<BoxStream>) -> Self {
        Self(Arc::new(Mutex::new(tls)))
    }

    /// Keying material of this session (RFC 8446, section 7.5).
    ///
    /// # Errors
    /// rustls'.
    pub(crate) fn export(&self, label: &[u8], context: Option<&[u8]>) -> Result<[u8; 32], rustls::Error> {
        let tls = self.lock();
        tls.get_ref().1.export_keying_material([0; 32], label, context)
    }

    fn lock(&self) -> MutexGuard<'_, TlsStream<BoxStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll<T>(
        &self,
        poll: impl FnOnce(Pin<&mut TlsStream<BoxStream>>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        poll(Pin::new(&mut *self.lock()))
    }
}

/// What HTTP reads and writes. A peer that takes nothing for too long is an error, so that it cannot hold its
/// place for ever.
pub(crate) struct Wire {
    tls: SharedTls,
    write_deadline: Duration,
    last_answer: Arc<LastAnswer>,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Wire {
    /// `last_answer` is told when everything is written.
    pub(crate) fn new(tls: SharedTls, write_deadline: Duration, last_answer: Arc<LastAnswer>) -> Self {
        Self {
            tls,
            write_deadline,
            last_answer,
            stalled: None,
        }
    }

    fn in_time<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let write_deadline = self.write_deadline;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(write_deadline)));
        stalled
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.tls.poll(|tls| tls.poll_read(cx, buf))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.tls.poll(|tls| tls.poll_write(cx, bytes));
        self.in_time(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.tls.poll(|tls| tls.poll_flush(cx));
        if let Poll::Ready(Ok(())) = flushed {
            self.last_answer.flushed();
        }
        self.in_time(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = self.tls.poll(|tls| tls.poll_shutdown(cx));
        self.in_time(cx, shut)
    }
}
