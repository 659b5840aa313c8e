//! From a verified session to a paid one: the deposit, a grant locked on chain, the grant shown to the guest.
//!
//! Needs a [`Session`], so that no grant is signed for a guest that was not verified. Prices, payout address,
//! network and contract code are those of the launch document in the evidence; the contract code must also be
//! the one that is compiled in here, because the owner's coins are only as safe as that code.

mod account;
mod error;
mod stake;
mod unsure;

use std::time::Duration;

use cocoon_evidence::Digest32;
use cocoon_protocol::{AccountAddress, Grant, LaunchDocument, NetworkId, SignedGrant, TokenCounts};
use cocoon_settlement::{
    ChainClient, DepositState, GlobalConfig, GrantState, RESERVE_NANO, SignedWithdrawal, deposit_code,
    settle_minimum_nano,
};

pub use self::{account::Account, error::PayError, stake::Locking};
use self::{
    stake::{AtStake, rest_s},
    unsure::Unsure,
};
use crate::{BoundGrant, ExchangeError, PaidSession, Proof, Session, Wallet};

/// How long a new grant may be drawn upon. What is not drawn can be withdrawn afterwards.
pub const GRANT_LIFETIME_S: u32 = 24 * 3600;

/// A grant that expires sooner is offered last: a node takes none on which it could not settle any more.
const GRANT_REST_S: u64 = 15 * 60;

/// How many grants that are locked already are shown to the guest before a new one is locked.
const GRANTS_TRIED_MAX: usize = 4;

/// A new grant is on chain before it is offered, but the node may look at another, slower liteserver, or be busy.
const OFFERS_MAX: u32 = 5;
const OFFER_PAUSE: Duration = Duration::from_secs(1);

/// What locking a grant may cost in gas; a bit more stays in the deposit.
const LOCK_GAS_NANO: u64 = 50_000_000;

/// What one request may cost at most: the guest debits this before it admits the request.
///
/// # Errors
/// The prices overflow.
pub fn need_nano(launch: &LaunchDocument, output_tokens_max: u32) -> Result<u64, PayError> {
    let worst = TokenCounts {
        input: launch.limits.context_tokens_max.into(),
        output: output_tokens_max.into(),
    };
    launch.prices.amount_nano(worst).ok_or(PayError::Price)
}

/// A wallet's deposit on one network.
#[derive(Debug)]
pub struct Purse {
    wallet: Wallet,
    /// Held while a grant is locked: one at a time.
    unsure: tokio::sync::Mutex<Unsure>,
    chain: ChainClient,
    network: NetworkId,
    deposit: AccountAddress,
}

impl Purse {
    /// Reaches the chain.
    ///
    /// # Errors
    /// [`PayError::Chain`].
    pub async fn open(wallet: Wallet, config: &GlobalConfig, network: NetworkId) -> Result<Self, PayError> {
        let chain = ChainClient::connect(config, network).await?;
        Ok(Self {
            deposit: wallet.deposit(network),
            wallet,
            unsure: tokio::sync::Mutex::default(),
            chain,
            network,
        })
    }

    /// Checks that this node can be paid at all, before a wallet is touched.
    ///
    /// # Errors
    /// [`PayError::UnknownContract`], [`PayError::SimulatedOnRealChain`].
    pub fn check_terms(proof: &Proof) -> Result<(), PayError> {
        let settlement = &proof.launch().settlement;
        let (found, known) = (settlement.contract_code, deposit_code());
        if found != known {
            return Err(PayError::UnknownContract { found, known });
        }
        if proof.guest().is_simulated() && settlement.network != NetworkId::LOCAL {
            let network = settlement.network.0;
            return Err(PayError::SimulatedOnRealChain { network });
        }
        Ok(())
    }

    /// The deposit's address.
    pub fn deposit(&self) -> AccountAddress {
        self.deposit
    }

    /// The deposit's state and balance, nanoTON. The state is `None` until its first grant is locked.
    ///
    /// # Errors
    /// [`PayError::Chain`].
    pub async fn state(&self) -> Result<(Option<DepositState>, u64), PayError> {
        match self.chain.deposit(&self.deposit).await? {
            Some(state) => {
                let balance_nano = state.balance_nano;
                Ok((Some(state), balance_nano))
            }
            None => Ok((None, self.chain.balance(&self.deposit).await?)),
        }
    }

    /// Pays out what no grant reserves.
    ///
    /// # Errors
    /// [`PayError::Chain`].
    pub async fn withdraw(&self, order: &SignedWithdrawal) -> Result<DepositState, PayError> {
        Ok(self.chain.withdraw(order).await?)
    }

