//! Who may ask, what it costs, and the signatures over it.
//!
//! One account for each grant, whatever the number of connections bound to it. A request is admitted only if
//! the price of everything served, everything running at its worst case and this request at its worst case is
//! within the grant's line of credit, so the sum of all vouchers never exceeds it. The host's word on credit
//! is believed only up to the grant's cap: by overstating it the host cheats itself. It is asked again from time
//! to time, because the host gives no credit on a grant that expires before a voucher can be settled. For the same
//! reason no admitted request may take longer than its grant allows ([`Reservation::over`]).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cocoon_evidence::Digest32;
use cocoon_protocol::{
    ContentKey, GrantError, LaunchDocument, Receipt, SessionProof, SignedGrant, SignedReceipt, TokenCounts,
    Voucher,
    host::{FromHost, SETTLEMENT_LEAD, ToHost, UsageRecord},
};
use ed25519_dalek::SigningKey;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep_until},
};
use zeroize::ZeroizeOnDrop;

use crate::{
    host::{HostClient, HostError},
    records::{Outbox, UNSTORED_RECORDS_MAX},
};

/// Accounts kept; each was backed by credit on the chain when it was opened. Where there is no room for another one,
/// those of expired grants are closed.
const ACCOUNTS_MAX: usize = 65_536;

const CREDIT_DEADLINE: Duration = Duration::from_secs(15);

/// Grants without an account that the host is asked about at the same time. Anybody can make up a grant, and each
/// costs the host a look at the chain; those who pay must not wait behind them.
const STRANGERS_ASKED_MAX: usize = 8;

/// Why a grant or a request is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum MeterError {
    /// The grant itself.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// The grant is somebody else's, or the proof was made for another connection.
    #[error("the session proof is not by the grant's owner for this TLS session")]
    Session,
    /// The host reports no credit at all.
    #[error("the host reports no credit for this grant: {reason}")]
    NoCredit {
        /// The host's words.
        reason: String,
    },
    /// The worst case does not fit.
    #[error(
        "the request could cost up to {needed_nano} nanoTON with what is served and running, but the credit is \
         {credit_nano} nanoTON; ask for fewer tokens or send a new grant"
    )]
    Credit {
        /// Served, running and this request, at worst.
        needed_nano: u64,
        /// The line.
        credit_nano: u64,
    },
    /// `limits.requests_max` requests run.
    #[error("all places are taken, try again")]
    Busy,
    /// [`UNSTORED_RECORDS_MAX`] records wait for the host.
    #[error("the host does not store usage records, so nothing more is served until it does")]
    Unstored,
    /// The host gives no credit line.
    #[error("the node's host does not say what this grant is worth: {reason}")]
    Host {
        /// Its words, or how asking it failed.
        reason: String,
    },
    /// `ACCOUNTS_MAX` that have not expired.
    #[error("this node has no room for another grant")]
    Full,
    /// It expired, and its room was needed.
    #[error("the grant of this connection expired and its account is closed; lock another one")]
    Closed,
}

/// An account's balance, in the answer to a grant.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Balance {
    /// Served up to this, nanoTON.
    pub credit_nano: u64,
    /// The price of `served`, nanoTON.
    pub served_nano: u64,
    /// All tokens so far.
    pub served: TokenCounts,
}

/// Accounts and the key that signs for them.
pub struct Meter {
    key: SigningKey,
    launch: Arc<LaunchDocument>,
    host: Arc<HostClient>,
    outbox: Arc<Outbox>,
    credit_kept: Duration,
    strangers: Semaphore,
    ending: watch::Sender<bool>,
    book: Mutex<Book>,
}

// The usage key is wiped when it is dropped: without that feature of its crate this does not compile.
const _: fn() = || {
    fn is_wiped<T: ZeroizeOnDrop>() {}
    is_wiped::<SigningKey>();
};

#[derive(Default)]
struct Book {
    accounts: HashMap<Digest32, Account>,
    records: u64,
    running: u32,
}

struct Account {
    grant: SignedGrant,
    credit_nano: u64,
    asked: Instant,
    served: TokenCounts,
    reserved: TokenCounts,
}

