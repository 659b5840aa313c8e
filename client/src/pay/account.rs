//! What may yet be locked for a node: its share, less what was served and what can still be drawn from open grants.
//!
//! A node that is started anew is another guest with another key. Nobody outside can tell whether the one before it is
//! gone, so what that one was granted counts until it has expired. What a guest could draw on grants of its own is
//! counted by [`crate::Purse::bind`], which sees them on the chain.
//!
//! What was served is the most that a receipt, the guest itself or the chain has said: an answer that was broken off
//! is charged without a receipt.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use cocoon_evidence::Digest32;
use cocoon_protocol::SignedGrant;

use super::{PayError, rest_s};
use crate::{BoundGrant, PaidSession};

/// What may be spent and at stake with one node.
#[derive(Debug, Default)]
pub struct Account(Mutex<Ledger>);

#[derive(Debug, Default)]
struct Ledger {
    /// What may be spent and at stake in all.
    share_nano: u64,
    /// Served on grants that have expired since.
    spent_nano: u64,
    /// The worst case of requests that run.
    held_nano: u64,
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
    /// In all, as far as is known.
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
    /// With so much to spend and to have at stake in all, nanoTON.
    pub fn new(share_nano: u64) -> Self {
        let account = Self::default();
        account.ledger().share_nano = share_nano;
        account
    }

    /// Sets what may be spent, before the first grant is locked.
    pub(crate) fn allow(&self, share_nano: u64) {
        self.ledger().share_nano = share_nano;
    }

    /// A receipt came: the session's grant is that much used.
    pub fn paid(&self, session: &PaidSession) {
        self.served(session.grant_id(), session.standing().served_nano);
    }

    /// The guest says how much of this grant is used; more than all of it cannot be.
    pub(super) fn told(&self, bound: &BoundGrant) {
        self.served(bound.id(), bound.served_nano());
    }

    /// Sets aside the worst case of one request, until it is given back. What a grant from before this program holds
    /// beyond the share is not this program's to spend.
    ///
    /// # Errors
    /// [`PayError::CapTooLow`].
    pub(crate) fn hold(&self, need_nano: u64) -> Result<(), PayError> {
        let mut ledger = self.ledger();
        let spent = ledger.open.values().map(Open::spent_nano);
        let taken_nano = spent.fold(ledger.spent_nano, u64::saturating_add);
        let taken_nano = taken_nano.saturating_add(ledger.held_nano);
        let cap_nano = ledger.share_nano.saturating_sub(taken_nano);
        if cap_nano < need_nano {
            return Err(PayError::CapTooLow { need_nano, cap_nano });
        }
        ledger.held_nano = ledger.held_nano.saturating_add(need_nano);
        Ok(())
    }

    /// The request is over, and what it cost is in a receipt or will be told.
    pub(crate) fn give_back(&self, need_nano: u64) {
        let mut ledger = self.ledger();
        ledger.held_nano = ledger.held_nano.saturating_sub(need_nano);
    }

    pub(crate) fn current(&self) -> Option<SignedGrant> {
        self.ledger().current.clone()
    }

    /// What the guest with this key may draw on grants that are open with it and on a new one together.
    pub(super) fn left_nano(&self, guest: &[u8; 32], now_s: u64) -> u64 {
        let mut ledger = self.ledger();
        ledger.close_expired(now_s);
        let counted = ledger.open.values().map(|open| open.counts_nano(guest));
        let counted_nano = counted.fold(ledger.spent_nano, u64::saturating_add);
        ledger.share_nano.saturating_sub(counted_nano)
    }

    /// This one is about to be locked. Should that fail, whoever has seen it may yet have it locked.
    pub(super) fn promise(&self, grant: &SignedGrant) {
        let open = || Open::new(grant, grant.grant.cap_nano, 0);
        self.ledger().open.entry(grant.grant.id()).or_insert_with(open);
    }

