//! The contract's rules, each with the attack that it stops, in the TVM of the local chain.

mod history;
mod messages;
mod reserving;
mod settling;

use cocoon_evidence::Digest32;
use cocoon_protocol::{AccountAddress, Grant, NetworkId, Prices, SignedGrant, TokenCounts, Voucher};
use ed25519_dalek::SigningKey;
use num_bigint::{BigInt, Sign};
use tempfile::TempDir;
use tycho_types::{
    boc::Boc,
    cell::CellSliceParts,
    models::{
        Account, CurrencyCollection, ExtInMsgInfo, IntAddr, IntMsgInfo, MsgInfo, OwnedMessage, StdAddr,
    },
    num::Tokens,
    prelude::*,
};
use tycho_vm::{RcStackValue, VmCaller};

use super::{
    chain::{Chain, Executed, NotExecuted},
    genesis::{GIVER_NANO, give_message, giver_address},
};
use crate::{
    DepositState, GRANT_LIFETIME_MAX_S, GrantState, RESERVE_NANO, WITHDRAW_ALL, Withdrawal,
    contract::{LOCK_FEES_NANO, initial_state, lock_message, settle_message, withdraw_message},
    deposit_code, settle_minimum_nano,
};

const TON: u64 = 1_000_000_000;
const START_S: u32 = 1_800_000_000;
const EXPIRES_S: u32 = START_S + 3600;

/// One nanoTON a token, both ways: amounts read as tokens.
const PRICES: Prices = Prices {
    input_nano_per_kilotoken: 1000,
    output_nano_per_kilotoken: 1000,
};

