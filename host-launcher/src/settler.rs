//! Turns stored vouchers into money: the newest voucher of each grant is settled until the chain shows it.
//!
//! Vouchers are cumulative and the contract takes only growing ones, so settling again after a crash has no
//! second effect; the journal is all that has to survive.
//!
//! A voucher is worth nothing once its grant has expired, so the configured delay ends before that. Whose expiry
//! is not known, because it was served in an earlier run, is settled at once.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cocoon_evidence::Digest32;
use cocoon_protocol::{AccountAddress, Prices, SignedVoucher, TokenCounts, host::UsageRecord};
use cocoon_settlement::{ChainClient, ChainError, GrantState, settle_minimum_nano};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::services::now_s;

/// Grants settled at the same time; a public liteserver takes so many requests without refusing.
const PARALLEL_MAX: usize = 8;

/// One settlement, the wait for its block included.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(90);

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(300);

/// So long before its grant expires a voucher is sent at the latest: time for a second attempt.
pub const EXPIRY_LEAD: Duration = Duration::from_secs(2 * ATTEMPT_LIMIT.as_secs());

/// Between attempts when a grant is about to expire.
const RETRY_URGENT: Duration = Duration::from_secs(5);

/// The chain's clock and ours differ by less; so long after its expiry a grant pays nothing for certain.
const CLOCK_TOLERANCE_S: u64 = 600;

/// Looks that show no such grant before one of unknown expiry is given up, two minutes with the pauses between
/// them: a liteserver that is behind has caught up by then.
const LOOKS_MAX: u32 = 8;

/// Expiries kept before those that have passed are forgotten.
const EXPIRIES_MAX: usize = 4096;

/// What is needed of a chain; a real one, or one that fails on purpose in tests.
pub trait Chain: Clone + Send + Sync + 'static {
    /// A locked grant; `None` if the deposit has none of this id.
    fn grant(
        &self,
        deposit: AccountAddress,
        grant: Digest32,
    ) -> impl Future<Output = Result<Option<GrantState>, ChainError>> + Send;

    /// Settles, and waits until the chain shows it.
    fn settle(&self, voucher: &SignedVoucher) -> impl Future<Output = Result<GrantState, ChainError>> + Send;
}

impl Chain for ChainClient {
    async fn grant(
        &self,
        deposit: AccountAddress,
        grant: Digest32,
    ) -> Result<Option<GrantState>, ChainError> {
        Self::grant(self, &deposit, &grant).await
    }

    async fn settle(&self, voucher: &SignedVoucher) -> Result<GrantState, ChainError> {
        Self::settle(self, voucher).await
    }
}

/// How far a grant's newest voucher is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Settlement {
    /// It will be settled, at the latest after the configured delay.
    Pending,
    /// It is being settled.
    Sent,
    /// It is below the least that the contract takes, and waits for later ones.
    Waiting {
        /// What it would raise the settled amount by, nanoTON.
        raise_nano: u64,
        /// From which on it is settled.
        minimum_nano: u64,
    },
    /// The chain shows it.
    Settled,
    /// It could not be settled, and is tried again.
    Failing {
        /// Why.
        reason: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// Nothing more can be settled on this grant.
    Closed {
        /// Why.
        reason: String,
    },
}

impl Settlement {
    /// Nothing is left to be done, unless more is served on the grant.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Settled | Self::Closed { .. })
    }
}

/// A grant's claim, for `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The grant's id.
    pub grant: Digest32,
    /// The client's deposit.
    pub contract: AccountAddress,
    /// All tokens served on it.
    pub served: TokenCounts,
    /// Their price, nanoTON.
    pub served_nano: u64,
    /// What the chain shows as paid on it, gas included, nanoTON.
    pub settled_nano: u64,
    /// How far the newest voucher is.
    pub settlement: Settlement,
}

struct Entry {
    newest: SignedVoucher,
    /// The grant's, once the chain has told them; until then the node's.
    prices: Prices,
    settled_nano: u64,
    settlement: Settlement,
    /// Not before this; `None` if nothing is to be done.
    due: Option<Instant>,
    in_flight: bool,
    failures: u32,
    /// Looks that showed no such grant, since one last showed it.
    looks: u32,
}

#[derive(Default)]
struct Book {
    entries: HashMap<Digest32, Entry>,
    /// When grants expire, seconds since 1970.
    expiries: HashMap<Digest32, u32>,
    records: u64,
    /// Since when nothing waits for its delay any more.
    flushed: Option<Instant>,
}

impl Book {
    /// When a claim on this grant is due that may wait so long.
    fn due(&self, grant: &Digest32, wait: Duration) -> Instant {
        match self.flushed {
            Some(start) => start,
            None => Instant::now() + wait.min(self.left(grant).unwrap_or_default()),
        }
    }

    /// When a claim that failed is tried again.
    fn retry(&self, grant: &Digest32, pause: Duration) -> Instant {
        let left = self.left(grant).unwrap_or(pause);
        Instant::now() + pause.min(left.max(RETRY_URGENT))
    }

