//! What may yet be locked for a node: its share, less what was served and what can still be drawn from open grants.
//!
//! A node that is started anew is another guest with another key. Nobody outside can tell whether the one before it is
//! gone, so what that one was granted counts until it has expired. What a guest could draw on grants of its own is
//! counted by [`crate::Purse::bind`], which sees them on the chain.

use std::collections::HashMap;

use cocoon_evidence::Digest32;
use cocoon_protocol::SignedGrant;

use crate::pay::rest_s;

/// Of one node.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// What may be spent and at stake in all.
    share_nano: u64,
    /// Served on grants that have expired since.
    spent_nano: u64,
    /// The one that new sessions are offered.
    current: Option<SignedGrant>,
    /// By id: each that was drawn upon, or may be locked, and has not expired.
    open: HashMap<Digest32, Open>,
}

#[derive(Debug)]
struct Open {
    agent_key: [u8; 32],
    expires_s: u32,
    /// Nothing if it was locked before this program ran: that was somebody else's to allow.
    cap_nano: u64,
    /// Before this program drew on it.
    served_before_nano: u64,
    /// In all, as far as receipts said.
    served_nano: u64,
}

impl Open {
    fn new(grant: &SignedGrant, cap_nano: u64, served_nano: u64) -> Self {
        Self {
            agent_key: grant.grant.agent_key,
            expires_s: grant.grant.expires_s,
            cap_nano,
            served_before_nano: served_nano,
            served_nano,
        }
    }

    fn spent_nano(&self) -> u64 {
        self.served_nano.saturating_sub(self.served_before_nano)
    }

    /// What it takes from the share when `guest` asks for another grant.
    fn counts_nano(&self, guest: &[u8; 32]) -> u64 {
        if self.agent_key == *guest {
            self.spent_nano()
        } else {
            self.spent_nano().max(self.cap_nano)
        }
    }
}

impl Account {
    pub(super) fn new(share_nano: u64) -> Self {
        Self {
            share_nano,
            ..Self::default()
        }
    }

    pub(super) fn current(&self) -> Option<SignedGrant> {
        self.current.clone()
    }

    /// What the guest with this key may draw on grants that are open with it and on a new one together.
    pub(super) fn left_nano(&mut self, guest: &[u8; 32], now_s: u64) -> u64 {
        self.close_expired(now_s);
        let counted = self.open.values().map(|open| open.counts_nano(guest));
        let counted_nano = counted.fold(self.spent_nano, u64::saturating_add);
        self.share_nano.saturating_sub(counted_nano)
    }

    /// This one is about to be locked. Should that fail, whoever has seen it may yet have it locked.
    pub(super) fn promise(&mut self, grant: &SignedGrant) {
        let cap_nano = grant.grant.cap_nano;
        self.open.insert(grant.grant.id(), Open::new(grant, cap_nano, 0));
    }

    /// From now on this one is offered; so much was served on it already.
    pub(super) fn draw_on(&mut self, grant: SignedGrant, served_nano: u64) {
        self.open
            .entry(grant.grant.id())
            .or_insert_with(|| Open::new(&grant, 0, served_nano));
        self.current = Some(grant);
    }

    /// A receipt came: the grant is so much used.
    pub(super) fn served(&mut self, grant: &Digest32, served_nano: u64) {
        if let Some(open) = self.open.get_mut(grant) {
            open.served_nano = open.served_nano.max(served_nano);
        }
    }

    fn close_expired(&mut self, now_s: u64) {
        let expired = self.open.extract_if(|_, open| rest_s(open.expires_s, now_s) == 0);
        let spent = expired.map(|(_, open)| open.spent_nano());
        self.spent_nano = spent.fold(self.spent_nano, u64::saturating_add);
    }
}

#[cfg(test)]
mod tests {
    use cocoon_protocol::{AccountAddress, Grant, NetworkId, Prices};
    use ed25519_dalek::SigningKey;

    use super::*;

    const SHARE_NANO: u64 = 1_000;
    const EXPIRES_S: u32 = 10_000;

    fn grant(guest: u8, cap_nano: u64) -> SignedGrant {
        let grant = Grant {
            network: NetworkId::LOCAL,
            contract: AccountAddress(Digest32::ZERO),
            agent_key: [guest; 32],
            payout_address: AccountAddress(Digest32::ZERO),
            prices: Prices {
                input_nano_per_kilotoken: 1,
                output_nano_per_kilotoken: 1,
            },
            cap_nano,
            expires_s: EXPIRES_S,
        };
        grant.sign(&SigningKey::from_bytes(&[9; 32]))
    }

    fn lock(account: &mut Account, grant: &SignedGrant) {
        account.promise(grant);
        account.draw_on(grant.clone(), 0);
    }

    #[test]
    fn what_a_guest_of_before_was_granted_counts_until_it_has_expired() {
        let mut account = Account::new(SHARE_NANO);
        let first = grant(1, 500);
        lock(&mut account, &first);
        account.served(&first.grant.id(), 200);
        assert_eq!(account.left_nano(&[1; 32], 0), 800, "the purse counts the rest");
        assert_eq!(account.left_nano(&[2; 32], 0), 500);
        lock(&mut account, &grant(2, 250));
        assert_eq!(account.left_nano(&[3; 32], 0), 250);
        // Served when its guest had been replaced already.
        account.served(&first.grant.id(), 300);
        assert_eq!(account.left_nano(&[3; 32], 0), 250);
        assert_eq!(account.left_nano(&[3; 32], u64::from(EXPIRES_S)), 250);
        let later_s = u64::from(EXPIRES_S) + 3_600;
        assert_eq!(account.left_nano(&[3; 32], later_s), 700, "300 were served");
    }

    /// A liteserver can keep what it was sent, say that it failed, and have it locked later.
    #[test]
    fn a_grant_whose_locking_failed_counts_for_the_next_guest() {
        let mut account = Account::new(SHARE_NANO);
        account.promise(&grant(1, 500));
        assert_eq!(account.current(), None);
        assert_eq!(account.left_nano(&[2; 32], 0), 500);
    }

    #[test]
    fn a_guest_that_comes_back_counts_once() {
        let mut account = Account::new(SHARE_NANO);
        let first = grant(1, 500);
        lock(&mut account, &first);
        account.served(&first.grant.id(), 200);
        lock(&mut account, &grant(2, 250));
        account.draw_on(first.clone(), 200);
        assert_eq!(account.current(), Some(first));
        assert_eq!(account.left_nano(&[1; 32], 0), 550);
        assert_eq!(account.left_nano(&[3; 32], 0), 250);
    }

    #[test]
    fn of_a_grant_from_before_this_program_only_what_it_draws_counts() {
        let mut account = Account::new(SHARE_NANO);
        let earlier = grant(1, 5_000);
        account.draw_on(earlier.clone(), 4_000);
        assert_eq!(account.left_nano(&[2; 32], 0), SHARE_NANO);
        account.served(&earlier.grant.id(), 4_100);
        assert_eq!(account.left_nano(&[1; 32], 0), 900);
        assert_eq!(account.left_nano(&[2; 32], 0), 900);
    }
}
