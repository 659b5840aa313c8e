//! vsock to one guest, through the host kernel or through a vhost-user backend; callers cannot tell.
//!
//! The backend follows the hybrid convention of Firecracker: a guest's connection to host port P arrives at
//! the Unix socket `U_P`; the host reaches guest port P by connecting to `U` and writing `CONNECT P\n`, which
//! is answered `OK n\n`. It does not propagate a half-close.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

/// `OK`, a port number, a line feed.
const REPLY_BYTES_MAX: usize = 32;

/// How the guest is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestSocket {
    /// AF_VSOCK of the host's kernel.
    Kernel {
        /// The guest's address.
        cid: u32,
    },
    /// Unix sockets of a vhost-user backend.
    Backend {
        /// `U` above.
        base: PathBuf,
    },
}

/// A connection with the guest, in either direction.
pub trait GuestIo: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> GuestIo for T {}

/// A connection with the guest, in either direction.
pub type GuestStream = Box<dyn GuestIo>;

impl GuestSocket {
    /// Takes connections of the guest to a host port.
    ///
    /// # Errors
    /// `AddrInUse` if somebody else has the port.
    pub fn listen(&self, port: u32) -> io::Result<GuestListener> {
        match self {
            Self::Kernel { cid } => {
                let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))?;
                Ok(GuestListener::Kernel { listener, cid: *cid })
            }
            Self::Backend { base } => {
                let path = with_port(base, port);
                remove_stale(&path)?;
                UnixListener::bind(path).map(GuestListener::Backend)
            }
        }
    }

    /// Connects to a guest port. The caller sets the deadline.
    ///
    /// # Errors
    /// Nobody listens, or the guest is gone.
    pub async fn connect(&self, port: u32) -> io::Result<GuestStream> {
        match self {
            Self::Kernel { cid } => {
                let stream = VsockStream::connect(VsockAddr::new(*cid, port)).await?;
                Ok(Box::new(stream))
            }
            Self::Backend { base } => {
                let mut stream = UnixStream::connect(base).await?;
                stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
                read_ok(&mut stream).await?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// Takes connections of the guest to one host port.
#[derive(Debug)]
pub enum GuestListener {
    /// On AF_VSOCK.
    Kernel {
        /// Hears every guest of this host.
        listener: VsockListener,
        /// The only guest that is let in.
        cid: u32,
    },
    /// On the backend's Unix socket.
    Backend(UnixListener),
}

impl GuestListener {
    /// The next connection.
    ///
    /// # Errors
    /// Those of accept.
    pub async fn accept(&mut self) -> io::Result<GuestStream> {
        match self {
            Self::Kernel { listener, cid } => loop {
                let (stream, peer) = listener.accept().await?;
                if peer.cid() == *cid {
                    return Ok(Box::new(stream));
                }
                tracing::warn!(
                    "a connection of another virtual machine (CID {}) was refused",
                    peer.cid()
                );
            },
            Self::Backend(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Box::new(stream))
            }
        }
    }
}

fn with_port(base: &Path, port: u32) -> PathBuf {
    let mut name = base.as_os_str().to_owned();
    name.push(format!("_{port}"));
    name.into()
}

/// Removes the socket that a killed process left behind. The caller holds the lock of the state directory.
///
/// # Errors
/// Those of the file system.
pub fn remove_stale(socket: &Path) -> io::Result<()> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads the backend's reply byte by byte: what follows belongs to the guest.
async fn read_ok(stream: &mut UnixStream) -> io::Result<()> {
    let mut reply = vec![];
    while reply.last() != Some(&b'\n') {
        if reply.len() == REPLY_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match stream.read_u8().await {
            Ok(byte) => reply.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Err(error) => return Err(error),
        }
    }
    if reply.starts_with(b"OK ") {
        Ok(())
    } else {
        Err(io::ErrorKind::ConnectionRefused.into())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::io::AsyncBufReadExt as _;

    use super::*;

    /// Plays backend and guest: each connection to `base` is answered and handed out with its port.
    pub(crate) fn fake_guest(base: &Path) -> tokio::sync::mpsc::Receiver<(u32, UnixStream)> {
        let listener = UnixListener::bind(base).unwrap();
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = tokio::io::BufReader::with_capacity(1, stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                let port = line.trim().strip_prefix("CONNECT ").unwrap().parse().unwrap();
                let mut stream = stream.into_inner();
                stream.write_all(format!("OK {port}\n").as_bytes()).await.unwrap();
                if sender.send((port, stream)).await.is_err() {
                    return;
                }
            }
        });
        receiver
    }

    #[tokio::test]
    async fn both_directions_carry_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("guest");
        let mut guest = fake_guest(&base);
        let socket = GuestSocket::Backend { base: base.clone() };

        let mut out = socket.connect(443).await.unwrap();
        let (port, mut inside) = guest.recv().await.unwrap();
        assert_eq!(port, 443);
        out.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 4];
        inside.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");

        let mut listener = socket.listen(7000).unwrap();
        let mut inside = UnixStream::connect(dir.path().join("guest_7000")).await.unwrap();
        inside.write_all(b"pong").await.unwrap();
        listener
            .accept()
            .await
            .unwrap()
            .read_exact(&mut bytes)
            .await
            .unwrap();
        assert_eq!(&bytes, b"pong");
        drop(listener);
        socket.listen(7000).expect("a stale socket is replaced");
    }

    #[tokio::test]
    async fn a_port_nobody_listens_on_and_an_endless_reply_are_errors() {
        for reply in [b"".as_slice(), b"NO\n", &[b'O'; 100]] {
            let dir = tempfile::tempdir().unwrap();
            let base = dir.path().join("guest");
            let listener = UnixListener::bind(&base).unwrap();
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 32]).await;
                let _ = stream.write_all(reply).await;
            });
            assert!(GuestSocket::Backend { base }.connect(443).await.is_err());
        }
    }
}
