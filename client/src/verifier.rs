//! Connects to guests and remembers which TLS keys were proven lately.
//!
//! The first connection to a key costs a quote, those of the next ten minutes a plain TLS handshake: rustls has
//! checked CertificateVerify, so the peer holds the key, and the key was proven to be a guest's. Many first
//! connections at once wait for one quote.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use cocoon_evidence::Digest32;
use cocoon_verify::Policy;
use rustls::ClientConfig;

use crate::{
    Accepted, AttestedStream, ConnectError, Deadlines, Endpoint, Proof, Session, Step, clock,
    connect::prove,
    exchange::within,
    proof::Moment,
    transport::{Dialled, tls_config},
};

/// Keys that are remembered. A guest has one at a time; over this the oldest is forgotten, which costs a quote.
pub const PROOFS_MAX: usize = 64;

/// Whoever waits for another's quote waits as long as that may take: the exchanges for evidence that the certificate
/// names, for endorsements and for fresh evidence, and until all that was asked has left.
const TURN_EXCHANGES: u32 = 4;

/// A policy, and what was proven under it.
#[derive(Debug)]
pub struct Verifier {
    policy: Policy,
    accepted: Accepted,
    deadlines: Deadlines,
    tls: Arc<ClientConfig>,
    proofs: Mutex<Vec<Arc<Proof>>>,
    turns: Mutex<HashMap<Digest32, Weak<tokio::sync::Mutex<()>>>>,
}

impl Verifier {
    /// `accepted` is what the caller remembers, [`cocoon_verify::Floors`] for example; it rises with what is accepted.
    ///
    /// # Errors
    /// [`ConnectError::Tls`].
    pub fn new(
        policy: Policy,
        accepted: impl Into<Accepted>,
        deadlines: Deadlines,
    ) -> Result<Self, ConnectError> {
        Ok(Self {
            policy,
            accepted: accepted.into(),
            deadlines,
            tls: Arc::new(tls_config()?),
            proofs: Mutex::default(),
            turns: Mutex::default(),
        })
    }

    /// As they were given.
    pub fn deadlines(&self) -> &Deadlines {
        &self.deadlines
    }

    /// A session with a verified guest.
    ///
    /// # Errors
    /// See [`ConnectError`]; until this returns, no byte beyond requests for evidence is sent.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<Session, ConnectError> {
        let (dialled, proof) = self.dial(endpoint).await?;
        Session::over(dialled, proof, self.deadlines).await
    }

    /// A stream to a verified guest, for whoever speaks HTTP/1.1 on their own.
    ///
    /// # Errors
    /// See [`ConnectError`]; until this returns, no byte beyond requests for evidence is sent.
    pub async fn connect_stream(&self, endpoint: &Endpoint) -> Result<AttestedStream, ConnectError> {
        let (dialled, proof) = self.dial(endpoint).await?;
        Ok(AttestedStream::new(dialled.into_stream(), proof))
    }

    async fn dial(&self, endpoint: &Endpoint) -> Result<(Dialled, Arc<Proof>), ConnectError> {
        let dialled = Dialled::dial(endpoint, &self.tls, &self.deadlines).await?;
        let certificate = Digest32::of(dialled.leaf_der()?);
        if let Some(proof) = self.remembered(&certificate) {
            return Ok((dialled, proof));
        }
        let turn = self.turn(certificate);
        let _turn = within(
            Step::Evidence,
            self.deadlines.exchange * TURN_EXCHANGES,
            turn.lock(),
        )
        .await?;
        // Somebody else may have proven it meanwhile.
        if let Some(proof) = self.remembered(&certificate) {
            return Ok((dialled, proof));
        }
        let now_s = clock::now_s();
        let (policy, deadlines, floors) = (&self.policy, &self.deadlines, self.accepted.floors());
        let (_, proven) = prove(dialled, endpoint, policy, floors, now_s, deadlines).await;
        let (dialled, proof) = proven?;
        let proof = Arc::new(proof);
        self.accepted.raise(policy, &proof).await?;
        self.remember(Arc::clone(&proof));
        Ok((dialled, proof))
    }

    /// The newest proof of every key that is remembered, fresh or not.
    pub fn proofs(&self) -> Vec<Arc<Proof>> {
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remembered(&self, certificate: &Digest32) -> Option<Arc<Proof>> {
        let now = Moment::at(clock::now_s());
        let proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        let known = proofs.iter().find(|proof| proof.certificate() == certificate);
        known.filter(|proof| proof.is_fresh(now)).cloned()
    }

    /// The newest stands last.
    fn remember(&self, proof: Arc<Proof>) {
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.retain(|old| old.certificate() != proof.certificate());
        if proofs.len() == PROOFS_MAX {
            proofs.remove(0);
        }
        proofs.push(proof);
    }

    /// One proof at a time for each key; keys do not wait for each other.
    fn turn(&self, certificate: Digest32) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(&certificate).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(certificate, Arc::downgrade(&turn));
        turn
    }
}
