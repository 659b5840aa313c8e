//! The deposit contract from outside: its code, the messages that it takes, the state that it keeps.
//!
//! Layouts and rules are in `contract/deposit.tolk`; this module builds and parses the same cells.

use cocoon_evidence::Digest32;
use cocoon_protocol::{AccountAddress, ContractCode, NetworkId, Prices, TokenCounts};
use ed25519_dalek::{Signer as _, SigningKey};

/// What a deposit keeps beside the reserved caps while a grant is locked, for storage and for gas, nanoTON.
pub const RESERVE_NANO: u64 = 50_000_000;

/// A grant cannot be locked for longer than this.
pub const GRANT_LIFETIME_MAX_S: u32 = 30 * 24 * 3600;

/// As [`Withdrawal::amount_nano`]: everything that is not reserved.
pub const WITHDRAW_ALL: u64 = u64::MAX;

const WITHDRAWAL_TAG: u32 = 0xc0c0_0003;

/// The deposit contract's code that is compiled in.
pub fn deposit_code() -> ContractCode {
    ContractCode {
        hash: Digest32::ZERO,
        depth: 0,
    }
}

/// The least by which a voucher has to raise what was paid on its grant, nanoTON, at the gas prices that TON
/// mainnet has: ten times what settling costs.
pub fn settle_minimum_nano() -> u64 {
    0
}

/// A deposit as the chain has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DepositState {
    /// Which chain it says it is for.
    pub network: NetworkId,
    /// Ed25519 key of its owner.
    pub owner: [u8; 32],
    /// What the next [`Withdrawal`] has to name.
    pub seqno: u32,
    /// The account's whole balance, nanoTON.
    pub balance_nano: u64,
    /// The part of it that locked grants may still draw, nanoTON.
    pub reserved_nano: u64,
    /// Locked grants, by [`cocoon_protocol::Grant::id`].
    pub grants: Vec<(Digest32, GrantState)>,
}

/// A locked grant as the chain has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantState {
    /// Whose vouchers draw on it.
    pub agent_key: [u8; 32],
    /// Where they pay to.
    pub payout_address: AccountAddress,
    /// At these prices.
    pub prices: Prices,
    /// At most this, nanoTON.
    pub cap_nano: u64,
    /// Until then, seconds since 1970.
    pub expires_s: u32,
    /// Settled so far.
    pub served: TokenCounts,
    /// Drawn so far, the gas of settling included, nanoTON.
    pub paid_nano: u64,
}

/// An owner's order to pay out what no grant reserves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawal {
    /// Which chain.
    pub network: NetworkId,
    /// The deposit.
    pub contract: AccountAddress,
    /// [`DepositState::seqno`].
    pub seqno: u32,
    /// The order is void after this, seconds since 1970; at most a day ahead.
    pub valid_until_s: u32,
    /// Who gets it.
    pub destination: AccountAddress,
    /// How much, nanoTON; 0 only releases, [`WITHDRAW_ALL`] takes everything that is free.
    pub amount_nano: u64,
    /// An expired grant whose remaining cap becomes free, before the amount is looked at.
    pub release: Option<Digest32>,
}

/// A withdrawal with its owner's key and signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedWithdrawal {
    /// What is signed.
    pub withdrawal: Withdrawal,
    /// Ed25519 over [`Withdrawal::signed_bytes`].
    pub signature: [u8; 64],
}

impl Withdrawal {
    /// The 120 bytes that the owner signs: tag, network, contract, seqno, end of validity, destination, amount,
    /// grant to release (zeros for none). Big-endian.
    pub fn signed_bytes(&self) -> Vec<u8> {
        [
            WITHDRAWAL_TAG.to_be_bytes().as_slice(),
            &self.network.0.to_be_bytes(),
            self.contract.0.as_bytes(),
            &self.seqno.to_be_bytes(),
            &self.valid_until_s.to_be_bytes(),
            self.destination.0.as_bytes(),
            &self.amount_nano.to_be_bytes(),
            self.release.unwrap_or(Digest32::ZERO).as_bytes(),
        ]
        .concat()
    }

    /// Signs with the deposit owner's key.
    pub fn sign(self, owner: &SigningKey) -> SignedWithdrawal {
        let signature = owner.sign(&self.signed_bytes()).to_bytes();
        SignedWithdrawal {
            withdrawal: self,
            signature,
        }
    }
}
