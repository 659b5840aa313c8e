use cocoon_protocol::Grant;
use tycho_types::models::{CurrencyCollection, StorageInfo};

use super::*;

type Entries = Dict<HashBytes, (u64, u64, u64, Cell)>;

fn terms(expires_s: u32) -> Grant {
    Grant {
        network: NetworkId::MAINNET,
        contract: AccountAddress(Digest32([1; 32])),
        agent_key: [2; 32],
        payout_address: AccountAddress(Digest32([3; 32])),
        prices: Prices {
            input_nano_per_kilotoken: 4,
            output_nano_per_kilotoken: 5,
        },
        cap_nano: 6,
        expires_s,
    }
}

fn entry(terms: &Grant) -> (u64, u64, u64, Cell) {
    let mut cell = CellBuilder::new();
    cell.store_raw(&terms.signed_bytes(), TERMS_BITS).unwrap();
    (7, 8, 9, cell.build().unwrap())
}

/// What is read from a deposit with these grants.
fn read(grants: &Entries) -> Result<Vec<(Digest32, GrantState)>, Error> {
    let head = (NetworkId::MAINNET.0.cast_unsigned(), HashBytes([1; 32]), 0_u32);
    let data = CellBuilder::build_from((head, Tokens::ZERO, grants)).unwrap();
    let account = Account {
        address: IntAddr::default(),
        storage_stat: StorageInfo::default(),
        last_trans_lt: 0,
        balance: CurrencyCollection::ZERO,
        state: AccountState::Active(StateInit {
            code: Some(code_cell().clone()),
            data: Some(data),
            ..StateInit::default()
        }),
    };
    Ok(DepositState::read(&account)?.unwrap().grants)
}

#[test]
fn terms_under_an_id_that_is_not_theirs_are_refused() {
    let [honest, other] = [1, 2].map(terms);
    let mut grants = Entries::new();
    grants.set(HashBytes(honest.id().0), entry(&honest)).unwrap();
    let found = read(&grants).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].0, found[0].1.expires_s), (honest.id(), 1));
    assert_eq!((found[0].1.served.output, found[0].1.paid_nano), (8, 9));

    grants.set(HashBytes(honest.id().0), entry(&other)).unwrap();
    assert_eq!(read(&grants).unwrap_err(), Error::InvalidData);
    let mut short = CellBuilder::new();
    short.store_raw(&honest.signed_bytes(), TERMS_BITS - 8).unwrap();
    let short = (7, 8, 9, short.build().unwrap());
    grants.set(HashBytes(honest.id().0), short).unwrap();
    assert_eq!(read(&grants).unwrap_err(), Error::CellUnderflow);
}

#[test]
fn a_dictionary_whose_forks_lead_twice_to_the_same_cell_is_refused_at_once() {
    const FORKS: u16 = 40;
    let mut leaf = CellBuilder::new();
    // hml_same$11 v:Bit n: the rest of the key, zeros; n is 0 to 216, so 8 bits.
    leaf.store_uint(0b110, 3).unwrap();
    leaf.store_uint((256 - FORKS).into(), 8).unwrap();
    entry(&terms(1))
        .store_into(&mut leaf, Cell::empty_context())
        .unwrap();
    let mut root = leaf.build().unwrap();
    for _ in 0..FORKS {
        let mut fork = CellBuilder::new();
        // hml_short$0 with an empty label.
        fork.store_zeros(2).unwrap();
        fork.store_reference(root.clone()).unwrap();
        fork.store_reference(root).unwrap();
        root = fork.build().unwrap();
    }
    assert_eq!(
        read(&Entries::from_raw(Some(root))).unwrap_err(),
        Error::InvalidData
    );
}

#[test]
fn the_committed_hash_is_the_codes() {
    assert_eq!(
        include_str!("../../contract/deposit.hash").trim_end(),
        deposit_code().hash.to_string()
    );
}

#[test]
fn the_agents_arithmetic_yields_the_state_inits_hash() {
    for (network, owner) in [(NetworkId::LOCAL, [1; 32]), (NetworkId::MAINNET, [0xfe; 32])] {
        let state = CellBuilder::build_from(initial_state(network, &owner)).unwrap();
        let address = deposit_code().deposit_address(network, &owner);
        assert_eq!(address.0.as_bytes(), &state.repr_hash().0);
    }
}

#[test]
fn withdrawals_fit_one_tvm_slice() {
    let withdrawal = Withdrawal {
        network: NetworkId::LOCAL,
        contract: AccountAddress(Digest32::ZERO),
        seqno: 0,
        valid_until_s: 0,
        destination: AccountAddress(Digest32::ZERO),
        amount_nano: 0,
        release: None,
    };
    assert_eq!(withdrawal.signed_bytes().len(), 120);
}
