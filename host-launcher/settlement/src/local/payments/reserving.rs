//! What a deposit holds for its grants is there when they are settled.

use super::*;

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
