//! The contract's rules, each with the attack that it stops, in the TVM of the local chain.

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

#[test]
fn a_deposit_is_funded_locked_settled_twice_and_withdrawn_and_no_coin_is_lost() {
    let mut world = World::funded();
    let lock = world.lock(grant(&agent(1))).unwrap();
    let locked = world.balance(&deposit());
    assert!(
        locked >= 5 * TON - LOCK_FEES_NANO,
        "locking cost {}",
        5 * TON - locked
    );
    assert_eq!(world.state().reserved_nano, 2 * TON);

    let first = world.settle(voucher(&agent(1), TON / 10)).unwrap();
    let second = world.settle(voucher(&agent(1), TON)).unwrap();
    assert_eq!(world.granted_state().paid_nano, TON);
    assert_eq!(world.granted_state().served.output, TON);
    assert_eq!(world.state().reserved_nano, TON);
    let received = world.balance(&provider());
    assert!(received > TON - 15_000_000, "the provider received {received}");

    // Other clients' grants still count on the reserve, so the cap's rest stays.
    let withdraw = world.withdraw(withdrawal(WITHDRAW_ALL)).unwrap();
    assert_eq!(world.state().seqno, 1);
    assert!(world.balance(&deposit()) >= TON + RESERVE_NANO);

    world.now = EXPIRES_S + 1;
    let rest = Withdrawal {
        seqno: 1,
        valid_until_s: world.now + 60,
        release: Some(grant(&agent(1)).id()),
        ..withdrawal(WITHDRAW_ALL)
    };
    let release = world.withdraw(rest).unwrap();
    assert_eq!(world.state().grants, []);
    assert_eq!(world.state().reserved_nano, 0);
    assert!(world.balance(&deposit()) < TON / 100, "next to nothing is left");

    let everywhere: u128 = [deposit(), provider(), withdrawal(0).destination, giver_address()]
        .iter()
        .map(|address| u128::from(world.balance(address)))
        .sum();
    let genesis = World::empty().balance(&giver_address());
    assert!(genesis <= GIVER_NANO);
    assert_eq!(everywhere + world.fees_nano, u128::from(genesis));
    for (name, executed) in [
        ("lock, deploying", lock),
        ("settle", first),
        ("settle again", second),
        ("withdraw", withdraw),
        ("release and withdraw", release),
    ] {
        println!(
            "{name}: gas {}, fees {} nanoTON",
            executed.gas, executed.fees_nano
        );
    }
    println!("locking cost the deposit {} nanoTON", 5 * TON - locked);
    println!("of {TON} the provider received {received} in two settlements");
}

#[test]
fn settling_costs_the_deposit_what_the_voucher_raises_and_no_more() {
    let mut world = World::granted();
    for nano in [TON / 2, TON, 2 * TON] {
        let (before, paid) = (world.balance(&deposit()), world.granted_state().paid_nano);
        let executed = world.settle(voucher(&agent(1), nano)).unwrap();
        let cost = before - world.balance(&deposit());
        assert!(cost <= nano - paid, "cost {cost}, raised {}", nano - paid);
        // What the contract estimates too high stays in the deposit: less than 400 units of gas.
        assert!(
            nano - paid - cost < 400 * 400,
            "{} kept, gas {}",
            nano - paid - cost,
            executed.gas
        );
    }
}

#[test]
fn a_replayed_voucher_pays_nothing() {
    let mut world = World::granted();
    let message = settle_message(&voucher(&agent(1), TON).sign(&agent(1)));
    world.send(&message).unwrap();
    world.refuses(&message, 214);
    world.settle(voucher(&agent(1), 2 * TON)).unwrap();
    world.refuses(&message, 212);
}

