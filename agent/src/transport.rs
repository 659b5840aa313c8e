//! Where bytes come from and go to: vsock in the guest, anything else in tests.
//!
//! There is no IP stack in the guest, so these two traits are the only way in or out.

use std::{future::Future, io, os::fd::AsRawFd, pin::Pin};

use cocoon_protocol::host::HOST_CID;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

/// What a peer may send to a connection before it is read; the kernel keeps it. Its own default is 256 KiB, and peers
/// are strangers. A TLS record and a half.
pub const PEER_BYTES_MAX: u64 = 32 * 1024;

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
    /// The port is taken, or the kernel has no vsock, or not this option of it.
    pub fn bind(port: u32) -> io::Result<Self> {
        let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))?;
        bound_peer_bytes(&listener)?;
        Ok(Self(listener))
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

/// Accepted connections inherit it from their listener.
#[allow(unsafe_code, reason = "nix has no socket options of vsock")]
fn bound_peer_bytes(listener: &impl AsRawFd) -> io::Result<()> {
    /// `SO_VM_SOCKETS_BUFFER_SIZE` of linux/vm_sockets.h, which libc lacks; an unsigned long long.
    const BUFFER_SIZE: libc::c_int = 0;
    let bytes = PEER_BYTES_MAX;
    // SAFETY: the kernel reads `bytes`, of the given size, during the call.
    let set = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::AF_VSOCK,
            BUFFER_SIZE,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
