//! A host that does to the bytes between client and guest what it likes. It passes TLS records on, as the relay of
//! a real host does, but for one of them, and keeps all that it saw.
//!
//! What it does is fixed by a [`Plan`]: the same plan does the same to the same record, so a failure can be had
//! again. Bytes and places inside a record come from the plan's seed.

#![allow(dead_code, unused_imports, reason = "each test binary uses another part")]
#![allow(clippy::unwrap_used, reason = "a test's scaffolding fails the test")]

mod damage;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

pub(crate) use self::damage::{Fault, PLACES, Place, Plan, WAYS, Way};
use self::damage::{Outgoing, Step};

/// How long a delayed byte is held. Its length is of no matter: what is delayed arrives in pieces.
const DELAY: Duration = Duration::from_millis(20);

/// TLS record types (RFC 8446, 5.1).
const CHANGE_CIPHER_SPEC: u8 = 20;

/// A secret is looked for in pieces of this many bytes: by chance none of them is in a few megabytes.
const PIECE_BYTES: usize = 6;

/// What went through.
#[derive(Default)]
struct Wire {
    bytes: Vec<u8>,
    to_node: usize,
    to_client: usize,
    /// The type of the record that was tampered with.
    hit: Option<u8>,
}

/// A running host; ends when dropped.
pub(crate) struct HostileHost {
    pub(crate) address: SocketAddr,
    wire: Arc<Mutex<Wire>>,
    server: JoinHandle<()>,
}

impl Drop for HostileHost {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl HostileHost {
    /// In front of a node on this port of loopback. Without a plan it is an honest relay. The plan is for the first
    /// connection; there has to be one only.
    pub(crate) async fn before(node_port: u16, plan: Option<Plan>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let wire = Arc::<Mutex<Wire>>::default();
        let (address, kept) = (listener.local_addr().unwrap(), wire.clone());
        let server = tokio::spawn(async move {
            let (client, _) = listener.accept().await.unwrap();
            let node = TcpStream::connect(("127.0.0.1", node_port)).await.unwrap();
            let (from_client, to_client) = client.into_split();
            let (from_node, to_node) = node.into_split();
            tokio::join!(
                pass_on((Way::ToNode, plan), from_client, to_node, &kept),
                pass_on((Way::ToClient, plan), from_node, to_client, &kept),
            );
        });
        Self {
            address,
            wire,
            server,
        }
    }

    /// Records that came from client and from node.
    pub(crate) fn records(&self) -> (usize, usize) {
        let wire = self.wire.lock().unwrap();
        (wire.to_node, wire.to_client)
    }

    /// Whether the record that the plan names came, and carried something: TLS 1.3 has a record without meaning,
    /// which both sides drop (RFC 8446, D.4).
    pub(crate) fn did_harm(&self) -> bool {
        let hit = self.wire.lock().unwrap().hit;
        hit.is_some_and(|kind| kind != CHANGE_CIPHER_SPEC)
    }

    /// No piece of the secret went by in clear, in either direction.
    #[track_caller]
    pub(crate) fn assert_saw_nothing_of(&self, secret: &str) {
        let wire = self.wire.lock().unwrap();
        assert!(!wire.bytes.is_empty(), "nothing went by at all");
        for piece in secret.as_bytes().windows(PIECE_BYTES) {
            let seen = wire.bytes.windows(PIECE_BYTES).any(|bytes| bytes == piece);
            assert!(!seen, "{:?} went by in clear", String::from_utf8_lossy(piece));
        }
    }
}

async fn pass_on(
    (way, plan): (Way, Option<Plan>),
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    wire: &Mutex<Wire>,
) {
    let mut outgoing = Outgoing::new(plan.filter(|plan| plan.way == way));
    while let Ok(record) = read_record(&mut from).await {
        {
            let mut wire = wire.lock().unwrap();
            wire.bytes.extend_from_slice(&record);
            *match way {
                Way::ToNode => &mut wire.to_node,
                Way::ToClient => &mut wire.to_client,
            } += 1;
            if outgoing.is_next_hit() {
                wire.hit = record.first().copied();
            }
        }
        for step in outgoing.take(record) {
            let done = match step {
                Step::Send(bytes) => to.write_all(&bytes).await,
                Step::Wait => {
                    tokio::time::sleep(DELAY).await;
                    Ok(())
                }
                Step::Silence => std::future::pending().await,
                Step::End => Err(io::ErrorKind::ConnectionAborted.into()),
            };
            // Dropping both halves closes this direction, and nothing more is read from the other side.
            if done.is_err() {
                return;
            }
        }
    }
}

/// One TLS record, header included.
async fn read_record(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut record = vec![0; 5];
    from.read_exact(&mut record).await?;
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + length, 0);
    from.read_exact(&mut record[5..]).await?;
    Ok(record)
}