    /// The key that signs for this deposit.
    pub fn wallet(&self) -> &Wallet {
        &self.wallet
    }

    /// Binds a grant with at least `need_nano` left to the session: one that is locked already, or a new one, for which
    /// the deposit is funded from the faucet on the local chain. All that `account` allows goes into the new one.
    ///
    /// # Errors
    /// See [`PayError`].
    pub async fn pay(
        &self,
        mut session: Session,
        need_nano: u64,
        account: &Account,
        now_s: u64,
    ) -> Result<PaidSession, PayError> {
        let bound = self.bind(&mut session, need_nano, account, Locking::Whole, now_s);
        let bound = bound.await?;
        Ok(session.open(bound))
    }

    /// The same. The grant can be offered on further sessions with the same guest: it is the account's current one.
    ///
    /// # Errors
    /// See [`PayError`].
    pub async fn bind(
        &self,
        session: &mut Session,
        need_nano: u64,
        account: &Account,
        locking: Locking,
        now_s: u64,
    ) -> Result<BoundGrant, PayError> {
        Self::check_terms(session.proof())?;
        let found = session.launch().settlement.network;
        if found != self.network {
            return Err(PayError::OtherNetwork {
                found: found.0,
                own: self.network.0,
            });
        }
        let mut unsure = self.unsure.lock().await;
        let (state, balance_nano) = self.state().await?;
        unsure.look(state.as_ref(), now_s);
        let open = state
            .as_ref()
            .map_or(vec![], |state| self.open_grants(state, session, now_s));
        let mut at_stake = AtStake::default();
        let taken = self.offer_open(session, open, need_nano, account, now_s, &mut at_stake);
        if let Some(bound) = taken.await? {
            return Ok(bound);
        }
        // The contract takes no grant that could never be settled.
        let least_nano = need_nano.max(settle_minimum_nano());
        // One that was sent to no visible effect is sent again, so that no second one is locked beside it.
        let terms = |cap_nano, expires_s| self.grant(session, cap_nano, expires_s);
        let again = unsure.again(terms, least_nano, now_s, &mut at_stake);
        // What is open with this guest counts, though it does not serve on it now: or a host that has its guest refuse
        // would have one grant after the other locked.
        let cap_nano = account.left_nano(session.guest().usage_key(), now_s);
        let free_nano = cap_nano.saturating_sub(at_stake.nano);
        // A half is left for another guest, not for one that refuses its own.
        if free_nano < least_nano || (locking == Locking::Half && at_stake.is_refused) {
            return Err(at_stake.short(cap_nano, least_nano, now_s));
        }
        let grant = match again {
            Some(again) if again.cap_nano <= free_nano => again,
            Some(again) => {
                at_stake.add(again.cap_nano, again.expires_s);
                return Err(at_stake.short(cap_nano, least_nano, now_s));
            }
            None => self.new_grant(session, locking.cap_nano(free_nano, least_nano), now_s),
        };
        let reserved_nano = state.map_or(0, |state| state.reserved_nano);
        self.fund(balance_nano.saturating_sub(reserved_nano), grant.cap_nano)
            .await?;
        let signed = grant.sign(self.wallet.key());
        unsure.add(&signed);
        account.promise(&signed);
        self.chain.lock_grant(&signed).await?;
        unsure.remove(&signed.grant.id());
        account.draw_on(&signed, 0);
        self.offer_new(session, &signed, need_nano).await
    }