/// What is signed into a receipt beside the counts.
pub struct Finished<'a> {
    /// The request's id in OpenAI's API.
    pub request_id: &'a str,
    /// The body of the HTTP request.
    pub request: &'a [u8],
    /// The text of the answer.
    pub answer: &'a str,
    /// `stop` or `length`.
    pub reason: &'static str,
}

/// An admitted request: its worst case is set aside until it is settled or dropped.
pub struct Reservation {
    meter: Arc<Meter>,
    grant: Digest32,
    worst: TokenCounts,
    ends_at: Instant,
}

impl Meter {
    /// No accounts yet. The host's word on credit is used for `credit_kept`, then it is asked again.
    pub fn new(
        key: SigningKey,
        launch: Arc<LaunchDocument>,
        host: Arc<HostClient>,
        outbox: Arc<Outbox>,
        credit_kept: Duration,
    ) -> Self {
        Self {
            key,
            launch,
            host,
            outbox,
            credit_kept,
            strangers: Semaphore::new(STRANGERS_ASKED_MAX),
            ending: watch::Sender::new(false),
            book: Mutex::default(),
        }
    }

    /// The usage key's public half.
    pub fn usage_key(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// Ends every answer where it is; what was generated is charged.
    pub fn end_answers(&self) {
        self.ending.send_replace(true);
    }

    /// Requests that are running.
    pub fn running(&self) -> u32 {
        self.lock().running
    }

    /// Checks a grant and its owner's presence on this TLS session, and opens or finds its account.
    ///
    /// # Errors
    /// See [`MeterError`].
    pub async fn bind(
        &self,
        grant: SignedGrant,
        proof: &SessionProof,
        exporter: &[u8; 32],
    ) -> Result<(Digest32, Balance), MeterError> {
        grant.check(&self.usage_key(), &self.launch, now_s())?;
        if !proof.is_genuine(exporter, &grant) {
            return Err(MeterError::Session);
        }
        let id = grant.grant.id();
        // A client with many connections binds each of them: the host, who is asked one thing at a time, need not be
        // asked for each.
        if let Some(balance) = self.fresh_balance(id) {
            return Ok((id, balance));
        }
        let stranger = !self.lock().accounts.contains_key(&id);
        let place = stranger.then(|| self.strangers.try_acquire()).transpose();
        let place = place.map_err(|_| MeterError::Busy)?;
        let (credit_nano, reason) = self.ask_credit(&grant).await?;
        drop(place);
        let mut book = self.lock();
        let known = book.accounts.contains_key(&id);
        if credit_nano == 0 && !known {
            return Err(MeterError::NoCredit { reason });
        }
        if !known && !book.has_room(ACCOUNTS_MAX, now_s()) {
            return Err(MeterError::Full);
        }
        let account = book.accounts.entry(id).or_insert_with(|| Account {
            grant,
            credit_nano,
            asked: Instant::now(),
            served: TokenCounts::default(),
            reserved: TokenCounts::default(),
        });
        (account.credit_nano, account.asked) = (credit_nano, Instant::now());
        Ok((id, self.balance(account)))
    }

    fn balance(&self, account: &Account) -> Balance {
        Balance {
            credit_nano: account.credit_nano,
            served_nano: self.launch.prices.amount_nano(account.served).unwrap_or(u64::MAX),
            served: account.served,
        }
    }

    /// Of an account with credit by a word of the host that is still used.
    fn fresh_balance(&self, grant: Digest32) -> Option<Balance> {
        let book = self.lock();
        let account = book.accounts.get(&grant)?;
        let fresh = account.credit_nano > 0 && account.asked.elapsed() < self.credit_kept;
        fresh.then(|| self.balance(account))
    }

    /// Sets a request's worst case aside. Asks the host once more where the known credit is too small or old.
    ///
    /// # Errors
    /// See [`MeterError`].
    pub async fn admit(
        self: &Arc<Self>,
        grant: Digest32,
        worst: TokenCounts,
    ) -> Result<Reservation, MeterError> {
        if self.is_credit_known(grant) {
            match self.reserve(grant, worst) {
                Err(MeterError::Credit { .. }) => {}
                other => return other,
            }
        }
        let signed = self.lock().account(grant)?.grant.clone();
        let (credit_nano, reason) = self.ask_credit(&signed).await?;
        {
            let mut book = self.lock();
            let account = book.account(grant)?;
            (account.credit_nano, account.asked) = (credit_nano, Instant::now());
        }
        if credit_nano == 0 {
            return Err(MeterError::NoCredit { reason });
        }
        self.reserve(grant, worst)
    }

    fn is_credit_known(&self, grant: Digest32) -> bool {
        let book = self.lock();
        let account = book.accounts.get(&grant);
        account.is_some_and(|account| account.asked.elapsed() < self.credit_kept)
    }

    fn reserve(self: &Arc<Self>, grant: Digest32, worst: TokenCounts) -> Result<Reservation, MeterError> {
        if self.outbox.waiting() >= UNSTORED_RECORDS_MAX {
            return Err(MeterError::Unstored);
        }
        let mut book = self.lock();
        if book.running >= self.launch.limits.requests_max {
            return Err(MeterError::Busy);
        }
        let account = book.account(grant)?;
        let (expires_s, now_s) = (account.grant.grant.expires_s, now_s());
        let left =
            Duration::from_secs(u64::from(expires_s).saturating_sub(now_s)).saturating_sub(SETTLEMENT_LEAD);
        if left.is_zero() {
            return Err(GrantError::Expired { expires_s, now_s }.into());
        }
        let credit_nano = account.credit_nano;
        let total = (account.reserved.checked_add(worst))
            .and_then(|reserved| reserved.checked_add(account.served))
            .and_then(|total| self.launch.prices.amount_nano(total))
            .unwrap_or(u64::MAX);
        if total > credit_nano {
            return Err(MeterError::Credit {
                needed_nano: total,
                credit_nano,
            });
        }
        account.reserved.input += worst.input;
        account.reserved.output += worst.output;
        book.running += 1;
        drop(book);
        Ok(Reservation {
            meter: Arc::clone(self),
            grant,
            worst,
            ends_at: Instant::now() + left,
        })
    }

    async fn ask_credit(&self, grant: &SignedGrant) -> Result<(u64, String), MeterError> {
        let question = ToHost::Credit { grant: grant.clone() };
        let reason = match self.host.call(&question, CREDIT_DEADLINE).await {
            Ok(FromHost::Credit { nano, reason }) => return Ok((nano.min(grant.grant.cap_nano), reason)),
            Ok(_) => HostError::Unexpected.to_string(),
            Err(error) => error.to_string(),
        };
        Err(MeterError::Host { reason })
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Of a grant that was bound.
    fn account(&mut self, grant: Digest32) -> Result<&mut Account, MeterError> {
        self.accounts.get_mut(&grant).ok_or(MeterError::Closed)
    }

    /// Of an admitted request's grant.
    fn reserved(&mut self, grant: Digest32) -> &mut Account {
        self.account(grant).expect("kept while something is set aside")
    }

    /// Whether there is room for an account beside these, of which at most `max` are kept.
    fn has_room(&mut self, max: usize, now_s: u64) -> bool {
        if self.accounts.len() >= max {
            self.accounts.retain(|_, account| {
                u64::from(account.grant.grant.expires_s) > now_s || account.reserved != TokenCounts::default()
            });
        }
        self.accounts.len() < max
    }
}

impl Reservation {
    /// Returns when the answer has to be finished: later its voucher could not be settled before the grant expires, or
    /// not be handed over before the guest ends.
    pub async fn over(&self) {
        let mut ending = self.meter.ending.subscribe();
        tokio::select! {
            // Its sender is `self`'s.
            _ = ending.wait_for(|ending| *ending) => {}
            () = sleep_until(self.ends_at) => {}
        }
    }

    /// Charges what was really used, never more than was set aside, and signs voucher, record and receipt.
    /// Counters, record numbers and signatures are made under one lock, so that they are in one order.
    pub fn settle(self, tokens: TokenCounts, finished: &Finished<'_>) -> (SignedReceipt, ContentKey) {
        let tokens = TokenCounts {
            input: tokens.input.min(self.worst.input),
            output: tokens.output.min(self.worst.output),
        };
        let content_key = ContentKey(random());
        let meter = &self.meter;
        let launch = &meter.launch;
        let mut book = meter.lock();
        book.records += 1;
        let number = book.records;
        let account = book.reserved(self.grant);
        account.served.input += tokens.input;
        account.served.output += tokens.output;
        let served = account.served;
        let voucher = Voucher {
            network: launch.settlement.network,
            contract: account.grant.grant.contract,
            agent_key: meter.usage_key(),
            grant: self.grant,
            served,
        };
        let receipt = Receipt {
            request_id: finished.request_id.into(),
            model_root_hash: launch.model.verity.root_hash,
            network: launch.settlement.network,
            grant: self.grant,
            tokens,
            served,
            served_nano: launch.prices.amount_nano(served).unwrap_or(u64::MAX),
            request_commitment: content_key.commit("request", finished.request),
            answer_commitment: content_key.commit("answer", finished.answer.as_bytes()),
            finish_reason: finished.reason.into(),
        }
        .sign(&meter.key);
        // The salt is the client's key, which the host is not given: the client, and nobody else, can show
        // that this record is the one of this receipt.
        let json = serde_json::to_vec(&receipt).expect("a receipt holds nothing that JSON cannot");
        meter.outbox.push(UsageRecord {
            number,
            tokens,
            commitment: content_key.commit("receipt", &json),
            voucher: voucher.sign(&meter.key),
        });
        drop(book);
        (receipt, content_key)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut book = self.meter.lock();
        book.running -= 1;
        let account = book.reserved(self.grant);
        account.reserved.input -= self.worst.input;
        account.reserved.output -= self.worst.output;
    }
}

/// Random bytes from the kernel, which blocks until its generator is seeded.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill_random(&mut bytes);
    bytes
}

/// The same in place: of a secret nothing is left where it was first.
pub fn fill_random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the kernel's random generator does not fail once it is seeded");
}

