//! Signed messages: whose, how often, how large, and what else arrives.

use super::*;

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