fn owner() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn agent(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

fn provider() -> AccountAddress {
    AccountAddress(Digest32::of(b"provider"))
}

fn deposit() -> AccountAddress {
    deposit_code().deposit_address(NetworkId::LOCAL, &owner().verifying_key().to_bytes())
}

fn grant(agent: &SigningKey) -> Grant {
    Grant {
        network: NetworkId::LOCAL,
        contract: deposit(),
        agent_key: agent.verifying_key().to_bytes(),
        payout_address: provider(),
        prices: PRICES,
        cap_nano: 2 * TON,
        expires_s: EXPIRES_S,
    }
}

/// The claim of so many nanoTON on [`grant`].
fn voucher(agent: &SigningKey, nano: u64) -> Voucher {
    Voucher {
        network: NetworkId::LOCAL,
        contract: deposit(),
        agent_key: agent.verifying_key().to_bytes(),
        grant: grant(agent).id(),
        served: TokenCounts {
            input: 0,
            output: nano,
        },
    }
}

fn withdrawal(amount_nano: u64) -> Withdrawal {
    Withdrawal {
        network: NetworkId::LOCAL,
        contract: deposit(),
        seqno: 0,
        valid_until_s: START_S + 600,
        destination: AccountAddress(Digest32::of(b"wallet")),
        amount_nano,
        release: None,
    }
}

struct World {
    chain: Chain,
    now: u32,
    salt: u64,
    fees_nano: u128,
    dir: TempDir,
}

impl World {
    /// A chain on which the deposit's address has 5 TON.
    fn funded() -> Self {
        let mut world = Self::empty();
        world.fund(5 * TON);
        world
    }

    /// The same with [`grant`] locked for agent 1.
    fn granted() -> Self {
        let mut world = Self::funded();
        world.lock(grant(&agent(1))).unwrap();
        world
    }

    fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            chain: Chain::open(dir.path()).unwrap(),
            now: START_S,
            salt: 0,
            fees_nano: 0,
            dir,
        }
    }

    fn reopen(self) -> Self {
        let Self { chain, dir, .. } = self;
        drop(chain);
        let chain = Chain::open(dir.path()).unwrap();
        Self { chain, dir, ..self }
    }

    fn send(&mut self, message: &[u8]) -> Result<Executed, NotExecuted> {
        let executed = self.chain.execute(message, self.now)?;
        self.fees_nano += executed.fees_nano;
        Ok(executed)
    }

    fn fund(&mut self, nano: u64) {
        self.salt += 1;
        let message = give_message(&deposit(), nano, self.now + 60, self.salt);
        self.send(&message).unwrap();
    }

    fn lock(&mut self, grant: Grant) -> Result<Executed, NotExecuted> {
        let deploy = self.state_if_any().is_none();
        self.send(&lock_message(&grant.sign(&owner()), deploy))
    }

    fn settle(&mut self, voucher: Voucher) -> Result<Executed, NotExecuted> {
        self.send(&settle_message(&voucher.sign(&agent(1))))
    }

    fn withdraw(&mut self, withdrawal: Withdrawal) -> Result<Executed, NotExecuted> {
        self.send(&withdraw_message(&withdrawal.sign(&owner())))
    }

    fn account(&self, address: &AccountAddress) -> Option<Account> {
        let (state, _) = self.chain.account(address).unwrap();
        (!state.is_empty())
            .then(|| Boc::decode(state).unwrap())
            .and_then(|cell| cell.parse::<tycho_types::models::OptionalAccount>().unwrap().0)
    }

    fn balance(&self, address: &AccountAddress) -> u64 {
        self.account(address)
            .map_or(0, |account| account.balance.tokens.into_inner() as u64)
    }

    fn state_if_any(&self) -> Option<DepositState> {
        self.account(&deposit())
            .and_then(|account| DepositState::read(&account).unwrap())
    }

    fn state(&self) -> DepositState {
        self.state_if_any().unwrap()
    }

    fn granted_state(&self) -> GrantState {
        *self.state().grant(&grant(&agent(1)).id()).unwrap()
    }

    /// Sends what the contract has to refuse before ACCEPT, with this exit code, and sees that nothing changed.
    #[track_caller]
    fn refuses(&mut self, message: &[u8], code: i32) {
        let before = self.chain.state_hash();
        match self.chain.execute(message, self.now) {
            Err(NotExecuted::NotAccepted { exit_code }) => assert_eq!(exit_code, Some(code)),
            other => panic!("expected exit code {code}, found {other:?}"),
        }
        assert_eq!(self.chain.state_hash(), before);
    }

    #[track_caller]
    fn refuses_voucher(&mut self, code: i32, change: impl FnOnce(&mut Voucher)) {
        let mut claim = voucher(&agent(1), TON);
        change(&mut claim);
        self.refuses(&settle_message(&claim.sign(&agent(1))), code);
    }

    #[track_caller]
    fn refuses_grant(&mut self, code: i32, change: impl FnOnce(&mut Grant)) {
        let mut terms = grant(&agent(2));
        change(&mut terms);
        let signed = terms.sign(&owner());
        // Also what is for another contract has to be refused by this one.
        self.refuses(&readdressed(&lock_message(&signed, false)), code);
    }

    #[track_caller]
    fn refuses_withdrawal(&mut self, code: i32, change: impl FnOnce(&mut Withdrawal)) {
        let mut order = withdrawal(TON);
        change(&mut order);
        self.refuses(&readdressed(&withdraw_message(&order.sign(&owner()))), code);
    }

    /// An account without code takes no external message.
    #[track_caller]
    fn refuses_undeployed(&mut self, message: &[u8]) {
        let before = self.chain.state_hash();
        assert!(matches!(
            self.chain.execute(message, self.now),
            Err(NotExecuted::NotAccepted { exit_code: None })
        ));
        assert_eq!(self.chain.state_hash(), before);
    }
}

/// The message as it is, but sent to [`deposit`].
fn readdressed(message: &[u8]) -> Vec<u8> {
    let cell = Boc::decode(message).unwrap();
    let mut message = cell.parse::<OwnedMessage>().unwrap();
    message.info = MsgInfo::ExtIn(ExtInMsgInfo {
        src: None,
        dst: IntAddr::Std(StdAddr::new(0, HashBytes(*deposit().0.as_bytes()))),
        import_fee: Tokens::ZERO,
    });
    Boc::encode(CellBuilder::build_from(&message).unwrap())
}
