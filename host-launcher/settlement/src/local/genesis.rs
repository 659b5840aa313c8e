//! What the local chain starts from: a configuration with mainnet's prices, and a giver of coins.

use cocoon_evidence::Digest32;
use cocoon_protocol::{AccountAddress, NetworkId};
use tycho_types::{
    cell::CellSliceParts,
    dict::Dict,
    error::Error,
    models::{
        BlockchainConfig, CurrencyCollection, GasLimitsPrices, GlobalCapabilities, GlobalVersion, IntAddr,
        IntMsgInfo, MsgForwardPrices, MsgInfo, OwnedMessage, SizeLimitsConfig, StateInit, StdAddr,
        StoragePrices, WorkchainDescription, WorkchainFormat, WorkchainFormatBasic,
    },
    prelude::*,
};

use crate::contract::{compiled, external};

/// What the giver has at the beginning, nanoTON.
pub(super) const GIVER_NANO: u64 = 1_000_000_000 * 1_000_000_000;

/// The most that the giver gives at once, nanoTON.
pub(crate) const GIVE_NANO_MAX: u64 = 1_000 * 1_000_000_000;

const GIVER_BOC: &str = include_str!("../../contract/local-giver.boc64");
const GIVE_OP: u32 = 0xc0c0_ffff;

/// TON's configuration, as far as transactions in the basechain depend on it. Numbers are mainnet's as of 2026
/// (config parameters 18, 20, 21, 24, 25, 43); TVM version 11. There are no validators, elections or fees to
/// collators.
pub(super) fn config() -> Result<BlockchainConfig, Error> {
    let mut config = BlockchainConfig::new_empty(HashBytes([0x55; 32]));
    let params = &mut config.params;
    params.set_global_id(NetworkId::LOCAL.0)?;
    params.set_global_version(&GlobalVersion {
        version: 11,
        // capCreateStatsEnabled, capBounceMsgBody, capReportVersion, capSplitMergeTransactions, capShortDequeue
        capabilities: GlobalCapabilities::new(0x2e),
    })?;
    params.set_storage_prices(&[StoragePrices {
        utime_since: 0,
        bit_price_ps: 1,
        cell_price_ps: 500,
        mc_bit_price_ps: 1000,
        mc_cell_price_ps: 500_000,
    }])?;
    for (masterchain, factor) in [(true, 25), (false, 1)] {
        params.set_gas_prices(
            masterchain,
            &GasLimitsPrices {
                // In units of 2^-16 nanoTON, as all prices here: 400 nanoTON.
                gas_price: 26_214_400 * factor,
                gas_limit: 1_000_000,
                special_gas_limit: 1_000_000,
                gas_credit: 10_000,
                block_gas_limit: 10_000_000,
                freeze_due_limit: 100_000_000,
                delete_due_limit: 1_000_000_000,
                flat_gas_limit: 100,
                flat_gas_price: 40_000 * factor,
            },
        )?;
        params.set_msg_forward_prices(
            masterchain,
            &MsgForwardPrices {
                lump_price: 400_000 * factor,
                bit_price: 26_214_400 * factor,
                cell_price: 2_621_440_000 * factor,
                ihr_price_factor: 98_304,
                first_frac: 21_845,
                next_frac: 21_845,
            },
        )?;
    }
    params.set_size_limits(&SizeLimitsConfig {
        max_msg_bits: 1 << 21,
        max_msg_cells: 1 << 13,
        max_library_cells: 1000,
        max_vm_data_depth: 512,
        max_ext_msg_size: 65_535,
        max_ext_msg_depth: 512,
        max_acc_state_cells: 1 << 16,
        max_acc_state_bits: (1 << 16) * 1023,
        max_acc_public_libraries: 256,
        defer_out_queue_size_limit: 256,
    })?;
    params.set_fundamental_addresses(&[])?;
    let mut workchains = Dict::new();
    workchains.set(
        0,
        WorkchainDescription {
            enabled_since: 0,
            actual_min_split: 0,
            min_split: 0,
            max_split: 4,
            active: true,
            accept_msgs: true,
            zerostate_root_hash: HashBytes::ZERO,
            zerostate_file_hash: HashBytes::ZERO,
            version: 0,
            format: WorkchainFormat::Basic(WorkchainFormatBasic {
                vm_version: -1,
                vm_mode: 0,
            }),
        },
    )?;
    params.set_workchains(&workchains)?;
    Ok(config)
}

/// The giver's address.
pub(crate) fn giver_address() -> AccountAddress {
    let state = CellBuilder::build_from(giver_state()).expect("a small state");
    AccountAddress(Digest32(state.repr_hash().0))
}

/// The message out of nothing that deploys the giver with all the coins there are.
pub(super) fn giver_deployment() -> Result<Cell, Error> {
    let giver = HashBytes(*giver_address().0.as_bytes());
    CellBuilder::build_from(OwnedMessage {
        info: MsgInfo::Int(IntMsgInfo {
            bounce: false,
            src: IntAddr::Std(StdAddr::new(0, HashBytes::ZERO)),
            dst: IntAddr::Std(StdAddr::new(0, giver)),
            value: CurrencyCollection::new(u128::from(GIVER_NANO)),
            ..IntMsgInfo::default()
        }),
        init: Some(giver_state()),
        body: CellSliceParts::default(),
        layout: None,
    })
}

/// The external message that asks the giver, as a bag of cells; each `salt` works once.
pub(crate) fn give_message(to: &AccountAddress, nano: u64, valid_until_s: u32, salt: u64) -> Vec<u8> {
    let mut body = CellBuilder::new();
    body.store_u32(GIVE_OP)
        .and_then(|()| body.store_u32(valid_until_s))
        .and_then(|()| body.store_u64(salt))
        .and_then(|()| body.store_u256(&HashBytes(*to.0.as_bytes())))
        .and_then(|()| body.store_u64(nano))
        .expect("448 bits fit a cell");
    external(&giver_address(), None, body.build().expect("an ordinary cell"))
}

fn giver_state() -> StateInit {
    let mut data = CellBuilder::new();
    data.store_bit_zero().expect("one bit fits a cell");
    StateInit {
        code: Some(compiled(GIVER_BOC)),
        data: Some(data.build().expect("an ordinary cell")),
        ..StateInit::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_hash_is_the_givers_code() {
        let code = compiled(GIVER_BOC);
        assert_eq!(
            include_str!("../../contract/local-giver.hash").trim_end(),
            code.repr_hash().to_string()
        );
    }
}