/// Seconds since 1970 by the guest's clock, which the host sets.
pub fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use cocoon_protocol::{AccountAddress, Grant, NetworkId, Prices};

    use super::*;

    fn account(client: u8, expires_s: u32, reserved: TokenCounts) -> (Digest32, Account) {
        let grant = Grant {
            network: NetworkId(1),
            contract: AccountAddress(Digest32([client; 32])),
            agent_key: [1; 32],
            payout_address: AccountAddress(Digest32([2; 32])),
            prices: Prices {
                input_nano_per_kilotoken: 1,
                output_nano_per_kilotoken: 1,
            },
            cap_nano: 1,
            expires_s,
        };
        let account = Account {
            grant: grant.sign(&SigningKey::from_bytes(&[client; 32])),
            credit_nano: 1,
            asked: Instant::now(),
            served: TokenCounts::default(),
            reserved,
        };
        (account.grant.grant.id(), account)
    }

    #[test]
    fn accounts_of_expired_grants_make_room_unless_a_request_runs_on_them() {
        let running = TokenCounts { input: 1, output: 1 };
        let (expired, one) = account(1, 1000, TokenCounts::default());
        let (expired_running, two) = account(2, 1000, running);
        let (valid, three) = account(3, 1001, TokenCounts::default());
        let mut book = Book {
            accounts: HashMap::from([(expired, one), (expired_running, two), (valid, three)]),
            ..Book::default()
        };
        assert!(book.has_room(4, 1000));
        assert!(book.account(expired).is_ok(), "there was room without closing it");
        assert!(book.has_room(3, 1000));
        assert!(matches!(book.account(expired), Err(MeterError::Closed)));
        assert!(book.account(expired_running).is_ok());
        assert!(book.account(valid).is_ok());
        assert!(!book.has_room(2, 1000), "the rest is in use");
    }
}