#[test]
fn a_voucher_of_another_network_contract_grant_or_agent_pays_nothing() {
    let mut world = World::granted();
    let elsewhere = AccountAddress(Digest32::of(b"elsewhere"));
    world.refuses_voucher(202, |claim| claim.network = NetworkId::MAINNET);
    let mut other = voucher(&agent(1), TON);
    other.contract = elsewhere;
    world.refuses(&readdressed(&settle_message(&other.sign(&agent(1)))), 203);
    world.refuses_voucher(210, |claim| claim.grant = Digest32::of(b"no grant"));
    world.refuses_voucher(211, |claim| claim.agent_key = agent(2).verifying_key().to_bytes());
    // The right key in the voucher, signed by another.
    world.refuses(&settle_message(&voucher(&agent(1), TON).sign(&agent(2))), 204);
    let mut changed = voucher(&agent(1), TON).sign(&agent(1));
    changed.voucher.served.output += 1;
    world.refuses(&settle_message(&changed), 204);
    assert_eq!(world.balance(&provider()), 0);
}

#[test]
fn an_old_voucher_is_worth_nothing_on_the_agents_next_grant() {
    let mut world = World::granted();
    let old = voucher(&agent(1), TON).sign(&agent(1));
    world.send(&settle_message(&old)).unwrap();
    let next = Grant {
        expires_s: EXPIRES_S + 1,
        ..grant(&agent(1))
    };
    world.lock(next.clone()).unwrap();
    world.refuses(&settle_message(&old), 214);
    // Relabelled for the new grant, the agent's signature no longer fits.
    let mut moved = old;
    moved.voucher.grant = next.id();
    world.refuses(&settle_message(&moved), 204);
}

#[test]
fn counts_cannot_go_backwards_even_if_the_amount_grows() {
    let mut world = World::granted();
    let mut claim = voucher(&agent(1), 0);
    claim.served = TokenCounts {
        input: TON / 2,
        output: TON / 2,
    };
    world.settle(claim).unwrap();
    world.refuses_voucher(212, |claim| {
        claim.served = TokenCounts {
            input: TON / 2 - 1,
            output: TON,
        }
    });
    world.refuses_voucher(212, |claim| {
        claim.served = TokenCounts {
            input: TON + TON / 2,
            output: 0,
        }
    });
}

#[test]
fn an_amount_over_the_cap_is_refused_and_the_cap_itself_is_paid() {
    let mut world = World::granted();
    world.refuses_voucher(213, |claim| claim.served.output = 2 * TON + 1);
    world.refuses_voucher(213, |claim| {
        claim.served = TokenCounts {
            input: u64::MAX,
            output: u64::MAX,
        }
    });
    world.settle(voucher(&agent(1), 2 * TON)).unwrap();
    assert_eq!(world.state().reserved_nano, 0);
}

#[test]
fn a_tiny_raise_is_refused_before_it_costs_anything() {
    let mut world = World::granted();
    let minimum = settle_minimum_nano();
    world.refuses_voucher(214, |claim| claim.served.output = 0);
    world.refuses_voucher(214, |claim| claim.served.output = minimum - 1);
    world.settle(voucher(&agent(1), minimum)).unwrap();
    world.refuses_voucher(214, |claim| claim.served.output = 2 * minimum - 1);
    world.settle(voucher(&agent(1), 2 * minimum)).unwrap();
}

#[test]
fn prices_are_rounded_as_the_agent_rounds_them() {
    let prices = Prices {
        input_nano_per_kilotoken: 1_234_567,
        output_nano_per_kilotoken: 7_654_321,
    };
    let mut world = World::funded();
    let terms = Grant {
        prices,
        ..grant(&agent(1))
    };
    world.lock(terms.clone()).unwrap();
    for served in [
        TokenCounts {
            input: 1_001,
            output: 22_777,
        },
        TokenCounts {
            input: 99_999,
            output: 37_773,
        },
    ] {
        let claim = Voucher {
            grant: terms.id(),
            served,
            ..voucher(&agent(1), 0)
        };
        world.settle(claim).unwrap();
        let paid = world.state().grant(&terms.id()).unwrap().paid_nano;
        assert_eq!(Some(paid), prices.amount_nano(served));
    }
}

