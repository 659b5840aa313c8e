//! What the host does for the guest, on vsock port [`HOST_PORT`]: the launch document, notes on the boot,
//! lines of credit, and the journal of what was served.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cocoon_evidence::Digest32;
use cocoon_protocol::{
    FrameError, Grant, NetworkId, Prices, SignedGrant, Voucher,
    host::{FromHost, HOST_PORT, SETTLEMENT_LEAD, Stage, ToHost, UsageRecord},
    read_frame_async, write_frame_async,
};
use cocoon_settlement::GrantState;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};

use crate::{
    guest_socket::{GuestListener, GuestStream},
    journal::{Journal, Seen, SharedJournal},
    settler::{Chain, Settler, is_past},
};

/// The agent needs a handful of connections.
const CONNECTIONS_MAX: usize = 32;

/// The chain answers within this, or the client is told to try again. Less than the 10 s after which the agent
/// gives up on our answer: else the client would never hear why.
const CHAIN_LIMIT: Duration = Duration::from_secs(8);

/// Grants with credit at the same time. Each is locked on chain for this node, and the agent keeps no more. Where there
/// is no room for another one, those that pay nothing any more are forgotten.
const GRANTED_MAX: usize = 65_536;

/// A grant that expires sooner is not served: what is asked for now has to end, and then to be settled.
const EXPIRY_MARGIN_S: u64 = 120 + SETTLEMENT_LEAD.as_secs();

/// What the guest reports about its boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootEvent {
    /// It reached a stage.
    Stage {
        /// Which.
        stage: Stage,
        /// Milliseconds since its kernel started.
        uptime_ms: u64,
    },
    /// It gives up.
    Failed {
        /// In the agent's words.
        reason: String,
    },
}

/// The services of one node.
pub struct Services<C> {
    /// Raw bytes, as predicted from.
    pub document: Vec<u8>,
    /// Makes the collateral anew, because it ages.
    pub endorsements: Box<dyn Fn() -> Result<Vec<u8>, String> + Send + Sync>,
    /// Where news of the boot go.
    pub boot: mpsc::Sender<BootEvent>,
    /// What is owed.
    pub journal: SharedJournal,
    /// Who collects it.
    pub settler: Settler,
    /// Where grants are looked up.
    pub chain: C,
    /// The node's own terms.
    pub terms: Terms,
    /// Grants of this run with credit. What the chain showed of one holds until it expires; records on others are not
    /// stored.
    pub granted: Mutex<HashMap<Digest32, Grant>>,
}

/// What a grant has to agree with for the host to have it served.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The chain that it is settled on.
    pub network: NetworkId,
    /// Who is paid.
    pub payout_address: cocoon_protocol::AccountAddress,
    /// At which prices.
    pub prices: Prices,
}

