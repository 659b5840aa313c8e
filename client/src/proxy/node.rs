//! One node behind the proxy: its proof, its paid connections, and whether it is to be left alone.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    Account, ConnectError, Deadlines, Endpoint, Exit, Locking, PaidSession, PayError, Proof, Purse,
    Verification, Verifier, clock,
};

/// Connections to one node, a fifth of what an agent has places for.
const CONNECTIONS_MAX: usize = 256;
/// Connections that are kept without a request: all, or each burst of requests would shake hands anew. An agent ends
/// those that it needs the places of.
const IDLE_MAX: usize = CONNECTIONS_MAX;
/// An agent closes idle connections after 90 s.
const IDLE_FOR: Duration = Duration::from_secs(60);
/// How long a node is left alone after its first failure in a row, and at most; it doubles in between.
const ALONE_FIRST: Duration = Duration::from_secs(1);
const ALONE_MAX: Duration = Duration::from_secs(60);

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    endpoint: Endpoint,
    verifier: Verifier,
    idle: Mutex<Vec<(PaidSession, Instant)>>,
    places: Arc<Semaphore>,
    outstanding: AtomicUsize,
    health: Mutex<Health>,
    account: Account,
    /// Held while a grant is locked, so that requests at the same time lock one.
    granting: tokio::sync::Mutex<()>,
}

/// What is known of a node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    /// The newest, fresh or not.
    pub(crate) proof: Option<Arc<Proof>>,
    /// Why it is left alone.
    pub(crate) fault: Option<Fault>,
    /// It signed something untrue: it is never used again.
    pub(crate) distrusted: bool,
    failures: u32,
    alone_until: Option<Instant>,
}

/// What went wrong last.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) at_s: u64,
    pub(crate) exit: Exit,
    pub(crate) text: String,
    pub(crate) verification: Option<Box<Verification>>,
}

/// Why there is no paid connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Pay(#[from] PayError),
}

/// A place on a node, for one request.
#[derive(Debug)]
pub(crate) struct Lease {
    node: Arc<Node>,
    _place: OwnedSemaphorePermit,
    /// What the request may cost.
    need_nano: u64,
}

impl Lease {
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.node.outstanding.fetch_sub(1, Ordering::Relaxed);
        self.node.account.give_back(self.need_nano);
    }
}

impl Health {
    /// Whether requests may be sent to it.
    pub(crate) fn is_usable(&self) -> bool {
        self.proof.is_some() && self.fault.is_none() && !self.distrusted
    }

    /// A failed node is tried again when its time has passed.
    fn may_be_tried(&self) -> bool {
        let rested = self.alone_until.is_none_or(|until| until <= Instant::now());
        self.fault.is_some() && !self.distrusted && rested
    }

    fn fail(&mut self, fault: Fault) {
        let alone = ALONE_FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(ALONE_MAX);
        self.failures = self.failures.saturating_add(1);
        self.alone_until = Some(Instant::now() + alone);
        self.fault = Some(fault);
    }
}