#[test]
fn one_deposit_cannot_back_more_than_it_holds() {
    let mut world = World::granted();
    world.refuses_grant(209, |terms| terms.cap_nano = 3 * TON);
    world.lock(grant(&agent(2))).unwrap();
    // 5 TON, 4 of them reserved.
    world.refuses_grant(209, |terms| {
        terms.agent_key = agent(4).verifying_key().to_bytes();
        terms.cap_nano = TON;
    });
    assert_eq!(world.state().reserved_nano, 4 * TON);
    for number in [1, 2] {
        let claim = voucher(&agent(number), 2 * TON).sign(&agent(number));
        world.send(&settle_message(&claim)).unwrap();
    }
    assert!(world.balance(&provider()) > 4 * TON - 15_000_000);
}

#[test]
fn a_replayed_grant_locks_nothing_more() {
    let mut world = World::funded();
    let signed = grant(&agent(1)).sign(&owner());
    world.refuses_undeployed(&lock_message(&signed, false));
    world.send(&lock_message(&signed, true)).unwrap();
    world.refuses(&lock_message(&signed, false), 207);
    world.refuses(&lock_message(&signed, true), 207);
    // Not even when it has expired and was released.
    world.now = EXPIRES_S + 1;
    let release = Withdrawal {
        valid_until_s: world.now,
        release: Some(grant(&agent(1)).id()),
        ..withdrawal(0)
    };
    world.withdraw(release).unwrap();
    assert_eq!(world.state().grants, []);
    world.refuses(&lock_message(&signed, false), 205);
}