impl<C: Chain> Services<C> {
    /// Serves the guest's connections until it is dropped.
    pub async fn serve(self: Arc<Self>, mut listener: GuestListener) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            while connections.try_join_next().is_some() {}
            match listener.accept().await {
                Ok(stream) => {
                    let services = self.clone();
                    connections.spawn(async move {
                        let _slot = slot;
                        services.converse(stream).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take the guest's connection to port {HOST_PORT}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn converse(&self, mut stream: GuestStream) {
        loop {
            let request = match read_frame_async::<ToHost>(&mut stream).await {
                Ok(request) => request,
                Err(FrameError::Closed) => return,
                Err(error) => return tracing::warn!(%error, "the guest's request cannot be read"),
            };
            let answer = self.answer(request).await;
            if let Err(error) = write_frame_async(&mut stream, &answer).await {
                return tracing::warn!(%error, "the guest does not take an answer");
            }
        }
    }

    async fn answer(&self, request: ToHost) -> FromHost {
        match request {
            ToHost::Launch => match (self.endorsements)() {
                Ok(endorsements) => FromHost::Launch {
                    document: self.document.clone(),
                    endorsements,
                },
                Err(reason) => FromHost::Failed { reason },
            },
            ToHost::Endorsements => match (self.endorsements)() {
                Ok(endorsements) => FromHost::Endorsements { endorsements },
                Err(reason) => FromHost::Failed { reason },
            },
            ToHost::Stage { stage, uptime_ms } => self.tell(BootEvent::Stage { stage, uptime_ms }).await,
            ToHost::BootFailed { reason } => self.tell(BootEvent::Failed { reason }).await,
            ToHost::Credit { grant } => self.credit(&grant).await,
            ToHost::Record { record } => self.store(record).await,
        }
    }

    async fn tell(&self, event: BootEvent) -> FromHost {
        match self.boot.send(event).await {
            Ok(()) => FromHost::Ok,
            Err(_) => FromHost::Failed {
                reason: "the launcher is stopping".into(),
            },
        }
    }

    async fn store(&self, record: UsageRecord) -> FromHost {
        let refuse = |reason: String| FromHost::Failed { reason };
        let voucher = &record.voucher.voucher;
        if voucher.network != self.terms.network {
            return refuse(format!(
                "the voucher is for network {}, this node settles on network {}",
                voucher.network.0, self.terms.network.0
            ));
        }
        if !record.voucher.is_genuine() {
            return refuse("the voucher's signature is not by its agent key".into());
        }
        if let Err(reason) = self.check_granted(&record.voucher.voucher) {
            return refuse(reason);
        }
        let (journal, number) = (self.journal.clone(), record.number);
        let stored = tokio::task::spawn_blocking(move || {
            let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
            journal.append(&record).map(|new| (new, record))
        });
        match stored.await {
            Ok(Ok((new, record))) => {
                if new {
                    self.settler.note(&record);
                }
                FromHost::Stored { number }
            }
            Ok(Err(error)) => {
                let reason = format!("{:#}", anyhow::Error::from(error));
                tracing::error!(number, reason, "a usage record was not stored");
                refuse(reason)
            }
            Err(_) => refuse("the launcher is stopping".into()),
        }
    }

    /// No credit is an answer about the grant, for which a client may lock another one. Trouble with the chain is none.
    async fn credit(&self, signed: &SignedGrant) -> FromHost {
        let none = |reason: String| FromHost::Credit { nano: 0, reason };
        if let Err(reason) = self.check_expiry(signed.grant.expires_s) {
            return none(reason);
        }
        let id = signed.grant.id();
        let credit = |nano| FromHost::Credit {
            nano,
            reason: String::new(),
        };
        if self.granted().contains_key(&id) {
            return credit(signed.grant.cap_nano);
        }
        match timeout(CHAIN_LIMIT, self.chain.grant(signed.grant.contract, id)).await {
            Ok(Ok(Some(locked))) => {
                if let Err(reason) = self.check(&locked, &signed.grant) {
                    return none(reason);
                }
                if !self.grant(id, &signed.grant) {
                    return FromHost::Failed {
                        reason: format!("{GRANTED_MAX} grants are in use with this node; try another one"),
                    };
                }
                let seen = Seen::new(id, &locked);
                if self.settler.learn(&seen) {
                    Journal::note_seen(&self.journal, seen);
                }
                credit(signed.grant.cap_nano)
            }
            Ok(Ok(None)) => none(format!(
                "the deposit {} has no such grant on chain; lock it first, then try again",
                signed.grant.contract
            )),
            Ok(Err(error)) => {
                let reason = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(reason, "a grant could not be looked up");
                FromHost::Failed {
                    reason: format!("the chain could not be asked: {reason}"),
                }
            }
            Err(_) => FromHost::Failed {
                reason: "the chain did not answer in time".into(),
            },
        }
    }

    /// The contract recomputes what is paid from its own copy of the terms, so that copy is what counts.
    fn check(&self, locked: &GrantState, grant: &Grant) -> Result<(), String> {
        self.check_expiry(locked.expires_s)?;
        let agrees = locked.payout_address == self.terms.payout_address
            && locked.prices == self.terms.prices
            && locked.agent_key == grant.agent_key
            && locked.cap_nano == grant.cap_nano;
        if agrees {
            Ok(())
        } else {
            Err(
                "the grant on chain names another payout address, price, cap or agent key than this node"
                    .into(),
            )
        }
    }

    /// Whether there was a place for it.
    fn grant(&self, id: Digest32, grant: &Grant) -> bool {
        let mut all = self.granted();
        if all.len() >= GRANTED_MAX {
            all.retain(|_, grant| !is_past(grant.expires_s));
        }
        let free = all.len() < GRANTED_MAX;
        if free {
            all.insert(id, grant.clone());
        }
        free
    }

    /// A guest that was broken into could otherwise replace good vouchers by some that the contract refuses.
    fn check_granted(&self, voucher: &Voucher) -> Result<(), String> {
        let all = self.granted();
        let Some(grant) = all.get(&voucher.grant) else {
            return Err("the voucher is on a grant that this node gave no credit on".into());
        };
        if (grant.agent_key, grant.contract) != (voucher.agent_key, voucher.contract) {
            return Err("the voucher is by another agent or on another deposit than its grant".into());
        }
        let nano = grant.prices.amount_nano(voucher.served);
        if nano.is_none_or(|nano| nano > grant.cap_nano) {
            return Err(format!(
                "the voucher is over the grant's cap of {} nanoTON",
                grant.cap_nano
            ));
        }
        Ok(())
    }

    fn granted(&self) -> MutexGuard<'_, HashMap<Digest32, Grant>> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_expiry(&self, expires_s: u32) -> Result<(), String> {
        if u64::from(expires_s) > now_s() + EXPIRY_MARGIN_S {
            return Ok(());
        }
        Err(format!(
            "the grant expires in less than the {EXPIRY_MARGIN_S} s that serving and settling may take; lock one \
             that is valid longer"
        ))
    }
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
