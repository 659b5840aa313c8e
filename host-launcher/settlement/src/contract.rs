//! The deposit contract from outside: its code, the messages that it takes, the state that it keeps.
//!
//! Layouts and rules are in `contract/deposit.tolk`; this module builds and parses the same cells.

use std::sync::OnceLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use cocoon_evidence::Digest32;
use cocoon_protocol::{
    AccountAddress, ContractCode, NetworkId, Prices, SignedGrant, SignedVoucher, TokenCounts,
};
use ed25519_dalek::{Signer as _, SigningKey};
use tycho_types::{
    boc::Boc,
    cell::CellSliceParts,
    error::Error,
    models::{Account, AccountState, ExtInMsgInfo, IntAddr, MsgInfo, OwnedMessage, StateInit, StdAddr},
    num::Tokens,
    prelude::*,
};

/// What a deposit keeps beside the reserved caps while a grant is locked, for storage and for gas, nanoTON.
pub const RESERVE_NANO: u64 = 50_000_000;

/// A grant cannot be locked for longer than this.
pub const GRANT_LIFETIME_MAX_S: u32 = 30 * 24 * 3600;

/// As [`Withdrawal::amount_nano`]: everything that is not reserved.
pub const WITHDRAW_ALL: u64 = u64::MAX;

/// An upper bound of what locking the first grant costs, deploying included, nanoTON; a test holds it.
pub(crate) const LOCK_FEES_NANO: u64 = 12_000_000;

/// What an external message is refused with before the contract has run to its end.
const ERRORS: &[(i32, &str)] = &[
    (-14, "the message needs more gas than TON lends"),
    (9, "the signed bytes have the wrong length"),
    (200, "the message is not made as the contract expects it"),
    (201, "what was signed is not what the message says it is"),
    (202, "it was signed for another network"),
    (203, "it was signed for another deposit"),
    (204, "the signature is not by the right key"),
    (205, "it has expired; sign a new one"),
    (
        206,
        "it would be valid for too long (a grant: 30 days, a withdrawal: one day)",
    ),
    (207, "this grant is locked already"),
    (
        208,
        "the grant's cap is below the least amount that can be settled",
    ),
    (
        209,
        "the deposit holds too little that is not reserved; fund it or ask for less",
    ),
    (210, "no such grant is locked in the deposit"),
    (211, "the grant is for another agent key"),
    (212, "its token counts are lower than those settled already"),
    (213, "its amount is over the grant's cap"),
    (
        214,
        "it raises the paid amount by less than ten times the fees; wait for more usage",
    ),
    (
        215,
        "its sequence number is not the deposit's; read the state again and sign anew",
    ),
    (216, "the grant to be released has not expired yet"),
    (217, "the amount is too small to be sent"),
    (
        218,
        "the deposit has too many grants; withdraw to release those that have expired",
    ),
    (0xffff, "the contract does not know this operation"),
];

/// [`cocoon_protocol::Grant::signed_bytes`], as the contract keeps them.
const TERMS_BITS: u16 = 124 * 8;

const GRANT_TAG: u32 = 0xc0c0_0001;
const VOUCHER_TAG: u32 = 0xc0c0_0002;
const WITHDRAWAL_TAG: u32 = 0xc0c0_0003;

const DEPOSIT_BOC: &str = include_str!("../contract/deposit.boc64");

fn code_cell() -> &'static Cell {
    static CODE: OnceLock<Cell> = OnceLock::new();
    CODE.get_or_init(|| compiled(DEPOSIT_BOC))
}

/// Decodes code that is compiled in.
pub(crate) fn compiled(boc64: &str) -> Cell {
    let boc = STANDARD.decode(boc64.trim_end());
    Boc::decode(boc.expect("a test decodes it")).expect("a test decodes it")
}

/// The deposit contract's code that is compiled in.
pub fn deposit_code() -> ContractCode {
    let code = code_cell();
    ContractCode {
        hash: Digest32(code.repr_hash().0),
        depth: code.repr_depth(),
    }
}

/// The least by which a voucher has to raise what was paid on its grant, nanoTON, at the gas prices that TON
/// mainnet has: ten times what settling costs.
pub const fn settle_minimum_nano() -> u64 {
    /// `GAS_SETTLE` in the contract.
    const GAS: u64 = 15_000;
    // Config parameters 21 and 25: 400 nanoTON a unit of gas; 400_000 for a message, 400 a bit, 40_000 a cell.
    const GAS_FEE: u64 = GAS * 400;
    const IMPORT_FEE: u64 = 400_000 + 960 * 400 + 40_000;
    const FORWARD_FEE: u64 = 400_000;
    10 * (GAS_FEE + IMPORT_FEE + FORWARD_FEE)
}

/// What a TVM exit code of a refusal means, with what to do.
pub(crate) fn meaning(exit_code: i32) -> &'static str {
    ERRORS
        .iter()
        .find(|(code, _)| *code == exit_code)
        .map_or("for a reason that the contract does not name", |(_, text)| text)
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

