//! TCP to the guest's TLS port and back. The launcher sees ciphertext only.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::guest_socket::GuestSocket;

/// For each direction of a connection: a TLS record.
const COPY_BYTES: usize = 16 * 1024;

/// Each connection is two open files here and two in the vsock back end, which inherits this limit; 1024 are the rule.
const OPEN_FILES: u64 = 4096;

/// Bounds on the relay.
#[derive(Debug, Clone, Copy)]
pub struct RelayLimits {
    /// Open connections; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// A connection on which nothing moves for so long is closed. Above the longest pause between two tokens,
    /// and above the ten minutes between a client's checks.
    pub idle_max: Duration,
    /// What was read from one side is taken by the other within this, or the connection is closed: a side that
    /// neither reads nor sends must not hold its place for all of `idle_max`. Above the guest's own, a minute.
    pub write_max: Duration,
    /// The guest takes a connection within this.
    pub connect_max: Duration,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            // More than the guest has places for (1,280): who has to go is the guest's to say, which knows who pays.
            connections_max: 1536,
            idle_max: Duration::from_secs(15 * 60),
            write_max: Duration::from_secs(90),
            connect_max: Duration::from_secs(10),
        }
    }
}

/// Lets this process and those that it starts have as many open files as the relay needs, or as they may.
///
/// # Errors
/// The kernel's.
pub fn allow_open_files() -> io::Result<()> {
    let (now, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(
        Resource::RLIMIT_NOFILE,
        now.max(OPEN_FILES.min(most)),
        most,
    )?)
}

/// What the relay did so far.
#[derive(Debug, Default)]
pub struct RelayCounters {
    /// Connections now open.
    pub open: AtomicU64,
    /// Connections ever taken.
    pub total: AtomicU64,
}

