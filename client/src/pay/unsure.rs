//! Grants that were sent to the chain, and of which nobody knows whether they will be locked: whoever asked for one
//! went away, the liteserver broke, or it keeps what it said that it refused. A grant has no sequence number, so each of
//! them can be locked as long as it is valid, beside any other that is signed in its place.

use cocoon_evidence::Digest32;
use cocoon_protocol::{Grant, SignedGrant};
use cocoon_settlement::DepositState;

use super::{
    lasts,
    stake::{AtStake, rest_s},
};

#[derive(Debug, Default)]
pub(super) struct Unsure(Vec<SignedGrant>);

impl Unsure {
    /// Forgets what the chain shows, and what it can take no more.
    pub(super) fn look(&mut self, state: Option<&DepositState>, now_s: u64) {
        self.0.retain(|sent| {
            let is_locked = state.is_some_and(|state| state.grant(&sent.grant.id()).is_some());
            rest_s(sent.grant.expires_s, now_s) > 0 && !is_locked
        });
    }

    /// The one to send again, with at least so much in it: the first that is as `terms` would make it with this cap and
    /// this end. What else was sent for the same guest is at stake.
    pub(super) fn again(
        &self,
        terms: impl Fn(u64, u32) -> Grant,
        least_nano: u64,
        now_s: u64,
        at_stake: &mut AtStake,
    ) -> Option<Grant> {
        let mut again = None;
        for sent in self.0.iter().map(|sent| &sent.grant) {
            let same = terms(sent.cap_nano, sent.expires_s);
            let fits = sent.id() == same.id() && lasts(sent, now_s) && sent.cap_nano >= least_nano;
            if fits && again.is_none() {
                again = Some(same);
            } else if sent.agent_key == same.agent_key {
                at_stake.add(sent.cap_nano, sent.expires_s);
            }
        }
        again
    }

    /// This one is about to be sent.
    pub(super) fn add(&mut self, grant: &SignedGrant) {
        let id = grant.grant.id();
        if self.0.iter().all(|sent| sent.grant.id() != id) {
            self.0.push(grant.clone());
        }
    }

    /// The chain has it.
    pub(super) fn remove(&mut self, grant: &Digest32) {
        self.0.retain(|sent| sent.grant.id() != *grant);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use cocoon_protocol::{AccountAddress, NetworkId, Prices};
    use ed25519_dalek::SigningKey;

    use super::*;

    const END_S: u32 = 100_000;

    fn terms(guest: u8) -> impl Fn(u64, u32) -> Grant {
        move |cap_nano, expires_s| Grant {
            network: NetworkId::LOCAL,
            contract: AccountAddress(Digest32::ZERO),
            agent_key: [guest; 32],
            payout_address: AccountAddress(Digest32::ZERO),
            prices: Prices {
                input_nano_per_kilotoken: 1,
                output_nano_per_kilotoken: 1,
            },
            cap_nano,
            expires_s,
        }
    }

    pub(crate) fn sent(guest: u8, cap_nano: u64, expires_s: u32) -> SignedGrant {
        terms(guest)(cap_nano, expires_s).sign(&SigningKey::from_bytes(&[9; 32]))
    }

    #[test]
    fn what_was_sent_to_no_visible_effect_is_sent_again_instead_of_another_one() {
        let mut unsure = Unsure::default();
        let first = sent(1, 500, END_S);
        unsure.add(&first);
        unsure.add(&first);
        let mut at_stake = AtStake::default();
        let again = unsure.again(terms(1), 100, 0, &mut at_stake);
        assert_eq!(again.map(|grant| grant.id()), Some(first.grant.id()));
        assert_eq!(at_stake.nano, 0);
        unsure.remove(&first.grant.id());
        assert!(unsure.again(terms(1), 100, 0, &mut at_stake).is_none());
    }

    #[test]
    fn one_that_cannot_be_used_is_at_stake_until_no_clock_lets_it_be_locked() {
        let mut unsure = Unsure::default();
        unsure.add(&sent(1, 50, END_S));
        unsure.add(&sent(2, 700, END_S));
        let at_stake = |unsure: &Unsure, least_nano, now_s| {
            let mut at_stake = AtStake::default();
            assert!(unsure.again(terms(1), least_nano, now_s, &mut at_stake).is_none());
            at_stake.nano
        };
        assert_eq!(
            at_stake(&unsure, 100, 0),
            50,
            "too small; another guest's does not count"
        );
        let soon_s = u64::from(END_S) - 60;
        assert_eq!(at_stake(&unsure, 10, soon_s), 50, "it ends too soon");
        unsure.look(None, soon_s);
        assert_eq!(at_stake(&unsure, 100, soon_s), 50);
        unsure.look(None, u64::from(END_S) + 3_600);
        assert_eq!(at_stake(&unsure, 100, 0), 0);
    }
}