    /// Offers a grant that is locked already; `None` if the guest does not take it, or serves too little on it.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn offer(
        &self,
        session: &mut Session,
        signed: &SignedGrant,
        need_nano: u64,
        account: &Account,
    ) -> Result<Option<BoundGrant>, PayError> {
        match session.offer(signed, self.wallet.key()).await {
            Ok(bound) => {
                account.told(&bound);
                Ok((bound.standing().left_nano() >= need_nano).then_some(bound))
            }
            Err(ExchangeError::Status { .. }) => Ok(None),
            Err(error) => Err(PayError::Offer(error)),
        }
    }

    /// The first of these grants on which the guest serves so much; else what is at stake in them.
    async fn offer_open(
        &self,
        session: &mut Session,
        open: Vec<(Grant, u64)>,
        need_nano: u64,
        account: &Account,
        now_s: u64,
        at_stake: &mut AtStake,
    ) -> Result<Option<BoundGrant>, PayError> {
        let live = |grant: &Grant| u64::from(grant.expires_s) > now_s;
        for (tried, (grant, left_nano)) in open.into_iter().enumerate() {
            let (mut stays_nano, expires_s) = (left_nano, grant.expires_s);
            let is_lasting = lasts(&grant, now_s);
            // What the chain has paid is spent, with or without a receipt.
            account.served(&grant.id(), grant.cap_nano.saturating_sub(left_nano));
            if tried < GRANTS_TRIED_MAX && left_nano >= need_nano && live(&grant) {
                let signed = grant.sign(self.wallet.key());
                match session.offer(&signed, self.wallet.key()).await {
                    Ok(bound) => {
                        // What the guest says that it served is spent, settled or not.
                        account.told(&bound);
                        if bound.standing().left_nano() >= need_nano {
                            account.draw_on(&signed, bound.served_nano());
                            return Ok(Some(bound));
                        }
                        let unserved_nano = signed.grant.cap_nano.saturating_sub(bound.served_nano());
                        stays_nano = left_nano.min(unserved_nano);
                    }
                    Err(error @ ExchangeError::Status { .. }) => {
                        at_stake.is_refused |= is_lasting;
                        at_stake.refusal = Some(error);
                    }
                    Err(error) => return Err(PayError::Offer(error)),
                }
            }
            at_stake.add(stays_nano, expires_s);
        }
        Ok(None)
    }

    async fn offer_new(
        &self,
        session: &mut Session,
        signed: &SignedGrant,
        need_nano: u64,
    ) -> Result<BoundGrant, PayError> {
        let mut offers = 0;
        loop {
            offers += 1;
            let error = match session.offer(signed, self.wallet.key()).await {
                Ok(bound) if bound.standing().left_nano() >= need_nano => return Ok(bound),
                Ok(bound) => PayError::Credit {
                    left_nano: bound.standing().left_nano(),
                    need_nano,
                },
                Err(
                    error @ ExchangeError::Status {
                        status: 402 | 429 | 503,
                        ..
                    },
                ) => PayError::Offer(error),
                Err(error) => return Err(PayError::Offer(error)),
            };
            if offers == OFFERS_MAX {
                return Err(error);
            }
            tokio::time::sleep(OFFER_PAUSE).await;
        }
    }

    async fn fund(&self, free_nano: u64, cap_nano: u64) -> Result<(), PayError> {
        let needed_nano = cap_nano
            .saturating_add(RESERVE_NANO)
            .saturating_add(LOCK_GAS_NANO);
        if free_nano >= needed_nano {
            return Ok(());
        }
        if self.network != NetworkId::LOCAL {
            return Err(PayError::Funds {
                deposit: self.deposit,
                free_nano,
                needed_nano,
            });
        }
        let nano = needed_nano - free_nano;
        tracing::info!(nano, deposit = %self.deposit, "asking the local chain's faucet");
        self.chain.request_faucet(&self.deposit, nano).await?;
        Ok(())
    }

    fn new_grant(&self, session: &Session, cap_nano: u64, now_s: u64) -> Grant {
        let expires_s = now_s.saturating_add(GRANT_LIFETIME_S.into());
        self.grant(session, cap_nano, u32::try_from(expires_s).unwrap_or(u32::MAX))
    }

    /// For this very guest, at its prices.
    fn grant(&self, session: &Session, cap_nano: u64, expires_s: u32) -> Grant {
        let launch = session.launch();
        Grant {
            network: self.network,
            contract: self.deposit,
            agent_key: *session.guest().usage_key(),
            payout_address: launch.settlement.payout_address,
            prices: launch.prices,
            cap_nano,
            expires_s,
        }
    }

    /// Grants of which this very guest could still draw, and what is left of each; the fullest first, and those that
    /// end soon last.
    fn open_grants(&self, state: &DepositState, session: &Session, now_s: u64) -> Vec<(Grant, u64)> {
        let mut found: Vec<_> = state
            .grants
            .iter()
            .filter(|(_, grant)| rest_s(grant.expires_s, now_s) > 0)
            .filter_map(|(id, grant)| {
                let rebuilt = self.grant(session, grant.cap_nano, grant.expires_s);
                // The id covers every field: a grant for another guest, or at other prices, has another one.
                is_same(id, &rebuilt).then_some((rebuilt, left_nano(grant)))
            })
            .collect();
        found.sort_by_key(|(grant, left_nano)| std::cmp::Reverse((lasts(grant, now_s), *left_nano)));
        found
    }
}

fn lasts(grant: &Grant, now_s: u64) -> bool {
    u64::from(grant.expires_s) > now_s.saturating_add(GRANT_REST_S)
}

fn is_same(id: &Digest32, grant: &Grant) -> bool {
    grant.id() == *id
}

fn left_nano(grant: &GrantState) -> u64 {
    grant.cap_nano.saturating_sub(grant.paid_nano)
}
