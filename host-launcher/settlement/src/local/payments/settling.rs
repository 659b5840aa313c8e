//! A voucher pays what its agent counted, once, and no more.

use super::*;

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