impl DepositState {
    /// Reads an account; `None` while nothing is deployed there.
    ///
    /// # Errors
    /// Other code is deployed there, or its data is not as the contract keeps it.
    pub(crate) fn read(account: &Account) -> Result<Option<Self>, Error> {
        let AccountState::Active(state) = &account.state else {
            return Ok(None);
        };
        let (Some(code), Some(data)) = (&state.code, &state.data) else {
            return Err(Error::InvalidData);
        };
        if code.repr_hash() != code_cell().repr_hash() {
            return Err(Error::InvalidData);
        }
        let mut data = data.as_slice()?;
        let network = NetworkId(data.load_u32()?.cast_signed());
        let owner = data.load_u256()?.0;
        let seqno = data.load_u32()?;
        let reserved_nano = nano(Tokens::load_from(&mut data)?)?;
        let grants = Dict::<HashBytes, CellSlice<'_>>::load_from(&mut data)?;
        if !data.is_empty() {
            return Err(Error::InvalidData);
        }
        // A dictionary of a few cells that are referenced twice has entries without end, but not one more with terms
        // of its own.
        let grants = grants
            .iter()
            .map(|entry| {
                let (id, mut value) = entry?;
                let id = Digest32(id.0);
                Ok((id, GrantState::read(&id, &mut value)?))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Some(Self {
            network,
            owner,
            seqno,
            balance_nano: nano(account.balance.tokens)?,
            reserved_nano,
            grants,
        }))
    }

    /// A grant by [`cocoon_protocol::Grant::id`].
    pub fn grant(&self, id: &Digest32) -> Option<&GrantState> {
        self.grants
            .iter()
            .find(|(key, _)| key == id)
            .map(|(_, grant)| grant)
    }
}

impl GrantState {
    /// Reads the entry under `id`: its terms are those that the owner signed, whatever the server says.
    fn read(id: &Digest32, entry: &mut CellSlice<'_>) -> Result<Self, Error> {
        let served = TokenCounts {
            input: entry.load_u64()?,
            output: entry.load_u64()?,
        };
        let paid_nano = entry.load_u64()?;
        let mut terms = entry.load_reference_as_slice()?;
        let mut signed = [0; TERMS_BITS as usize / 8];
        if Digest32::of(terms.get_raw(0, &mut signed, TERMS_BITS)?) != *id {
            return Err(Error::InvalidData);
        }
        // Tag, network and contract are those of the deposit itself: it has checked them.
        terms.skip_first(32 + 32 + 256, 0)?;
        Ok(Self {
            agent_key: terms.load_u256()?.0,
            payout_address: AccountAddress(Digest32(terms.load_u256()?.0)),
            prices: Prices {
                input_nano_per_kilotoken: terms.load_u32()?,
                output_nano_per_kilotoken: terms.load_u32()?,
            },
            cap_nano: terms.load_u64()?,
            expires_s: terms.load_u32()?,
            served,
            paid_nano,
        })
    }
}

/// An amount that fits 64 bits; all coins of TON do.
pub(crate) fn nano(tokens: Tokens) -> Result<u64, Error> {
    u64::try_from(tokens.into_inner()).map_err(|_| Error::IntOverflow)
}

/// The message that locks a grant, as a bag of cells; `deploy` adds the contract itself.
pub(crate) fn lock_message(grant: &SignedGrant, deploy: bool) -> Vec<u8> {
    let init = deploy.then(|| initial_state(grant.grant.network, &grant.owner));
    let signed = grant.grant.signed_bytes();
    external(
        &grant.grant.contract,
        init,
        signed_body(GRANT_TAG, &grant.signature, &signed),
    )
}

/// The message that settles a voucher, as a bag of cells.
pub(crate) fn settle_message(voucher: &SignedVoucher) -> Vec<u8> {
    let signed = voucher.voucher.signed_bytes();
    let body = signed_body(VOUCHER_TAG, &voucher.signature, &signed);
    external(&voucher.voucher.contract, None, body)
}

/// The message that withdraws, as a bag of cells.
pub(crate) fn withdraw_message(withdrawal: &SignedWithdrawal) -> Vec<u8> {
    let signed = withdrawal.withdrawal.signed_bytes();
    let body = signed_body(WITHDRAWAL_TAG, &withdrawal.signature, &signed);
    external(&withdrawal.withdrawal.contract, None, body)
}

/// The contract's first state, from which its address follows.
pub(crate) fn initial_state(network: NetworkId, owner: &[u8; 32]) -> StateInit {
    let mut data = CellBuilder::new();
    data.store_u32(network.0.cast_unsigned())
        .and_then(|()| data.store_u256(&HashBytes(*owner)))
        // seqno:uint32 reserved:Coins grants:HashmapE, all zero
        .and_then(|()| data.store_zeros(32 + 4 + 1))
        .expect("325 bits fit a cell");
    StateInit {
        code: Some(code_cell().clone()),
        data: Some(data.build().expect("an ordinary cell")),
        ..StateInit::default()
    }
}

fn signed_body(op: u32, signature: &[u8; 64], signed: &[u8]) -> Cell {
    let mut leaf = CellBuilder::new();
    let mut body = CellBuilder::new();
    leaf.store_raw(
        signed,
        u16::try_from(signed.len() * 8).expect("at most 124 bytes"),
    )
    .and_then(|()| body.store_u32(op))
    .and_then(|()| body.store_raw(signature, 512))
    .and_then(|()| body.store_reference(leaf.build()?))
    .and_then(|()| body.build())
    .expect("two cells within their limits")
}

/// An external message to a basechain account, as a bag of cells.
pub(crate) fn external(to: &AccountAddress, init: Option<StateInit>, body: Cell) -> Vec<u8> {
    let message = OwnedMessage {
        info: MsgInfo::ExtIn(ExtInMsgInfo {
            src: None,
            dst: IntAddr::Std(StdAddr::new(0, HashBytes(*to.0.as_bytes()))),
            import_fee: Tokens::ZERO,
        }),
        init,
        body: CellSliceParts::from(body),
        layout: None,
    };
    Boc::encode(CellBuilder::build_from(&message).expect("a message within a cell's limits"))
}

#[cfg(test)]
mod tests;
