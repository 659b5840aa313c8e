//! What is known of each grant's claim, and when it is due.

use std::{collections::HashMap, time::Duration};

use cocoon_evidence::Digest32;
use cocoon_protocol::{AccountAddress, Prices, SignedVoucher, TokenCounts, host::SETTLEMENT_LEAD};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{CLOCK_TOLERANCE_S, RETRY_URGENT};
use crate::services::now_s;

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

pub(super) struct Entry {
    pub(super) newest: SignedVoucher,
    /// The grant's, once the chain has told them; until then the node's.
    pub(super) prices: Prices,
    pub(super) settled_nano: u64,
    /// When the grant expires, seconds since 1970; `None` until the chain has told.
    pub(super) expires_s: Option<u32>,
    pub(super) settlement: Settlement,
    /// Not before this; `None` if nothing is to be done.
    pub(super) due: Option<Instant>,
    pub(super) in_flight: bool,
    pub(super) failures: u32,
    /// Looks that showed no such grant, since one last showed it.
    pub(super) looks: u32,
}

impl Entry {
    pub(super) fn unpaid_nano(&self) -> u64 {
        amount_nano(self.prices, &self.newest).saturating_sub(self.settled_nano)
    }

    /// What has become of the claim once the grant has expired.
    pub(super) fn ended(&self) -> Settlement {
        match self.unpaid_nano() {
            0 => Settlement::Settled,
            unpaid_nano => Settlement::Closed {
                reason: expired_with(unpaid_nano),
            },
        }
    }
}

#[derive(Default)]
pub(super) struct Book {
    pub(super) entries: HashMap<Digest32, Entry>,
    /// When grants expire that have no entry yet, seconds since 1970.
    pub(super) expiries: HashMap<Digest32, u32>,
    pub(super) records: u64,
    /// Since when nothing waits for its delay any more.
    pub(super) flushed: Option<Instant>,
}

impl Book {
    /// When a claim on this grant is due that may wait so long.
    pub(super) fn due(&self, grant: &Digest32, wait: Duration) -> Instant {
        match self.flushed {
            Some(start) => start,
            None => Instant::now() + wait.min(self.left(grant).unwrap_or_default()),
        }
    }

    /// When a claim that failed is tried again.
    pub(super) fn retry(&self, grant: &Digest32, pause: Duration) -> Instant {
        let left = self.left(grant).unwrap_or(pause);
        Instant::now() + pause.min(left.max(RETRY_URGENT))
    }

    fn expires_s(&self, grant: &Digest32) -> Option<u32> {
        match self.entries.get(grant) {
            Some(entry) => entry.expires_s,
            None => self.expiries.get(grant).copied(),
        }
    }

    /// How long settling may still wait; `None` if the grant's expiry is not known.
    fn left(&self, grant: &Digest32) -> Option<Duration> {
        let expires = Duration::from_secs(self.expires_s(grant)?.into());
        Some(expires.saturating_sub(Duration::from_secs(now_s()) + SETTLEMENT_LEAD))
    }
}

pub(super) fn amount_nano(prices: Prices, voucher: &SignedVoucher) -> u64 {
    prices.amount_nano(voucher.voucher.served).unwrap_or(u64::MAX)
}

pub(super) fn expired_with(unpaid_nano: u64) -> String {
    format!("the grant expired with {unpaid_nano} nanoTON unpaid")
}

/// Whether a grant pays nothing any more, for certain.
pub(crate) fn is_past(expires_s: u32) -> bool {
    ended_before(expires_s, CLOCK_TOLERANCE_S)
}

pub(super) fn ended_before(expires_s: u32, ago_s: u64) -> bool {
    u64::from(expires_s) + ago_s < now_s()
}