impl World {
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

#[test]
fn a_grant_that_is_not_this_owners_for_this_deposit_is_refused() {
    let mut world = World::granted();
    world.refuses_grant(202, |terms| terms.network = NetworkId::TESTNET);
    world.refuses_grant(203, |terms| {
        terms.contract = AccountAddress(Digest32::of(b"elsewhere"));
    });
    world.refuses_grant(205, |terms| terms.expires_s = START_S);
    world.refuses_grant(206, |terms| terms.expires_s = START_S + GRANT_LIFETIME_MAX_S + 1);
    world.refuses_grant(208, |terms| terms.cap_nano = settle_minimum_nano() - 1);
    world.refuses_grant(209, |terms| terms.cap_nano = u64::MAX);
    let thief = grant(&agent(2)).sign(&agent(9));
    world.refuses(&lock_message(&thief, false), 204);
    let mut raised = grant(&agent(2)).sign(&owner());
    raised.grant.cap_nano += 1;
    world.refuses(&lock_message(&raised, false), 204);
}

#[test]
fn an_expired_grant_pays_nothing_and_its_rest_is_released() {
    let mut world = World::granted();
    world.now = EXPIRES_S;
    world.settle(voucher(&agent(1), TON)).unwrap();
    let release = |world: &World| Withdrawal {
        valid_until_s: world.now + 60,
        release: Some(grant(&agent(1)).id()),
        ..withdrawal(0)
    };
    let early = withdraw_message(&release(&world).sign(&owner()));
    world.refuses(&early, 216);
    world.now = EXPIRES_S + 1;
    world.refuses_voucher(205, |claim| claim.served.output = 2 * TON);
    world.withdraw(release(&world)).unwrap();
    assert_eq!(world.state().reserved_nano, 0);
    world.refuses_voucher(210, |claim| claim.served.output = 2 * TON);
    let again = Withdrawal {
        seqno: 1,
        ..release(&world)
    };
    world.refuses(&withdraw_message(&again.sign(&owner())), 210);
}

#[test]
fn rent_does_not_eat_what_is_reserved() {
    let mut world = World::empty();
    world.fund(2 * TON + RESERVE_NANO + LOCK_FEES_NANO);
    let terms = Grant {
        expires_s: START_S + GRANT_LIFETIME_MAX_S,
        ..grant(&agent(1))
    };
    world.lock(terms.clone()).unwrap();
    world.now = terms.expires_s;
    let claim = Voucher {
        grant: terms.id(),
        ..voucher(&agent(1), 2 * TON)
    };
    world.settle(claim).unwrap();
    assert!(world.balance(&provider()) > 2 * TON - 10_000_000);
    assert!(world.balance(&deposit()) > RESERVE_NANO * 9 / 10);
}

#[test]
fn reserved_coins_cannot_be_withdrawn() {
    let mut world = World::granted();
    // 5 TON less fees and the reserve of a deposit with grants, 2 of them reserved.
    world.refuses_withdrawal(209, |order| order.amount_nano = 3 * TON - RESERVE_NANO);
    world.refuses_withdrawal(209, |order| order.amount_nano = 5 * TON);
    world.withdraw(withdrawal(3 * TON - 2 * RESERVE_NANO)).unwrap();
    world.settle(voucher(&agent(1), 2 * TON)).unwrap();
    assert!(world.balance(&provider()) > 2 * TON - 10_000_000);
}

#[test]
fn an_owner_cannot_burn_the_reserve_by_releasing_until_rent_eats_a_cap() {
    let mut world = World::empty();
    world.fund(100 * TON);
    let victim = Grant {
        expires_s: START_S + GRANT_LIFETIME_MAX_S,
        ..grant(&agent(1))
    };
    world.lock(victim.clone()).unwrap();
    // The owner's own agent draws all of these: the short ones at once, so that releasing them frees nothing
    // and costs gas; the long ones before the victim, and until then they raise the rent.
    let own = |number: u32, expires_s: u32| Grant {
        payout_address: AccountAddress(Digest32::of(&number.to_be_bytes())),
        cap_nano: TON / 10,
        expires_s,
        ..grant(&agent(2))
    };
    let (short, long) = (
        (0..16).map(|number| own(number, EXPIRES_S)),
        (100..135).map(|number| own(number, victim.expires_s)),
    );
    let draw = |terms: Grant| {
        let claim = Voucher {
            grant: terms.id(),
            ..voucher(&agent(2), TON / 10)
        };
        settle_message(&claim.sign(&agent(2)))
    };
    for terms in short.clone() {
        world.lock(terms.clone()).unwrap();
        world.send(&draw(terms)).unwrap();
    }
    for terms in long.clone() {
        world.lock(terms).unwrap();
    }
    world.withdraw(withdrawal(WITHDRAW_ALL)).unwrap();

    world.now = EXPIRES_S + 1;
    let released = short
        .filter(|terms| {
            let release = Withdrawal {
                seqno: world.state().seqno,
                valid_until_s: world.now,
                release: Some(terms.id()),
                ..withdrawal(0)
            };
            world.withdraw(release).is_ok()
        })
        .count();
    assert!(released < 16, "{released} were released for nothing");

    world.now = victim.expires_s;
    for terms in long {
        world.send(&draw(terms)).unwrap();
    }
    let claim = Voucher {
        grant: victim.id(),
        ..voucher(&agent(1), 2 * TON)
    };
    world.settle(claim).unwrap();
    assert!(world.balance(&provider()) > 2 * TON - 10_000_000);
}

#[test]
fn a_withdrawal_works_once_for_its_owner_here_and_now() {
    let mut world = World::granted();
    world.refuses_withdrawal(202, |order| order.network = NetworkId::MAINNET);
    world.refuses_withdrawal(203, |order| {
        order.contract = AccountAddress(Digest32::of(b"elsewhere"));
    });
    world.refuses_withdrawal(215, |order| order.seqno = 1);
    world.refuses_withdrawal(205, |order| order.valid_until_s = START_S - 1);
    world.refuses_withdrawal(206, |order| order.valid_until_s = START_S + 24 * 3600 + 1);
    world.refuses_withdrawal(217, |order| order.amount_nano = 1);
    world.refuses_withdrawal(217, |order| order.amount_nano = 0);
    world.refuses(&withdraw_message(&withdrawal(TON).sign(&agent(9))), 204);
    let message = withdraw_message(&withdrawal(TON).sign(&owner()));
    world.send(&message).unwrap();
    world.refuses(&message, 215);
    assert!(world.balance(&withdrawal(0).destination) <= TON);
}

#[test]
fn one_kind_of_signed_bytes_does_not_pass_as_another() {
    let mut world = World::granted();
    // Same length, same owner: what was signed to withdraw, sent as a voucher, and a grant as a withdrawal.
    let order = withdrawal(TON).sign(&owner());
    let body = |op: u32, signature: &[u8; 64], signed: &[u8]| body_of(op, signature, signed);
    let as_voucher = body(0xc0c0_0002, &order.signature, &order.withdrawal.signed_bytes());
    world.refuses(&crate::contract::external(&deposit(), None, as_voucher), 201);
    let terms = grant(&agent(2)).sign(&owner());
    let as_order = body(0xc0c0_0003, &terms.signature, &terms.grant.signed_bytes());
    world.refuses(&crate::contract::external(&deposit(), None, as_order), 9);
}

fn body_of(op: u32, signature: &[u8], signed: &[u8]) -> Cell {
    let mut leaf = CellBuilder::new();
    leaf.store_raw(signed, signed.len() as u16 * 8).unwrap();
    let mut body = CellBuilder::new();
    body.store_u32(op).unwrap();
    body.store_raw(signature, signature.len() as u16 * 8).unwrap();
    body.store_reference(leaf.build().unwrap()).unwrap();
    body.build().unwrap()
}

#[test]
fn malformed_and_truncated_messages_are_not_accepted() {
    let mut world = World::granted();
    let claim = voucher(&agent(1), TON).sign(&agent(1));
    let bytes = claim.voucher.signed_bytes();
    let send = |body: Cell| crate::contract::external(&deposit(), None, body);
    world.refuses(&send(Cell::default()), 9);
    for op in [0xc0c0_0001, 0xc0c0_0002, 0xc0c0_0003] {
        for length in [0, 1, 4, 60, bytes.len() - 1] {
            world.refuses(&send(body_of(op, &claim.signature, &bytes[..length])), 9);
        }
        world.refuses(&send(body_of(op, &claim.signature[..63], &bytes)), 9);
    }
    let long = [bytes.as_slice(), &[0]].concat();
    world.refuses(&send(body_of(0xc0c0_0002, &claim.signature, &long)), 9);
    world.refuses(&send(body_of(0xc0c0_0009, &claim.signature, &bytes)), 0xffff);
    world.refuses(
        &send(body_of(
            0xc0c0_0002,
            &[claim.signature.as_slice(), &[0]].concat(),
            &bytes,
        )),
        200,
    );
    let message = settle_message(&claim);
    for cut in 0..message.len() {
        let result = world.chain.execute(&message[..cut], world.now);
        assert!(
            matches!(result, Err(NotExecuted::Malformed(_))),
            "cut {cut}: {result:?}"
        );
    }
}

#[test]
fn a_relayer_cannot_make_the_deposit_pay_for_importing_junk() {
    let mut world = World::granted();
    // The executor itself refuses other StateInits than the account's own.
    let junk = initial_state(NetworkId::LOCAL, &owner().verifying_key().to_bytes());
    let claim = settle_message(&voucher(&agent(1), TON).sign(&agent(1)));
    let locked = lock_message(&grant(&agent(2)).sign(&owner()), false);
    let order = withdraw_message(&withdrawal(TON).sign(&owner()));
    for message in [claim, locked, order] {
        let cell = Boc::decode(&message).unwrap();
        let mut parsed = cell.parse::<OwnedMessage>().unwrap();
        parsed.init = Some(junk.clone());
        let stuffed = Boc::encode(CellBuilder::build_from(&parsed).unwrap());
        world.refuses(&stuffed, 200);
    }
}

#[test]
fn gas_stays_within_the_contracts_bounds() {
    let mut world = World::empty();
    world.fund(100 * TON);
    let terms = |number: u32| Grant {
        cap_nano: TON / 2,
        payout_address: AccountAddress(Digest32::of(&number.to_be_bytes())),
        ..grant(&agent(1))
    };
    for number in 1..=16 {
        let lock = world.lock(terms(number)).unwrap();
        let claim = Voucher {
            grant: terms(number).id(),
            ..voucher(&agent(1), TON / 4)
        };
        let settle = world.settle(claim).unwrap();
        assert!(settle.gas <= 15_000, "settling took {}", settle.gas);
        if [1, 16].contains(&number) {
            println!("{number} grants: gas of lock {}, settle {}", lock.gas, settle.gas);
        }
    }
}

/// Grants whose ids share ever more leading bits with the first one's, until the contract takes no more.
fn bury(world: &mut World, victim: &Grant) -> usize {
    let shared = |a: Digest32, b: Digest32| -> u32 {
        let bytes = a.0.iter().zip(b.0);
        let differing = bytes.map(|(a, b)| (a ^ b).leading_zeros());
        let whole = differing.clone().take_while(|zeros| *zeros == 8).count() as u32;
        whole * 8 + differing.clone().nth(whole as usize).unwrap_or(0)
    };
    for (count, bits) in (0..).enumerate() {
        let neighbour = (0_u32..)
            .map(|number| Grant {
                cap_nano: TON / 4,
                payout_address: AccountAddress(Digest32::of(&number.to_be_bytes())),
                ..victim.clone()
            })
            .find(|terms| shared(terms.id(), victim.id()) == bits)
            .unwrap();
        let signed = neighbour.sign(&owner());
        match world.send(&lock_message(&signed, false)) {
            Ok(_) => {}
            Err(_) => {
                world.refuses(&lock_message(&signed, false), 218);
                return count;
            }
        }
    }
    unreachable!("some depth is refused")
}

#[test]
fn an_owner_cannot_bury_a_grant_so_deep_that_it_cannot_be_settled() {
    let mut world = World::granted();
    world.fund(50 * TON);
    let victim = grant(&agent(1));
    let neighbours = bury(&mut world, &victim);
    assert!(neighbours >= 10, "only {neighbours} were needed");
    let before = world.balance(&deposit());
    let settle = world.settle(voucher(&agent(1), TON)).unwrap();
    assert!(settle.gas <= 15_000, "settling took {}", settle.gas);
    assert!(
        before - world.balance(&deposit()) <= TON,
        "the provider pays for the depth"
    );
    world.now = EXPIRES_S + 1;
    let release = Withdrawal {
        valid_until_s: world.now,
        release: Some(victim.id()),
        ..withdrawal(TON)
    };
    let withdraw = world.withdraw(release).unwrap();
    assert!(withdraw.gas <= 15_000, "withdrawing took {}", withdraw.gas);
    println!(
        "{neighbours} neighbours: gas of settle {}, withdraw {}",
        settle.gas, withdraw.gas
    );
}

#[test]
fn unknown_internal_messages_bounce_and_comments_are_kept() {
    let world = World::granted();
    let body = |op: u32| {
        let mut body = CellBuilder::new();
        body.store_u32(op).unwrap();
        body.build().unwrap()
    };
    for (body, kept) in [(Cell::default(), true), (body(0), true), (body(1), false)] {
        let message = CellBuilder::build_from(OwnedMessage {
            info: MsgInfo::Int(IntMsgInfo {
                bounce: true,
                src: IntAddr::Std(StdAddr::new(0, HashBytes(*provider().0.as_bytes()))),
                dst: IntAddr::Std(StdAddr::new(0, HashBytes(*deposit().0.as_bytes()))),
                value: CurrencyCollection::new(u128::from(TON)),
                ..IntMsgInfo::default()
            }),
            init: None,
            body: CellSliceParts::from(body),
            layout: None,
        })
        .unwrap();
        let (changes, _) = world.chain.transactions(message, false, world.now).unwrap();
        let after = changes[&HashBytes(*deposit().0.as_bytes())]
            .load_account()
            .unwrap()
            .unwrap();
        let gained = after.balance.tokens.into_inner() as u64 - world.balance(&deposit());
        assert_eq!(gained > TON / 2, kept, "gained {gained}");
    }
}

#[test]
fn get_methods_tell_what_the_data_says() {
    let mut world = World::granted();
    world.settle(voucher(&agent(1), TON)).unwrap();
    let account = world.account(&deposit()).unwrap();
    let caller = VmCaller {
        libraries: Dict::default(),
        behaviour_modifiers: tycho_vm::BehaviourModifiers::default(),
        config: super::genesis::config().unwrap().params,
    };
    let call = |name: &str, stack: Vec<RcStackValue>| -> Vec<String> {
        let output = caller.call_getter(&account, name, stack).unwrap();
        assert!(output.success, "exit code {}", output.exit_code);
        output
            .stack
            .iter()
            .map(|value| value.as_int().unwrap().to_string())
            .collect()
    };
    let state = call("state", vec![]);
    assert_eq!(state[1..], [TON.to_string(), "0".into()]);
    let by_id = |id: Digest32| {
        let id = BigInt::from_bytes_be(Sign::Plus, id.as_bytes());
        call("grant", vec![RcStackValue::new_dyn_value(id)])
    };
    let found = by_id(grant(&agent(1)).id());
    let expected = [2 * TON, TON, 0, TON, u64::from(EXPIRES_S)].map(|value| value.to_string());
    assert_eq!(found[..5], expected);
    assert_eq!(by_id(Digest32::ZERO), ["0"; 6]);
}

#[test]
fn a_chain_continues_after_it_was_dropped_without_shutdown() {
    let mut world = World::granted();
    world.settle(voucher(&agent(1), TON)).unwrap();
    let (hash, block) = (world.chain.state_hash(), world.chain.block_id());
    let mut world = world.reopen();
    assert_eq!(world.chain.state_hash(), hash);
    assert_eq!(world.chain.block_id(), block);
    world.refuses(&settle_message(&voucher(&agent(1), TON).sign(&agent(1))), 214);
    world.settle(voucher(&agent(1), 2 * TON)).unwrap();
    assert_eq!(world.granted_state().paid_nano, 2 * TON);
}

#[test]
fn a_torn_tail_loses_only_what_was_never_acknowledged() {
    let mut world = World::granted();
    let hash = world.chain.state_hash();
    world.settle(voucher(&agent(1), TON)).unwrap();
    let World {
        chain,
        dir,
        now,
        salt,
        fees_nano,
    } = world;
    drop(chain);
    let log = dir.path().join("messages.log");
    let content = std::fs::read(&log).unwrap();
    std::fs::write(&log, &content[..content.len() - 7]).unwrap();
    let chain = Chain::open(dir.path()).unwrap();
    assert_eq!(chain.state_hash(), hash);
    let mut world = World {
        chain,
        now,
        salt,
        fees_nano,
        dir,
    };
    world.settle(voucher(&agent(1), TON)).unwrap();
}

#[test]
fn the_giver_gives_once_an_order_and_within_its_limits() {
    let mut world = World::empty();
    let order = give_message(&deposit(), TON, START_S + 60, 7);
    world.send(&order).unwrap();
    assert_eq!(world.balance(&deposit()), TON);
    world.refuses(&order, 207);
    world.refuses(&give_message(&deposit(), 1000 * TON + 1, START_S + 60, 8), 217);
    world.refuses(&give_message(&deposit(), TON, START_S - 1, 8), 205);
    world.refuses(&give_message(&deposit(), TON, START_S + 3601, 8), 206);
}

#[test]
fn a_deposit_deploys_only_with_its_own_first_state() {
    let mut world = World::funded();
    let signed: SignedGrant = grant(&agent(1)).sign(&agent(9));
    // The thief's own state has another address, so the account does not take it.
    let cell = Boc::decode(lock_message(&signed, true)).unwrap();
    let mut message = cell.parse::<OwnedMessage>().unwrap();
    message.init = Some(initial_state(
        NetworkId::LOCAL,
        &agent(9).verifying_key().to_bytes(),
    ));
    world.refuses_undeployed(&Boc::encode(CellBuilder::build_from(&message).unwrap()));
}
