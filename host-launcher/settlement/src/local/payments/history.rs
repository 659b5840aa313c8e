//! Depth of the data, what the get methods tell, and a chain that is opened again.

use super::*;

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
        config: super::super::genesis::config().unwrap().params,
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