    /// How long settling may still wait; `None` if the grant's expiry is not known.
    fn left(&self, grant: &Digest32) -> Option<Duration> {
        let expires = Duration::from_secs((*self.expiries.get(grant)?).into());
        Some(expires.saturating_sub(Duration::from_secs(now_s()) + EXPIRY_LEAD))
    }
}

/// The claims of one node. Cheap to clone.
#[derive(Clone)]
pub struct Settler {
    book: Arc<Mutex<Book>>,
    changed: Arc<Notify>,
    attempted: Arc<Notify>,
    prices: Prices,
    delay: Duration,
    retry_first: Duration,
}

impl Settler {
    /// No claims yet.
    pub fn new(prices: Prices, delay: Duration) -> Self {
        Self {
            book: Arc::default(),
            changed: Arc::default(),
            attempted: Arc::default(),
            prices,
            delay,
            retry_first: RETRY_FIRST,
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of when a grant expires, seconds since 1970: its vouchers are settled before, whatever the
    /// delay.
    pub fn learn_expiry(&self, grant: Digest32, expires_s: u32) {
        let mut book = self.book();
        if book.expiries.len() >= EXPIRIES_MAX {
            let now_s = now_s();
            book.expiries.retain(|_, expires_s| u64::from(*expires_s) > now_s);
        }
        book.expiries.insert(grant, expires_s);
    }

    /// Takes up a record that is on disk.
    pub fn note(&self, record: &UsageRecord) {
        let voucher = &record.voucher;
        let mut book = self.book();
        book.records += 1;
        let due = Some(book.due(&voucher.voucher.grant, self.delay));
        let entry = book
            .entries
            .entry(voucher.voucher.grant)
            .or_insert_with(|| Entry {
                newest: voucher.clone(),
                prices: self.prices,
                settled_nano: 0,
                settlement: Settlement::Pending,
                due,
                in_flight: false,
                failures: 0,
                looks: 0,
            });
        if is_newer(&entry.newest, voucher) {
            entry.newest = voucher.clone();
            // What is due already, or waits to be tried again, keeps its time.
            if !entry.in_flight && entry.due.is_none() {
                entry.settlement = Settlement::Pending;
                entry.due = due;
            }
        }
        drop(book);
        self.changed.notify_one();
    }

    /// Every claim, and how many records made them.
    pub fn claims(&self) -> (u64, Vec<Claim>) {
        let book = self.book();
        let claim = |(grant, entry): (&Digest32, &Entry)| Claim {
            grant: *grant,
            contract: entry.newest.voucher.contract,
            served: entry.newest.voucher.served,
            served_nano: amount_nano(entry.prices, &entry.newest),
            settled_nano: entry.settled_nano,
            settlement: match entry.in_flight {
                true => Settlement::Sent,
                false => entry.settlement.clone(),
            },
        };
        let mut claims: Vec<Claim> = book.entries.iter().map(claim).collect();
        claims.sort_by_key(|claim| claim.grant);
        (book.records, claims)
    }

    /// Settles whatever is due, until it is dropped.
    pub async fn run(&self, chain: impl Chain) {
        let mut attempts = JoinSet::new();
        loop {
            while attempts.len() < PARALLEL_MAX
                && let Some(voucher) = self.take_due()
            {
                let (chain, settler) = (chain.clone(), self.clone());
                attempts.spawn(async move { settler.attempt(&chain, voucher).await });
            }
            let next = self.next_due().filter(|_| attempts.len() < PARALLEL_MAX);
            tokio::select! {
                () = self.changed.notified() => {}
                Some(_) = attempts.join_next() => {}
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// Tries once to settle everything that the contract takes now, whatever the delay, for at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        let start = Instant::now();
        {
            let mut book = self.book();
            // Also for what is served while an older voucher of its grant is on its way.
            book.flushed = Some(start);
            for entry in book.entries.values_mut() {
                entry.due = entry.due.map(|due| due.min(start));
            }
        }
        self.changed.notify_one();
        let tried = async {
            loop {
                let attempted = self.attempted.notified();
                let busy = |entry: &Entry| entry.in_flight || entry.due.is_some_and(|due| due <= start);
                if !self.book().entries.values().any(busy) {
                    return;
                }
                attempted.await;
            }
        };
        if timeout(limit, tried).await.is_err() {
            tracing::warn!(
                "not every voucher was settled in time; the journal keeps them for the next start"
            );
        }
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.book().entries.values().filter_map(|entry| entry.due).min()
    }

    fn take_due(&self) -> Option<SignedVoucher> {
        let now = Instant::now();
        let mut book = self.book();
        let entry = book
            .entries
            .values_mut()
            .filter(|entry| entry.due.is_some_and(|due| due <= now))
            .min_by_key(|entry| entry.due)?;
        entry.due = None;
        entry.in_flight = true;
        Some(entry.newest.clone())
    }

    async fn attempt(&self, chain: &impl Chain, voucher: SignedVoucher) {
        let grant = voucher.voucher.grant;
        let outcome = match timeout(ATTEMPT_LIMIT, settle(chain, &voucher)).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Failed(format!("no result after {} s", ATTEMPT_LIMIT.as_secs())),
        };
        if let Outcome::Locked { locked, .. } = &outcome {
            self.learn_expiry(grant, locked.expires_s);
        }
        self.conclude(&grant, &voucher, outcome);
        self.attempted.notify_waiters();
    }

    fn conclude(&self, grant: &Digest32, tried: &SignedVoucher, outcome: Outcome) {
        let mut book = self.book();
        let expires_s = book.expiries.get(grant).copied();
        let Some(entry) = book.entries.get_mut(grant) else {
            return;
        };
        entry.in_flight = false;
        let failures = std::mem::take(&mut entry.failures);
        let failed = match outcome {
            Outcome::Locked { locked, settlement } => {
                entry.looks = 0;
                entry.settled_nano = locked.paid_nano;
                entry.prices = locked.prices;
                match settlement {
                    Ok(settlement) => {
                        entry.settlement = settlement;
                        None
                    }
                    Err(reason) => Some(reason),
                }
            }
            Outcome::Gone => {
                entry.looks = entry.looks.saturating_add(1);
                // The contract releases a grant only after it expired: before that, the liteserver is behind.
                if expires_s.map_or(entry.looks >= LOOKS_MAX, is_past) {
                    let reason =
                        "the deposit has no such grant any more: it expired and its rest was released";
                    entry.looks = 0;
                    entry.settlement = Settlement::Closed {
                        reason: reason.into(),
                    };
                    None
                } else {
                    Some("the deposit shows no such grant".to_owned())
                }
            }
            Outcome::Failed(reason) => Some(reason),
        };
        let newer = is_newer(tried, &entry.newest);
        let due = if let Some(reason) = &failed {
            entry.failures = failures.saturating_add(1);
            entry.settlement = Settlement::Failing {
                reason: reason.clone(),
                attempts: entry.failures,
            };
            Some(book.retry(grant, back_off(self.retry_first, failures)))
        } else if newer {
            entry.settlement = Settlement::Pending;
            Some(book.due(grant, self.delay))
        } else {
            None
        };
        if let Some(entry) = book.entries.get_mut(grant) {
            entry.due = due;
        }
        drop(book);
        // Last: a line that cannot be written must not lose the claim.
        if let Some(reason) = failed {
            tracing::warn!(%grant, reason, "a voucher could not be settled; it is tried again");
        }
    }
}

/// Totals over claims: served and settled, nanoTON.
pub fn totals(claims: &[Claim]) -> (u64, u64) {
    let sum = |amount: fn(&Claim) -> u64| claims.iter().map(amount).fold(0, u64::saturating_add);
    (sum(|claim| claim.served_nano), sum(|claim| claim.settled_nano))
}

fn is_newer(known: &SignedVoucher, other: &SignedVoucher) -> bool {
    let (known, other) = (known.voucher.served, other.voucher.served);
    other.input >= known.input && other.output >= known.output && other != known
}

fn back_off(first: Duration, attempts: u32) -> Duration {
    first
        .saturating_mul(2u32.saturating_pow(attempts))
        .min(RETRY_LAST)
}

/// What an attempt has shown.
enum Outcome {
    /// The grant, and how far its voucher is, or why it could not be settled.
    Locked {
        locked: GrantState,
        settlement: Result<Settlement, String>,
    },
    /// The deposit has no such grant.
    Gone,
    /// The chain could not be asked.
    Failed(String),
}

async fn settle(chain: &impl Chain, voucher: &SignedVoucher) -> Outcome {
    let claimed = &voucher.voucher;
    let locked = match chain.grant(claimed.contract, claimed.grant).await {
        Ok(Some(locked)) => locked,
        Ok(None) => return Outcome::Gone,
        Err(error) => return Outcome::Failed(chain_of(error)),
    };
    let (shown, wanted) = (locked.served, claimed.served);
    // At the grant's own prices: those in node.toml may have changed since.
    let raise_nano = amount_nano(locked.prices, voucher)
        .min(locked.cap_nano)
        .saturating_sub(locked.paid_nano);
    let minimum_nano = settle_minimum_nano();
    let settlement = if shown.input >= wanted.input && shown.output >= wanted.output {
        Settlement::Settled
    } else if is_past(locked.expires_s) {
        Settlement::Closed {
            reason: format!("the grant expired with {raise_nano} nanoTON unpaid"),
        }
    } else if raise_nano < minimum_nano {
        Settlement::Waiting {
            raise_nano,
            minimum_nano,
        }
    } else {
        return match chain.settle(voucher).await {
            Ok(locked) => Outcome::Locked {
                locked,
                settlement: Ok(Settlement::Settled),
            },
            Err(error) => Outcome::Locked {
                locked,
                settlement: Err(chain_of(error)),
            },
        };
    };
    Outcome::Locked {
        locked,
        settlement: Ok(settlement),
    }
}

fn amount_nano(prices: Prices, voucher: &SignedVoucher) -> u64 {
    prices.amount_nano(voucher.voucher.served).unwrap_or(u64::MAX)
}

fn is_past(expires_s: u32) -> bool {
    u64::from(expires_s) + CLOCK_TOLERANCE_S < now_s()
}

fn chain_of(error: ChainError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

#[cfg(test)]
mod tests;
