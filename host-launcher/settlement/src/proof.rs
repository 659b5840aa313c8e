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
#[derive(Debug, PartialEq, thiserror::Error)]
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
    /// When the state was made, seconds since 1970.
    pub(crate) gen_utime_s: u32,
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
    let shard = state_root.parse::<ShardStateUnsplit>()?;
    let proven = shard.load_accounts()?.get(HashBytes(*address.0.as_bytes()))?;
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
        gen_utime_s: shard.gen_utime,
        account,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::{
        Chain,
        genesis::{give_message, giver_address},
    };

    const NOW_S: u32 = 1_800_000_000;

    struct Answer {
        block: Digest32,
        proof: Vec<u8>,
        state: Vec<u8>,
    }

    fn chain() -> (tempfile::TempDir, Chain) {
        let dir = tempfile::tempdir().unwrap();
        let chain = Chain::open(dir.path()).unwrap();
        (dir, chain)
    }

    fn ask(chain: &Chain, address: &AccountAddress) -> Answer {
        let (state, proof) = chain.account(address).unwrap();
        Answer {
            block: chain.block_id().1,
            proof,
            state,
        }
    }

    fn somebody() -> AccountAddress {
        AccountAddress(Digest32::of(b"somebody"))
    }

    /// Two accounts, so that there is something to prune and to confuse.
    fn funded() -> (tempfile::TempDir, Chain) {
        let (dir, mut chain) = chain();
        chain
            .execute(&give_message(&somebody(), 1_000, NOW_S, 1), NOW_S)
            .unwrap();
        (dir, chain)
    }

    #[test]
    fn what_is_there_and_what_is_not_is_proven() {
        let (_dir, chain) = funded();
        let answer = ask(&chain, &somebody());
        let proven = check(&answer.block, &somebody(), &answer.proof, &answer.state).unwrap();
        assert_eq!(proven.network, cocoon_protocol::NetworkId::LOCAL.0);
        assert_eq!(proven.gen_utime_s, NOW_S);
        assert_eq!(proven.account.unwrap().balance.tokens.into_inner(), 1_000);
        let nobody = AccountAddress(Digest32::of(b"nobody"));
        let answer = ask(&chain, &nobody);
        let proven = check(&answer.block, &nobody, &answer.proof, &answer.state).unwrap();
        assert!(proven.account.is_none());
    }

    #[test]
    fn another_state_another_account_and_a_denied_one_are_refused() {
        let (_dir, chain) = funded();
        let rich = ask(&chain, &giver_address());
        let poor = ask(&chain, &somebody());
        let refused = |proof: &[u8], state: &[u8]| check(&poor.block, &somebody(), proof, state).unwrap_err();
        assert_eq!(refused(&poor.proof, &rich.state), ProofError::Account);
        assert_eq!(refused(&poor.proof, &[]), ProofError::Account);
        // The giver's proof has pruned the other account's branch away.
        assert!(matches!(refused(&rich.proof, &poor.state), ProofError::Cell(_)));
        let nobody = AccountAddress(Digest32::of(b"nobody"));
        let absent = ask(&chain, &nobody);
        assert_eq!(
            check(&absent.block, &nobody, &absent.proof, &poor.state).unwrap_err(),
            ProofError::Account
        );
    }

    #[test]
    fn a_state_of_an_earlier_block_is_refused() {
        let (_dir, mut chain) = funded();
        let old = ask(&chain, &somebody());
        chain
            .execute(&give_message(&somebody(), 1_000, NOW_S, 2), NOW_S)
            .unwrap();
        let new = ask(&chain, &somebody());
        let refused = |proof: &[u8], state: &[u8]| check(&new.block, &somebody(), proof, state).unwrap_err();
        assert_eq!(refused(&old.proof, &old.state), ProofError::Block);
        let (block_proof, _) = Boc::decode_pair(&new.proof).unwrap();
        let (_, state_proof) = Boc::decode_pair(&old.proof).unwrap();
        let mixed = Boc::encode_pair((block_proof, state_proof));
        assert_eq!(refused(&mixed, &old.state), ProofError::State);
    }

    #[test]
    fn flipped_and_cut_bytes_never_prove_anything_else_and_never_panic() {
        let (_dir, chain) = funded();
        let Answer { block, proof, state } = ask(&chain, &somebody());
        for at in 0..proof.len() {
            let mut changed = proof.clone();
            changed[at] ^= 0x10;
            if let Ok(proven) = check(&block, &somebody(), &changed, &state) {
                assert_eq!(
                    proven.account.unwrap().balance.tokens.into_inner(),
                    1_000,
                    "byte {at}"
                );
            }
            assert!(
                check(&block, &somebody(), &proof[..at], &state).is_err(),
                "cut {at}"
            );
        }
        for at in 0..state.len() {
            let mut changed = state.clone();
            changed[at] ^= 0x10;
            if let Ok(proven) = check(&block, &somebody(), &proof, &changed) {
                assert_eq!(
                    proven.account.unwrap().balance.tokens.into_inner(),
                    1_000,
                    "byte {at}"
                );
            }
        }
    }
}
