//! Where bytes come from and go to: vsock in the guest, anything else in tests.
//!
//! There is no IP stack in the guest, so these two traits are the only way in or out.

use std::{future::Future, io, pin::Pin};

use cocoon_protocol::host::HOST_CID;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

/// A future behind a pointer, for traits used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A connection in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Any connection.
pub type BoxStream = Box<dyn Stream>;

/// Opens connections to the host.
pub trait Dial: Send + Sync {
    /// Connects to `port` on the host.
    fn dial(&self, port: u32) -> BoxFuture<'_, io::Result<BoxStream>>;
}

/// Takes connections from the host.
pub trait Listen: Send {
    /// The next connection.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<BoxStream>>;
}

/// Dials the host over vsock.
pub struct VsockDial;

impl Dial for VsockDial {
    fn dial(&self, port: u32) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async move {
            let stream = VsockStream::connect(VsockAddr::new(HOST_CID, port)).await?;
            Ok(Box::new(stream) as BoxStream)
        })
    }
}

/// Listens on vsock, for the host only.
pub struct VsockListen(VsockListener);

impl VsockListen {
    /// Binds a port of the guest.
    ///
    /// # Errors
    /// The port is taken, or the kernel has no vsock.
    pub fn bind(port: u32) -> io::Result<Self> {
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).map(Self)
    }
}

impl Listen for VsockListen {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async move {
            loop {
                let (stream, peer) = self.0.accept().await?;
                if peer.cid() == HOST_CID {
                    return Ok(Box::new(stream) as BoxStream);
                }
            }
        })
    }
}
