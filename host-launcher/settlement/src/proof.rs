//! Merkle proofs of an account, as liteservers give them (TON Blockchain, 5.1.9; `liteServer.accountState`).
//!
//! What is checked: from the root hash of the block that the server names, through the block's state update and
//! the shard's state, down to the account. What is not checked here: that validators signed that block.

use cocoon_evidence::Digest32;
use cocoon_protocol::AccountAddress;
use tycho_types::{
    boc::Boc,
    error::Error,
    merkle::MerkleProof,
    models::{Account, Block, OptionalAccount, ShardStateUnsplit},
    prelude::*,
};

/// Why a proof proves nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProofError {
    #[error("a bag of cells cannot be decoded")]
    Boc,
    #[error("a cell is not as TON's schema has it ({0})")]
    Cell(#[from] Error),
    #[error("the proof is for another block")]
    Block,
    #[error("the state is not the one that the block leads to")]
    State,
    #[error("the account is not the one in the proven state")]
    Account,
}

/// An account as of a block.
#[derive(Debug)]
pub(crate) struct ProvenAccount {
    /// `global_id` of the block.
    pub(crate) network: i32,
    /// `None` if the state proves that there is no such account.
    pub(crate) account: Option<Account>,
}

/// Checks an account's state against the root hash of a block. `state` is empty if there is no such account.
pub(crate) fn check(
    block_root: &Digest32,
    address: &AccountAddress,
    proof: &[u8],
    state: &[u8],
) -> Result<ProvenAccount, ProofError> {
    let (block_proof, state_proof) = Boc::decode_pair(proof).map_err(|_| ProofError::Boc)?;
    // `parse_exotic` holds the proof's hash against the cells below it.
    let block_proof = block_proof.parse_exotic::<MerkleProof>()?;
    if &block_proof.hash.0 != block_root.as_bytes() {
        return Err(ProofError::Block);
    }
    let block_root = Cell::virtualize(block_proof.cell);
    let block = block_root.parse::<Block>()?;
    let state_proof = state_proof.parse_exotic::<MerkleProof>()?;
    if state_proof.hash != block.load_state_update()?.new_hash {
        return Err(ProofError::State);
    }
    let state_root = Cell::virtualize(state_proof.cell);
    let accounts = state_root.parse::<ShardStateUnsplit>()?.load_accounts()?;
    let proven = accounts.get(HashBytes(*address.0.as_bytes()))?;
    let account = match (proven, state.is_empty()) {
        (None, true) => None,
        (Some((_, proven)), false) => {
            let cell = Boc::decode(state).map_err(|_| ProofError::Boc)?;
            if cell.repr_hash() != proven.account.inner().repr_hash() {
                return Err(ProofError::Account);
            }
            cell.parse::<OptionalAccount>()?.0
        }
        _ => return Err(ProofError::Account),
    };
    Ok(ProvenAccount {
        network: block.global_id,
        account,
    })
}
