//! What a node does otherwise than an agent would.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use cocoon_evidence::{FreshBinding, FreshEvidence};
use cocoon_protocol::Receipt;
use ed25519_dalek::SigningKey;
use hyper::StatusCode;
use tokio::sync::{Semaphore, mpsc};

use super::Guest;

/// How the node answers one of the requests for evidence.
#[derive(Default)]
pub(crate) enum Reply {
    /// As an agent does.
    #[default]
    Honest,
    /// These bytes.
    Bytes(Vec<u8>),
    /// As an agent does, with the bytes changed.
    Changed(Box<dyn Fn(Vec<u8>) -> Vec<u8> + Send + Sync>),
    /// Never.
    Stall,
    /// With HTTP 500.
    Error,
}

/// What the node does with an answer and its receipt.
#[derive(Default)]
pub(crate) struct ChatScript {
    /// Changes the receipt before it is signed.
    pub(crate) change: Option<fn(&mut Receipt)>,
    /// Signs in the guest's stead.
    pub(crate) forger: Option<SigningKey>,
    /// Says this instead of [`ANSWER`].
    pub(crate) answer: Option<[&'static str; 3]>,
    /// The text that the client gets is not the one in the receipt.
    pub(crate) other_text: bool,
    /// Ends the stream before the receipt.
    pub(crate) cut: bool,
    /// Breaks the connection after so many pieces.
    pub(crate) break_after: Option<usize>,
    /// Sends a piece only when this gives a permit for it.
    pub(crate) gate: Option<Arc<Semaphore>>,
    /// Refuses with this status.
    pub(crate) refuse: Option<StatusCode>,
    /// Refuses longer conversations, as a guest does whose model's context is full.
    pub(crate) messages_max: Option<usize>,
    /// Says that it refuses them for another reason.
    pub(crate) refusal_code: Option<&'static str>,
}

/// An answer byte by byte, HTTP's framing included, so that it can lie about lengths.
pub(crate) struct Lie {
    /// The request that is answered so, as `METHOD /path`; the others are answered as by an agent.
    pub(crate) to: &'static str,
    /// What an agent would answer goes first.
    pub(crate) after_the_truth: bool,
    pub(crate) bytes: Vec<u8>,
    pub(crate) then: Then,
}

/// What follows a [`Lie`].
#[derive(Clone, Copy)]
pub(crate) enum Then {
    /// The connection is closed.
    Close,
    /// Nothing: the connection stays open.
    Hold,
    /// These bytes, again and again.
    Flood(&'static [u8]),
    /// The same, a little later each time.
    Trickle(&'static [u8]),
}

/// Makes fresh evidence out of what was asked for.
pub(crate) type Fresh = Box<dyn Fn(&mut Guest, FreshBinding<'_>) -> FreshEvidence + Send + Sync>;

/// What the node does.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) named_evidence: Reply,
    pub(crate) endorsements: Reply,
    pub(crate) evidence: Reply,
    /// Answers for fresh evidence in the guest's stead.
    pub(crate) evidence_guest: Option<Guest>,
    /// Answers for fresh evidence otherwise.
    pub(crate) fresh: Option<Fresh>,
    pub(crate) chat: ChatScript,
    /// Takes no grant.
    pub(crate) refuses_grants: bool,
    /// Says, when a grant is shown once more, that all of it is used.
    pub(crate) uses_grants_up: bool,
    /// Never answers the handshake.
    pub(crate) stall_handshake: bool,
    pub(crate) lie: Option<Lie>,
}

/// A body whose pieces come from elsewhere.
pub(crate) struct Piped(mpsc::UnboundedReceiver<io::Result<Bytes>>);

impl Piped {
    pub(super) fn whole(bytes: Bytes) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let _ = sender.send(Ok(bytes));
        Self(receiver)
    }

    /// Sends the pieces as the script says.
    pub(super) fn script(pieces: Vec<String>, script: &ChatScript) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (gate, break_after) = (script.gate.clone(), script.break_after);
        tokio::spawn(async move {
            for (index, piece) in pieces.into_iter().enumerate() {
                if let Some(gate) = &gate {
                    gate.acquire().await.unwrap().forget();
                }
                if break_after == Some(index) {
                    let _ = sender.send(Err(io::ErrorKind::BrokenPipe.into()));
                    return;
                }
                let _ = sender.send(Ok(piece.into()));
            }
        });
        Self(receiver)
    }
}

impl hyper::body::Body for Piped {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<hyper::body::Frame<Bytes>>>> {
        let piece = self.0.poll_recv(cx);
        piece.map(|piece| piece.map(|piece| piece.map(hyper::body::Frame::data)))
    }
}
