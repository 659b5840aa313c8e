//! Turns stored vouchers into money: the newest voucher of each grant is settled until the chain shows it.
//!
//! Vouchers are cumulative and the contract takes only growing ones, so settling again after a crash has no
//! second effect; the journal is all that has to survive.
//!
//! A voucher is worth nothing once its grant has expired, so the configured delay ends before that. What was served
//! in an earlier run is settled at once: its agent is gone, so no later voucher comes. The journal also tells what the
//! chain showed then, so that one which expired long ago is not looked up again.

mod book;
mod restart;

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cocoon_evidence::Digest32;
use cocoon_protocol::{
    AccountAddress, Prices, SignedVoucher,
    host::{SETTLEMENT_LEAD, UsageRecord},
};
use cocoon_settlement::{ChainClient, ChainError, GrantState, settle_minimum_nano};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    journal::{Journal, Seen, SharedJournal},
    services::now_s,
};
pub(crate) use book::is_past;
use book::{Book, Entry, amount_nano, expired_with};
pub use book::{Claim, Settlement};

/// Grants settled at the same time; a public liteserver takes so many requests without refusing.
const PARALLEL_MAX: usize = 8;

/// One settlement, the wait for its block included.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(90);

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(300);

// So long before its grant expires a voucher is sent at the latest.
const _: () = assert!(SETTLEMENT_LEAD.as_secs() >= 2 * ATTEMPT_LIMIT.as_secs());

/// Between attempts when a grant is about to expire.
const RETRY_URGENT: Duration = Duration::from_secs(5);

/// The chain's clock and ours differ by less; so long after its expiry a grant pays nothing for certain.
const CLOCK_TOLERANCE_S: u64 = 600;

/// Looks that show no such grant before one of unknown expiry is given up: more than eight minutes with the pauses
/// between them. A liteserver that is further behind than five is not believed.
const LOOKS_MAX: u32 = 10;

/// Expiries kept of grants without a record, before those that have passed are forgotten.
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

    /// Takes up what the chain showed of a grant: its vouchers are settled before it expires, whatever the delay.
    /// Returns whether that is news.
    pub fn learn(&self, seen: &Seen) -> bool {
        let mut book = self.book();
        if let Some(entry) = book.entries.get_mut(&seen.grant) {
            let known = (entry.expires_s, entry.prices, entry.settled_nano);
            // An answer may be older than the last one; what is drawn only grows.
            let paid_nano = seen.paid_nano.max(entry.settled_nano);
            let shown = (Some(seen.expires_s), seen.prices, paid_nano);
            (entry.expires_s, entry.prices, entry.settled_nano) = shown;
            return shown != known;
        }
        if book.expiries.len() >= EXPIRIES_MAX {
            book.expiries.retain(|_, expires_s| !is_past(*expires_s));
        }
        book.expiries.insert(seen.grant, seen.expires_s) != Some(seen.expires_s)
    }

    /// Takes up a record that is on disk.
    pub fn note(&self, record: &UsageRecord) {
        let voucher = &record.voucher;
        let mut book = self.book();
        book.records += 1;
        let grant = voucher.voucher.grant;
        let due = Some(book.due(&grant, self.delay));
        let expires_s = book.expiries.remove(&grant);
        let entry = book.entries.entry(grant).or_insert_with(|| Entry {
            newest: voucher.clone(),
            prices: self.prices,
            settled_nano: 0,
            expires_s,
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

    /// Settles whatever is due, until it is dropped. What the chain shows goes to the journal.
    pub async fn run(&self, chain: impl Chain, journal: SharedJournal) {
        let mut attempts = JoinSet::new();
        loop {
            while attempts.len() < PARALLEL_MAX
                && let Some(voucher) = self.take_due()
            {
                let (chain, journal, settler) = (chain.clone(), journal.clone(), self.clone());
                attempts.spawn(async move { settler.attempt(&chain, &journal, voucher).await });
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

    /// What is lost if the node is not started again in time; `None` if the chain shows all that the contract takes.
    pub fn unsettled(&self) -> Option<String> {
        let book = self.book();
        let open: Vec<&Entry> = book
            .entries
            .values()
            .filter(|entry| entry.in_flight || entry.due.is_some())
            .filter(|entry| entry.unpaid_nano() > 0 && !entry.expires_s.is_some_and(is_past))
            .collect();
        let nano = open
            .iter()
            .map(|entry| entry.unpaid_nano())
            .fold(0, u64::saturating_add);
        let soon = match open.iter().filter_map(|entry| entry.expires_s).min() {
            Some(expires_s) => {
                let left_s = u64::from(expires_s).saturating_sub(now_s() + SETTLEMENT_LEAD.as_secs());
                format!("within {} min", left_s / 60)
            }
            None => "soon".into(),
        };
        (!open.is_empty()).then(|| {
            format!(
                "{nano} nanoTON on {} grant(s) are not settled yet: start the node again {soon} to be paid",
                open.len()
            )
        })
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.book().entries.values().filter_map(|entry| entry.due).min()
    }

    fn take_due(&self) -> Option<SignedVoucher> {
        let now = Instant::now();
        let now_s = now_s();
        let mut book = self.book();
        // What can be lost soon, then each in its turn; what has expired is only looked up.
        let urgency = |entry: &&mut Entry| {
            let left_s = entry
                .expires_s
                .map_or(u64::MAX, |expires_s| u64::from(expires_s).saturating_sub(now_s));
            let is_urgent = left_s <= 2 * SETTLEMENT_LEAD.as_secs();
            (left_s == 0, if is_urgent { left_s } else { u64::MAX }, entry.due)
        };
        let entry = book
            .entries
            .values_mut()
            .filter(|entry| entry.due.is_some_and(|due| due <= now))
            .min_by_key(urgency)?;
        entry.due = None;
        entry.in_flight = true;
        Some(entry.newest.clone())
    }

    async fn attempt(&self, chain: &impl Chain, journal: &SharedJournal, voucher: SignedVoucher) {
        let grant = voucher.voucher.grant;
        let outcome = match timeout(ATTEMPT_LIMIT, settle(chain, &voucher)).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Failed(format!("no result after {} s", ATTEMPT_LIMIT.as_secs())),
        };
        if let Outcome::Locked { locked, .. } = &outcome {
            let seen = Seen::new(grant, locked);
            if self.learn(&seen) {
                Journal::note_seen(journal, seen);
            }
        }
        self.conclude(&grant, &voucher, outcome);
        self.attempted.notify_waiters();
    }

    fn conclude(&self, grant: &Digest32, tried: &SignedVoucher, outcome: Outcome) {
        let mut book = self.book();
        let Some(entry) = book.entries.get_mut(grant) else {
            return;
        };
        entry.in_flight = false;
        let failures = std::mem::take(&mut entry.failures);
        let failed = match outcome {
            Outcome::Locked { settlement, .. } => {
                entry.looks = 0;
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
                if entry.expires_s.map_or(entry.looks >= LOOKS_MAX, is_past) {
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
            reason: expired_with(raise_nano),
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

fn chain_of(error: ChainError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

#[cfg(test)]
mod tests;
