//! Turns stored vouchers into money: the newest voucher of each grant is settled until the chain shows it.
//!
//! Vouchers are cumulative and the contract takes only growing ones, so settling again after a crash has no
//! second effect; the journal is all that has to survive.

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

/// Grants settled at the same time; a public liteserver takes so many requests without refusing.
const PARALLEL_MAX: usize = 8;

/// One settlement, the wait for its block included.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(90);

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(300);

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
    settled_nano: u64,
    settlement: Settlement,
    /// Not before this; `None` if nothing is to be done.
    due: Option<Instant>,
    in_flight: bool,
    failures: u32,
}

#[derive(Default)]
struct Book {
    entries: HashMap<Digest32, Entry>,
    records: u64,
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

    /// Takes up a record that is on disk.
    pub fn note(&self, record: &UsageRecord) {
        let voucher = &record.voucher;
        let mut book = self.book();
        book.records += 1;
        let due = Some(Instant::now() + self.delay);
        let entry = book
            .entries
            .entry(voucher.voucher.grant)
            .or_insert_with(|| Entry {
                newest: voucher.clone(),
                settled_nano: 0,
                settlement: Settlement::Pending,
                due,
                in_flight: false,
                failures: 0,
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
            served_nano: self.amount_nano(&entry.newest),
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

    fn amount_nano(&self, voucher: &SignedVoucher) -> u64 {
        self.prices
            .amount_nano(voucher.voucher.served)
            .unwrap_or(u64::MAX)
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
        for entry in self.book().entries.values_mut() {
            entry.due = entry.due.map(|due| due.min(start));
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

    fn next_due(&self) -> Option<Instant> {
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
        let amount_nano = self.amount_nano(&voucher);
        let outcome = match timeout(ATTEMPT_LIMIT, settle(chain, &voucher, amount_nano)).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Failed(format!("no result after {} s", ATTEMPT_LIMIT.as_secs())),
        };
        if let Some(entry) = self.book().entries.get_mut(&voucher.voucher.grant) {
            entry.conclude(outcome, self.retry_first);
            if entry.due.is_none() && is_newer(&voucher, &entry.newest) {
                entry.settlement = Settlement::Pending;
                entry.due = Some(Instant::now() + self.delay);
            }
        }
        self.attempted.notify_waiters();
    }
}

impl Entry {
    fn conclude(&mut self, outcome: Outcome, retry_first: Duration) {
        self.in_flight = false;
        let failures = std::mem::take(&mut self.failures);
        match outcome {
            Outcome::Settled { settled_nano } => {
                self.settled_nano = settled_nano;
                self.settlement = Settlement::Settled;
            }
            Outcome::TooLittle {
                settled_nano,
                raise_nano,
                minimum_nano,
            } => {
                self.settled_nano = settled_nano;
                self.settlement = Settlement::Waiting {
                    raise_nano,
                    minimum_nano,
                };
            }
            Outcome::Failed(reason) => {
                let grant = self.newest.voucher.grant;
                tracing::warn!(%grant, reason, "a voucher could not be settled; it is tried again");
                self.failures = failures.saturating_add(1);
                self.settlement = Settlement::Failing {
                    reason,
                    attempts: self.failures,
                };
                self.due = Some(Instant::now() + back_off(retry_first, failures));
            }
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

enum Outcome {
    Settled {
        settled_nano: u64,
    },
    TooLittle {
        settled_nano: u64,
        raise_nano: u64,
        minimum_nano: u64,
    },
    Failed(String),
}

async fn settle(chain: &impl Chain, voucher: &SignedVoucher, amount_nano: u64) -> Outcome {
    let claimed = &voucher.voucher;
    let locked = match chain.grant(claimed.contract, claimed.grant).await {
        Ok(Some(locked)) => locked,
        Ok(None) => {
            let reason = "the deposit has no such grant: it expired and was released, or was never locked";
            return Outcome::Failed(reason.into());
        }
        Err(error) => return Outcome::Failed(chain_of(error)),
    };
    let (shown, wanted) = (locked.served, claimed.served);
    if shown.input >= wanted.input && shown.output >= wanted.output {
        return Outcome::Settled {
            settled_nano: locked.paid_nano,
        };
    }
    let raise_nano = amount_nano.min(locked.cap_nano).saturating_sub(locked.paid_nano);
    if raise_nano < settle_minimum_nano() {
        return Outcome::TooLittle {
            settled_nano: locked.paid_nano,
            raise_nano,
            minimum_nano: settle_minimum_nano(),
        };
    }
    match chain.settle(voucher).await {
        Ok(state) => Outcome::Settled {
            settled_nano: state.paid_nano,
        },
        Err(error) => Outcome::Failed(chain_of(error)),
    }
}

fn chain_of(error: ChainError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

#[cfg(test)]
mod tests {
    use cocoon_protocol::Prices;

    use super::*;
    use crate::journal::tests::record;

    const PRICES: Prices = Prices {
        input_nano_per_kilotoken: 4_000_000_000,
        output_nano_per_kilotoken: 4_000_000_000,
    };

    /// A chain that holds one grant, and fails so many times before it works.
    #[derive(Clone)]
    struct FakeChain(Arc<Mutex<FakeState>>);

    struct FakeState {
        grant: Option<GrantState>,
        failures: u32,
        settled: Vec<u64>,
    }

    impl FakeChain {
        fn new(failures: u32) -> Self {
            let grant = GrantState {
                agent_key: [0; 32],
                payout_address: AccountAddress(Digest32::ZERO),
                prices: PRICES,
                cap_nano: u64::MAX,
                expires_s: u32::MAX,
                served: TokenCounts::default(),
                paid_nano: 0,
            };
            Self(Arc::new(Mutex::new(FakeState {
                grant: Some(grant),
                failures,
                settled: vec![],
            })))
        }

        fn settled(&self) -> Vec<u64> {
            self.0.lock().unwrap().settled.clone()
        }
    }

    impl Chain for FakeChain {
        async fn grant(&self, _: AccountAddress, _: Digest32) -> Result<Option<GrantState>, ChainError> {
            Ok(self.0.lock().unwrap().grant)
        }

        async fn settle(&self, voucher: &SignedVoucher) -> Result<GrantState, ChainError> {
            let mut state = self.0.lock().unwrap();
            if state.failures > 0 {
                state.failures -= 1;
                return Err(ChainError::Unreachable {
                    tried: 1,
                    last: "no answer".into(),
                });
            }
            let amount = PRICES.amount_nano(voucher.voucher.served).unwrap();
            state.settled.push(amount);
            let grant = state.grant.as_mut().unwrap();
            (grant.served, grant.paid_nano) = (voucher.voucher.served, amount);
            Ok(*grant)
        }
    }

    fn only_claim(settler: &Settler) -> Claim {
        let (_, mut claims) = settler.claims();
        assert_eq!(claims.len(), 1);
        claims.remove(0)
    }

    async fn run_until(settler: &Settler, chain: &FakeChain, condition: impl Fn(&Settlement) -> bool) {
        let running = tokio::spawn({
            let (settler, chain) = (settler.clone(), chain.clone());
            async move { settler.run(chain).await }
        });
        while !condition(&only_claim(settler).settlement) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        running.abort();
        let _ = running.await;
    }

    fn is_settled(settlement: &Settlement) -> bool {
        *settlement == Settlement::Settled
    }

    #[tokio::test]
    async fn many_records_of_a_grant_are_one_settlement_of_the_newest() {
        let settler = Settler::new(PRICES, Duration::from_millis(50));
        for number in [1, 3, 2] {
            settler.note(&record(1, number));
        }
        let chain = FakeChain::new(0);
        run_until(&settler, &chain, is_settled).await;
        let newest = PRICES.amount_nano(record(1, 3).voucher.voucher.served).unwrap();
        assert_eq!(chain.settled(), [newest]);
        assert_eq!(only_claim(&settler).settled_nano, newest);
    }

    #[tokio::test]
    async fn a_restart_does_not_settle_what_the_chain_shows() {
        let chain = FakeChain::new(0);
        for _ in 0..2 {
            let settler = Settler::new(PRICES, Duration::ZERO);
            settler.note(&record(1, 1));
            run_until(&settler, &chain, is_settled).await;
        }
        assert_eq!(chain.settled().len(), 1);
    }

    #[tokio::test]
    async fn a_chain_that_fails_is_tried_again_and_the_reason_is_told() {
        let mut settler = Settler::new(PRICES, Duration::ZERO);
        settler.retry_first = Duration::from_millis(100);
        settler.note(&record(1, 1));
        let chain = FakeChain::new(3);
        let failing = |settlement: &Settlement| matches!(settlement, Settlement::Failing { reason, attempts: 3 } if reason.contains("no answer"));
        run_until(&settler, &chain, failing).await;
        run_until(&settler, &chain, is_settled).await;
        assert_eq!(chain.settled().len(), 1);
    }

    #[tokio::test]
    async fn a_grant_that_is_not_on_chain_is_said_and_nothing_sent() {
        let settler = Settler::new(PRICES, Duration::ZERO);
        settler.note(&record(1, 1));
        let chain = FakeChain::new(0);
        chain.0.lock().unwrap().grant = None;
        run_until(&settler, &chain, |settlement| {
            matches!(settlement, Settlement::Failing { reason, .. } if reason.contains("no such grant"))
        })
        .await;
        assert!(chain.settled().is_empty());
    }

    #[tokio::test]
    async fn a_voucher_below_the_minimum_waits_for_the_next() {
        let chain = FakeChain::new(0);
        let nearly = PRICES.amount_nano(record(1, 1).voucher.voucher.served).unwrap() - 1;
        chain.0.lock().unwrap().grant.as_mut().unwrap().paid_nano = nearly;
        let settler = Settler::new(PRICES, Duration::ZERO);
        settler.note(&record(1, 1));
        run_until(&settler, &chain, |settlement| {
            matches!(settlement, Settlement::Waiting { raise_nano: 1, .. })
        })
        .await;
        assert!(chain.settled().is_empty());
        settler.note(&record(1, 1_000));
        run_until(&settler, &chain, is_settled).await;
        assert_eq!(chain.settled().len(), 1);
    }

    #[tokio::test]
    async fn a_flush_does_not_wait_for_the_delay() {
        let settler = Settler::new(PRICES, Duration::from_secs(3600));
        settler.note(&record(1, 1));
        let chain = FakeChain::new(0);
        let running = tokio::spawn({
            let (settler, chain) = (settler.clone(), chain.clone());
            async move { settler.run(chain).await }
        });
        settler.flush(Duration::from_secs(1)).await;
        assert_eq!(chain.settled().len(), 1);
        running.abort();
    }

    #[test]
    fn back_off_grows_to_its_bound() {
        assert_eq!(back_off(RETRY_FIRST, 0), RETRY_FIRST);
        assert_eq!(back_off(RETRY_FIRST, 2), Duration::from_secs(4));
        assert_eq!(back_off(RETRY_FIRST, 40), RETRY_LAST);
    }
}