/// Relays until it is dropped; the open connections end with it.
pub async fn relay(
    listener: TcpListener,
    guest: GuestSocket,
    port: u32,
    limits: RelayLimits,
    counters: Arc<RelayCounters>,
) {
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let (client, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: let some connections end first.
                    tracing::warn!(%error, "cannot take a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        let (guest, counters) = (guest.clone(), counters.clone());
        connections.spawn(async move {
            counters.total.fetch_add(1, Ordering::Relaxed);
            counters.open.fetch_add(1, Ordering::Relaxed);
            carry(client, peer, slot, &guest, port, limits).await;
            counters.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn carry(
    client: TcpStream,
    peer: SocketAddr,
    _slot: OwnedSemaphorePermit,
    guest: &GuestSocket,
    port: u32,
    limits: RelayLimits,
) {
    let _ = client.set_nodelay(true);
    let inside = match timeout(limits.connect_max, guest.connect(port)).await {
        Ok(Ok(inside)) => inside,
        Ok(Err(error)) => return tracing::warn!(%peer, %error, "the guest does not take a connection"),
        Err(_) => return tracing::warn!(%peer, "the guest does not take a connection in time"),
    };
    if let Err(error) = copy_both(client, inside, limits).await {
        tracing::debug!(%peer, %error, "a connection ended");
    }
}

/// Copies until either side closes, because a half-close does not survive every vsock backend, until one takes
/// nothing, or until nothing moves.
async fn copy_both(
    client: impl AsyncRead + AsyncWrite,
    guest: impl AsyncRead + AsyncWrite,
    limits: RelayLimits,
) -> io::Result<()> {
    let activity = Activity::new();
    let (client_reader, client_writer) = tokio::io::split(client);
    let (guest_reader, guest_writer) = tokio::io::split(guest);
    tokio::select! {
        ended = pump(client_reader, guest_writer, &activity, limits.write_max) => ended,
        ended = pump(guest_reader, client_writer, &activity, limits.write_max) => ended,
        () = activity.idle_for(limits.idle_max) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    activity: &Activity,
    write_max: Duration,
) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let bytes = from.read(&mut buffer).await?;
        if bytes == 0 {
            return to.shutdown().await;
        }
        activity.touch();
        let write = async {
            to.write_all(&buffer[..bytes]).await?;
            to.flush().await
        };
        timeout(write_max, write).await??;
        activity.touch();
    }
}

/// When bytes last moved, in either direction.
struct Activity {
    start: Instant,
    last_ms: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            last_ms: AtomicU64::new(0),
        }
    }

    fn touch(&self) {
        let elapsed_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(elapsed_ms, Ordering::Relaxed);
    }

    async fn idle_for(&self, limit: Duration) {
        loop {
            let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
            let end = self.start + last + limit;
            if Instant::now() >= end {
                return;
            }
            sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{sync::mpsc::Receiver, task::JoinHandle};

    use super::*;
    use crate::guest_socket::tests::fake_guest;

    struct Fixture {
        address: SocketAddr,
        guest: Receiver<(u32, tokio::net::UnixStream)>,
        relay: JoinHandle<()>,
        counters: Arc<RelayCounters>,
        _dir: tempfile::TempDir,
    }

    async fn start(limits: RelayLimits) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("guest");
        let guest = fake_guest(&base);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counters = Arc::<RelayCounters>::default();
        let relaying = relay(
            listener,
            GuestSocket::Backend { base },
            443,
            limits,
            counters.clone(),
        );
        Fixture {
            address,
            guest,
            relay: tokio::spawn(relaying),
            counters,
            _dir: dir,
        }
    }

    #[tokio::test]
    async fn large_transfers_in_both_directions_arrive_whole() {
        const BYTES: usize = 3_000_000;
        let mut fixture = start(RelayLimits::default()).await;
        let client = TcpStream::connect(fixture.address).await.unwrap();
        let (port, inside) = fixture.guest.recv().await.unwrap();
        assert_eq!(port, 443);
        let send_and_receive = |value: u8, stream: Box<dyn crate::guest_socket::GuestIo>| async move {
            let (mut reader, mut writer) = tokio::io::split(stream);
            let sending = tokio::spawn(async move {
                writer.write_all(&vec![value; BYTES]).await.unwrap();
                writer
            });
            let mut received = vec![0; BYTES];
            reader.read_exact(&mut received).await.unwrap();
            let writer = sending.await.unwrap();
            (received, reader.unsplit(writer))
        };
        let ((to_client, client), (to_guest, inside)) = tokio::join!(
            send_and_receive(1, Box::new(client)),
            send_and_receive(2, Box::new(inside))
        );
        assert!(to_client.iter().all(|byte| *byte == 2) && to_guest.iter().all(|byte| *byte == 1));
        assert_eq!(fixture.counters.open.load(Ordering::Relaxed), 1);
        drop((client, inside));
    }

    #[tokio::test]
    async fn each_side_sees_the_other_close() {
        let mut fixture = start(RelayLimits::default()).await;
        for client_closes in [true, false] {
            let mut client = TcpStream::connect(fixture.address).await.unwrap();
            let (_, mut inside) = fixture.guest.recv().await.unwrap();
            if client_closes {
                drop(client);
                assert_eq!(inside.read(&mut [0; 8]).await.unwrap(), 0);
            } else {
                inside.write_all(b"bye").await.unwrap();
                drop(inside);
                let mut received = vec![];
                (&mut client).take(8).read_to_end(&mut received).await.unwrap();
                assert_eq!(received, b"bye");
            }
        }
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed() {
        let limits = RelayLimits {
            idle_max: Duration::from_millis(50),
            ..RelayLimits::default()
        };
        let mut fixture = start(limits).await;
        let mut client = TcpStream::connect(fixture.address).await.unwrap();
        let _inside = fixture.guest.recv().await.unwrap();
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_dropped_long_before_it_counts_as_idle() {
        let limits = RelayLimits {
            write_max: Duration::from_millis(200),
            ..RelayLimits::default()
        };
        let mut fixture = start(limits).await;
        let _client = TcpStream::connect(fixture.address).await.unwrap();
        let (_, mut inside) = fixture.guest.recv().await.unwrap();
        // Fills what the kernel buffers, then waits for the relay to give up.
        let sending = async { while inside.write_all(&[0; COPY_BYTES]).await.is_ok() {} };
        let ended = timeout(Duration::from_secs(20), sending).await;
        assert!(ended.is_ok(), "the connection is still there");
    }

    #[tokio::test]
    async fn connections_over_the_cap_wait_for_a_free_slot() {
        let limits = RelayLimits {
            connections_max: 1,
            ..RelayLimits::default()
        };
        let mut fixture = start(limits).await;
        let first = TcpStream::connect(fixture.address).await.unwrap();
        let _first_inside = fixture.guest.recv().await.unwrap();
        let _second = TcpStream::connect(fixture.address).await.unwrap();
        // As much time as a relay without the cap would need.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert!(fixture.guest.try_recv().is_err(), "the second waits");
        drop(first);
        fixture.guest.recv().await.expect("the second gets the free slot");
    }

    #[tokio::test]
    async fn stopping_the_relay_closes_its_connections() {
        let mut fixture = start(RelayLimits::default()).await;
        let mut client = TcpStream::connect(fixture.address).await.unwrap();
        let (_, _inside) = fixture.guest.recv().await.unwrap();
        fixture.relay.abort();
        assert_eq!(client.read(&mut [0; 8]).await.unwrap_or(0), 0);
    }
}