    /// From now on this one is offered; so much was served on it already.
    pub(super) fn draw_on(&self, grant: &SignedGrant, served_nano: u64) {
        let mut ledger = self.ledger();
        let open = || Open::new(grant, 0, served_nano);
        ledger.open.entry(grant.grant.id()).or_insert_with(open);
        ledger.current = Some(grant.clone());
    }

    /// So much of this grant is used, if it is one that was drawn upon.
    pub(super) fn served(&self, grant: &Digest32, served_nano: u64) {
        if let Some(open) = self.ledger().open.get_mut(grant) {
            open.served_nano = open.served_nano.max(served_nano);
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    fn close_expired(&mut self, now_s: u64) {
        let expired = self.open.extract_if(|_, open| rest_s(open.expires_s, now_s) == 0);
        let spent = expired.map(|(_, open)| open.spent_nano());
        self.spent_nano = spent.fold(self.spent_nano, u64::saturating_add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pay::unsure::tests::sent;

    const SHARE_NANO: u64 = 1_000;
    const EXPIRES_S: u32 = 10_000;

    fn grant(guest: u8, cap_nano: u64) -> SignedGrant {
        sent(guest, cap_nano, EXPIRES_S)
    }

    fn lock(account: &Account, grant: &SignedGrant) {
        account.promise(grant);
        account.draw_on(grant, 0);
    }

    #[test]
    fn what_a_guest_of_before_was_granted_counts_until_it_has_expired() {
        let account = Account::new(SHARE_NANO);
        let first = grant(1, 500);
        lock(&account, &first);
        account.served(&first.grant.id(), 200);
        assert_eq!(account.left_nano(&[1; 32], 0), 800, "the purse counts the rest");
        assert_eq!(account.left_nano(&[2; 32], 0), 500);
        lock(&account, &grant(2, 250));
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
        let account = Account::new(SHARE_NANO);
        account.promise(&grant(1, 500));
        assert_eq!(account.current(), None);
        assert_eq!(account.left_nano(&[2; 32], 0), 500);
    }

    #[test]
    fn a_guest_that_comes_back_counts_once() {
        let account = Account::new(SHARE_NANO);
        let first = grant(1, 500);
        lock(&account, &first);
        account.served(&first.grant.id(), 200);
        lock(&account, &grant(2, 250));
        account.draw_on(&first, 200);
        assert_eq!(account.current(), Some(first));
        assert_eq!(account.left_nano(&[1; 32], 0), 550);
        assert_eq!(account.left_nano(&[3; 32], 0), 250);
    }

    #[test]
    fn of_a_grant_from_before_this_program_only_what_it_draws_counts() {
        let account = Account::new(SHARE_NANO);
        let earlier = grant(1, 5_000);
        account.draw_on(&earlier, 4_000);
        assert_eq!(account.left_nano(&[2; 32], 0), SHARE_NANO);
        account.served(&earlier.grant.id(), 4_100);
        assert_eq!(account.left_nano(&[1; 32], 0), 900);
        assert_eq!(account.left_nano(&[2; 32], 0), 900);
    }

    #[test]
    fn of_a_grant_from_before_this_program_no_more_than_the_share_is_drawn() {
        let account = Account::new(SHARE_NANO);
        let earlier = grant(1, 5_000);
        account.draw_on(&earlier, 100);
        account.hold(600).unwrap();
        assert!(
            account.hold(500).is_err(),
            "requests that run count with their worst case"
        );
        account.hold(400).unwrap();
        account.served(&earlier.grant.id(), 700);
        account.give_back(600);
        account.give_back(400);
        assert!(matches!(
            account.hold(401),
            Err(PayError::CapTooLow {
                need_nano: 401,
                cap_nano: 400
            })
        ));
        account.hold(400).unwrap();
    }

    #[test]
    fn a_grant_that_is_sent_again_counts_once_and_forgets_nothing() {
        let account = Account::new(SHARE_NANO);
        let first = grant(1, 500);
        lock(&account, &first);
        account.served(&first.grant.id(), 200);
        account.promise(&first);
        assert_eq!(account.left_nano(&[1; 32], 0), 800);
    }
}