impl Node {
    pub(crate) fn new(endpoint: Endpoint, verifier: Verifier) -> Self {
        Self {
            endpoint,
            verifier,
            idle: Mutex::default(),
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            outstanding: AtomicUsize::new(0),
            health: Mutex::default(),
            account: Account::default(),
            granting: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn deadlines(&self) -> &Deadlines {
        self.verifier.deadlines()
    }

    /// Requests that run on it.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    pub(crate) fn health(&self) -> Health {
        self.lock_health().clone()
    }

    /// Sets what may be at stake with this node in all, before the first grant is locked.
    pub(crate) fn grant_share(&self, share_nano: u64) {
        self.account.allow(share_nano);
    }

    /// A place for a request, unless the node is full, and its worst case set aside.
    ///
    /// # Errors
    /// What may be spent with this node does not pay for it.
    pub(crate) fn lease(self: &Arc<Self>, need_nano: u64) -> Result<Option<Lease>, PayError> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Ok(None);
        };
        self.account.hold(need_nano)?;
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        Ok(Some(Lease {
            node: Arc::clone(self),
            _place: place,
            need_nano,
        }))
    }

    /// Verifies the node, or uses what was proven lately.
    pub(crate) async fn verify(&self) -> Result<Arc<Proof>, ConnectError> {
        let connected = self.verifier.connect(&self.endpoint).await;
        match connected {
            Ok(session) => {
                self.succeeded(session.proof());
                Ok(Arc::clone(session.proof()))
            }
            Err(error) => {
                self.refused(&error);
                Err(error)
            }
        }
    }

    /// Tries a failed node again from time to time, for ever.
    pub(crate) async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(ALONE_FIRST).await;
            let due = self.lock_health().may_be_tried();
            if due {
                // Its failure is in the node's health.
                let _ = self.verify().await;
            }
        }
    }

    /// A paid connection on which `need_nano` can be asked for: an idle one if `reuse`, or a new one. The flag
    /// tells whether it is used again; its other end may have closed it meanwhile.
    pub(crate) async fn session(
        &self,
        purse: &Purse,
        need_nano: u64,
        reuse: bool,
    ) -> Result<(PaidSession, bool), NodeError> {
        if reuse && let Some(session) = self.take_idle(need_nano) {
            return Ok((session, true));
        }
        let connected = self.verifier.connect(&self.endpoint).await;
        let mut session = connected.inspect_err(|error| self.refused(error))?;
        self.succeeded(session.proof());
        let known = self.account.current();
        if let Some(grant) = &known
            && let Some(bound) = purse.offer(&mut session, grant, need_nano, &self.account).await?
        {
            return Ok((session.open(bound), false));
        }
        let _turn = self.granting.lock().await;
        let current = self.account.current();
        // Somebody else may have locked a new one meanwhile.
        if current != known
            && let Some(grant) = &current
            && let Some(bound) = purse.offer(&mut session, grant, need_nano, &self.account).await?
        {
            return Ok((session.open(bound), false));
        }
        let now_s = clock::now_s();
        let bound = purse.bind(&mut session, need_nano, &self.account, Locking::Half, now_s);
        let bound = bound.await?;
        Ok((session.open(bound), false))
    }

    fn take_idle(&self, need_nano: u64) -> Option<PaidSession> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(session, since)| since.elapsed() < IDLE_FOR && session.is_usable());
        let fits = |session: &PaidSession| session.standing().left_nano() >= need_nano;
        // The one that was used last is the likeliest to stand still.
        let found = idle.iter().rposition(|(session, _)| fits(session))?;
        Some(idle.swap_remove(found).0)
    }

    /// Takes back a connection on which nothing is outstanding.
    pub(crate) fn give_back(&self, session: PaidSession) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && session.is_usable() {
            idle.push((session, Instant::now()));
        }
    }

    /// A receipt came: the grant is that much used.
    pub(crate) fn served(&self, paid: &PaidSession) {
        self.account.paid(paid);
    }

    pub(crate) fn succeeded(&self, proof: &Arc<Proof>) {
        let mut health = self.lock_health();
        health.proof = Some(Arc::clone(proof));
        health.fault = None;
        health.failures = 0;
        health.alone_until = None;
    }

    /// It failed at something else than its verification.
    pub(crate) fn failed(&self, text: String) {
        self.lock_health().fail(Fault {
            at_s: clock::now_s(),
            exit: Exit::Unreachable,
            text,
            verification: None,
        });
    }

    fn refused(&self, error: &ConnectError) {
        tracing::warn!(node = %self.endpoint, "not verified: {}", crate::plain(&error.to_string(), 400));
        let verification = match error {
            ConnectError::Refused { verification, .. } | ConnectError::AnotherGuest { verification } => {
                Some(verification.clone())
            }
            _ => None,
        };
        self.lock_health().fail(Fault {
            at_s: clock::now_s(),
            exit: Exit::from(error),
            text: crate::plain(&error.to_string(), 4000),
            verification,
        });
    }

    /// It signed something untrue.
    pub(crate) fn distrust(&self, text: String) {
        tracing::error!(node = %self.endpoint, "not used any more: {text}");
        let mut health = self.lock_health();
        health.distrusted = true;
        health.fail(Fault {
            at_s: clock::now_s(),
            exit: Exit::Request,
            text,
            verification: None,
        });
    }

    fn lock_health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault() -> Fault {
        Fault {
            at_s: 0,
            exit: Exit::Unreachable,
            text: String::new(),
            verification: None,
        }
    }

    #[test]
    fn a_failing_node_is_left_alone_for_longer_and_longer() {
        let mut health = Health::default();
        let mut waits = vec![];
        for _ in 0..10 {
            let before = Instant::now();
            health.fail(fault());
            waits.push((health.alone_until.unwrap() - before).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        assert!(!health.may_be_tried());
        health.alone_until = Some(Instant::now());
        assert!(health.may_be_tried());
    }

    #[test]
    fn a_node_that_lied_is_not_tried_again() {
        let mut health = Health {
            distrusted: true,
            ..Health::default()
        };
        health.fail(fault());
        health.alone_until = None;
        assert!(!health.may_be_tried() && !health.is_usable());
    }
}
