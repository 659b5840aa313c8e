//! Accounts, and the execution of messages on them.

use std::{collections::BTreeMap, path::Path};

use cocoon_evidence::Digest32;
use cocoon_protocol::{AccountAddress, NetworkId};
use tycho_executor::{Executor, ExecutorInspector, ExecutorParams, ParsedConfig, TxError};
use tycho_types::{
    boc::Boc,
    cell::{Lazy, UsageTree, UsageTreeMode},
    dict::AugDict,
    error::Error,
    merkle::{MerkleProof, MerkleUpdate},
    models::{
        Block, BlockExtra, BlockInfo, BlockRef, ComputePhase, CurrencyCollection, DepthBalanceInfo, IntAddr,
        MsgInfo, OptionalAccount, OrdinaryTxInfo, OwnedMessage, ShardAccount, ShardAccounts, ShardIdent,
        ShardStateUnsplit, Transaction, TxInfo, ValueFlow,
    },
    prelude::*,
};

use super::{
    LocalChainError, genesis,
    log::{Log, MESSAGE_BYTES_MAX, Record},
};

/// The genesis' clock, seconds since 1970: 2026-01-01. It is the same in all local chains.
const GENESIS_S: u32 = 1_767_225_600;

/// Logical time from one block to the next, as on TON.
const LT_STEP: u64 = 1_000_000;

/// Deeper than TON takes for an external message.
const MESSAGE_DEPTH_MAX: u16 = 512;

/// One external message leads to no more transactions than this; our contracts need two.
const TRANSACTIONS_MAX: usize = 64;

/// What became of a message that was executed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Executed {
    /// Fees of all its transactions and of delivering messages between them, nanoTON.
    pub(super) fees_nano: u128,
    /// Gas of the first transaction.
    pub(super) gas: u64,
}

/// Why a message was not executed; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotExecuted {
    /// It is no external message to the basechain, or too large.
    #[error("not an external message to the basechain: {0}")]
    Malformed(&'static str),
    /// The account did not accept it. The words are those of TON's own liteserver.
    #[error(
        "cannot apply external message to current state : External message was not accepted; exitcode={}",
        exit_code.unwrap_or(0)
    )]
    NotAccepted {
        /// `None` if the account has no code.
        exit_code: Option<i32>,
    },
    /// The executor or the disk failed.
    #[error(transparent)]
    Failed(#[from] LocalChainError),
}

pub(super) type Changes = BTreeMap<HashBytes, ShardAccount>;

/// The chain, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Chain {
    config: ParsedConfig,
    log: Log,
    accounts: BTreeMap<HashBytes, ShardAccount>,
    now: u32,
    lt: u64,
    seqno: u32,
    state: Cell,
    block: Cell,
}

impl Chain {
    /// Opens the chain in a directory, or begins one.
    pub(crate) fn open(dir: &Path) -> Result<Self, LocalChainError> {
        let (log, records) = Log::open(dir)?;
        let failed = |error: Error| LocalChainError::execution("begin the chain", error);
        let config = genesis::config()
            .and_then(|config| ParsedConfig::parse(config, GENESIS_S))
            .map_err(failed)?;
        let mut chain = Self {
            config,
            log,
            accounts: BTreeMap::new(),
            now: GENESIS_S,
            lt: LT_STEP,
            seqno: 0,
            state: Cell::default(),
            block: Cell::default(),
        };
        let (changes, _) = genesis::giver_deployment().map_err(failed).and_then(|message| {
            chain
                .transactions(message, false, GENESIS_S)
                .map_err(|error| LocalChainError::execution("begin the chain", error))
        })?;
        chain.accounts.extend(changes);
        chain.seal().map_err(failed)?;
        for (index, record) in records.iter().enumerate() {
            let again = chain.replay(record);
            if again.is_err() || chain.state_hash() != record.state {
                return Err(LocalChainError::Diverged {
                    dir: dir.to_owned(),
                    number: index + 1,
                });
            }
        }
        Ok(chain)
    }

    /// Executes an external message and all messages that follow from it, and returns once that is on disk.
    pub(crate) fn execute(&mut self, message: &[u8], now: u32) -> Result<Executed, NotExecuted> {
        let now = self.now.max(now);
        let (changes, executed) = self.transactions(decode(message)?, true, now)?;
        let sealed = |error| LocalChainError::execution("seal a block", error);
        let before = self.snapshot();
        self.apply(changes, now).map_err(sealed)?;
        let record = Record {
            now,
            state: self.state_hash(),
            message: message.to_vec(),
        };
        if let Err(error) = self.log.append(&record) {
            self.restore(before);
            return Err(error.into());
        }
        Ok(executed)
    }

    fn replay(&mut self, record: &Record) -> Result<(), NotExecuted> {
        let (changes, _) = self.transactions(decode(&record.message)?, true, record.now)?;
        self.apply(changes, record.now)
            .map_err(|error| LocalChainError::execution("seal a block", error).into())
    }

    fn apply(&mut self, changes: Changes, now: u32) -> Result<(), Error> {
        self.accounts.extend(changes);
        self.now = now;
        self.lt += LT_STEP;
        self.seal()
    }

    fn snapshot(&self) -> (BTreeMap<HashBytes, ShardAccount>, u32, u64, u32, Cell, Cell) {
        (
            self.accounts.clone(),
            self.now,
            self.lt,
            self.seqno,
            self.state.clone(),
            self.block.clone(),
        )
    }

    fn restore(&mut self, before: (BTreeMap<HashBytes, ShardAccount>, u32, u64, u32, Cell, Cell)) {
        (
            self.accounts,
            self.now,
            self.lt,
            self.seqno,
            self.state,
            self.block,
        ) = before;
    }

    /// Executes a message and what follows from it, without changing the chain.
    pub(super) fn transactions(
        &self,
        message: Cell,
        external: bool,
        now: u32,
    ) -> Result<(Changes, Executed), NotExecuted> {
        let mut changes = Changes::new();
        let mut executed = Executed::default();
        let mut lt = self.lt + LT_STEP;
        let mut queue = vec![(message, external)];
        let mut done = 0;
        while let Some((message, external)) = queue.pop() {
            if done == TRANSACTIONS_MAX {
                return Err(NotExecuted::Malformed("it leads to too many transactions"));
            }
            let Some(address) = destination(&message) else {
                continue;
            };
            let account = changes
                .get(&address)
                .or_else(|| self.accounts.get(&address))
                .cloned()
                .map_or_else(no_account, Ok)
                .map_err(|error| LocalChainError::execution("make an account", error))?;
            let params = parameters(now, self.lt + LT_STEP);
            let mut inspector = ExecutorInspector::default();
            let output = Executor::new(&params, &self.config)
                .with_min_lt(lt)
                .begin_ordinary_ext(
                    &tycho_types::models::StdAddr::new(0, address),
                    external,
                    message,
                    &account,
                    Some(&mut inspector),
                )
                .and_then(|transaction| transaction.commit().map_err(TxError::Fatal));
            let output = match output {
                Ok(output) => output,
                Err(TxError::Skipped) => {
                    return Err(NotExecuted::NotAccepted {
                        exit_code: inspector.exit_code,
                    });
                }
                Err(TxError::Fatal(error)) => {
                    tracing::debug!(%error, "the executor refuses a message");
                    return Err(NotExecuted::Malformed("the executor refuses it"));
                }
            };
            if done == 0 {
                // The inspector's count includes what the TVM gives for free.
                executed.gas = gas(&output.transaction);
            }
            done += 1;
            executed.fees_nano += output.transaction_meta.total_fees.into_inner();
            lt = output.transaction_meta.next_lt;
            changes.insert(address, output.new_state);
            // In order, the first one first.
            for message in output.transaction_meta.out_msgs.into_iter().rev() {
                executed.fees_nano += delivery_fee_nano(message.inner());
                queue.push((message.into_inner(), false));
            }
        }
        Ok((changes, executed))
    }

    /// Makes the state and the block that follow from the accounts.
    fn seal(&mut self) -> Result<(), Error> {
        let mut accounts: ShardAccounts = AugDict::new();
        let mut total = CurrencyCollection::ZERO;
        for (address, account) in &self.accounts {
            let balance = account
                .load_account()?
                .map(|account| account.balance)
                .unwrap_or_default();
            total.try_add_assign(&balance)?;
            accounts.set(
                address,
                DepthBalanceInfo {
                    split_depth: 0,
                    balance,
                },
                account,
            )?;
        }
        self.seqno += 1;
        let state = CellBuilder::build_from(ShardStateUnsplit {
            global_id: NetworkId::LOCAL.0,
            shard_ident: ShardIdent::BASECHAIN,
            seqno: self.seqno,
            gen_utime: self.now,
            gen_lt: self.lt,
            accounts: Lazy::new(&accounts)?,
            total_balance: total,
            ..ShardStateUnsplit::default()
        })?;
        let update = MerkleUpdate {
            old_hash: *self.state.repr_hash(),
            new_hash: *state.repr_hash(),
            old_depth: self.state.repr_depth(),
            new_depth: state.repr_depth(),
            old: self.state.clone(),
            new: state.clone(),
        };
        let previous = BlockRef {
            end_lt: self.lt - 1,
            seqno: self.seqno - 1,
            root_hash: *self.block.repr_hash(),
            file_hash: Boc::file_hash(Boc::encode(&self.block)),
        };
        let info = BlockInfo {
            seqno: self.seqno,
            shard: ShardIdent::BASECHAIN,
            gen_utime: self.now,
            start_lt: self.lt,
            end_lt: self.lt + LT_STEP,
            prev_ref: CellBuilder::build_from(previous)?,
            ..BlockInfo::default()
        };
        self.block = CellBuilder::build_from(Block {
            global_id: NetworkId::LOCAL.0,
            info: Lazy::new(&info)?,
            value_flow: Lazy::new(&ValueFlow::default())?,
            state_update: Lazy::new(&update)?,
            out_msg_queue_updates: None,
            extra: Lazy::new(&BlockExtra::default())?,
        })?;
        self.state = state;
        Ok(())
    }

    /// Hash of the state of all accounts.
    pub(super) fn state_hash(&self) -> Digest32 {
        Digest32(self.state.repr_hash().0)
    }

    /// The last block's number, root hash and file hash.
    pub(crate) fn block_id(&self) -> (u32, Digest32, Digest32) {
        let file_hash = Boc::file_hash(Boc::encode(&self.block));
        (
            self.seqno,
            Digest32(self.block.repr_hash().0),
            Digest32(file_hash.0),
        )
    }

    /// An account as a bag of cells (empty if there is none), and the proof: the block's and the state's Merkle
    /// proof, two roots in one bag.
    pub(crate) fn account(&self, address: &AccountAddress) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let address = HashBytes(*address.0.as_bytes());
        let tracker = UsageTree::new(UsageTreeMode::OnLoad);
        let tracked = tracker.track(&self.state);
        let accounts = tracked.parse::<ShardStateUnsplit>()?.load_accounts()?;
        let state = match accounts.get(address)? {
            // The account's own cell is left out of the proof: its hash is in it.
            Some((_, _)) => match self.accounts.get(&address) {
                Some(account) => Boc::encode(account.account.inner()),
                None => return Err(Error::InvalidData),
            },
            None => vec![],
        };
        let state_proof = MerkleProof::create(self.state.as_ref(), tracker).build()?;
        // Of the block, only the way to the hash of its new state.
        let tracker = UsageTree::new(UsageTreeMode::OnLoad);
        let tracked = tracker.track(&self.block);
        tracked.parse::<Block>()?.load_state_update()?;
        let block_proof = MerkleProof::create(self.block.as_ref(), tracker).build()?;
        let roots = (
            CellBuilder::build_from(block_proof)?,
            CellBuilder::build_from(state_proof)?,
        );
        Ok((state, Boc::encode_pair(roots)))
    }
}

fn decode(message: &[u8]) -> Result<Cell, NotExecuted> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(NotExecuted::Malformed("it is larger than 65535 bytes"));
    }
    let cell = Boc::decode(message).map_err(|_| NotExecuted::Malformed("no bag of cells with one root"))?;
    if cell.repr_depth() > MESSAGE_DEPTH_MAX || cell.level() != 0 {
        return Err(NotExecuted::Malformed("its cells are too deep or not whole"));
    }
    let parsed = cell.parse::<OwnedMessage>();
    match parsed.map(|message| message.info) {
        Ok(MsgInfo::ExtIn(_)) if destination(&cell).is_some() => Ok(cell),
        Ok(_) => Err(NotExecuted::Malformed("of another kind")),
        Err(_) => Err(NotExecuted::Malformed("not a message")),
    }
}

/// The basechain account that a message goes to.
fn destination(message: &Cell) -> Option<HashBytes> {
    let to = match message.parse::<OwnedMessage>().ok()?.info {
        MsgInfo::ExtIn(info) => info.dst,
        MsgInfo::Int(info) => info.dst,
        MsgInfo::ExtOut(_) => return None,
    };
    match to {
        IntAddr::Std(to) if to.workchain == 0 && to.anycast.is_none() => Some(to.address),
        _ => None,
    }
}

fn gas(transaction: &Lazy<Transaction>) -> u64 {
    let info = transaction.load().and_then(|transaction| transaction.load_info());
    match info {
        Ok(TxInfo::Ordinary(OrdinaryTxInfo {
            compute_phase: ComputePhase::Executed(phase),
            ..
        })) => phase.gas_used.into_inner(),
        _ => 0,
    }
}

/// The part of the forward fee that travels with a message and goes to whoever delivers it.
fn delivery_fee_nano(message: &Cell) -> u128 {
    match message.parse::<OwnedMessage>().map(|message| message.info) {
        Ok(MsgInfo::Int(info)) => info.fwd_fee.into_inner(),
        _ => 0,
    }
}

fn no_account() -> Result<ShardAccount, Error> {
    Ok(ShardAccount {
        account: Lazy::new(&OptionalAccount::EMPTY)?,
        last_trans_hash: HashBytes::ZERO,
        last_trans_lt: 0,
    })
}

fn parameters(now: u32, lt: u64) -> ExecutorParams {
    ExecutorParams {
        libraries: Dict::default(),
        rand_seed: HashBytes::ZERO,
        block_unixtime: now,
        block_lt: lt,
        prev_mc_block_id: None,
        vm_modifiers: tycho_vm::BehaviourModifiers::default(),
        disable_delete_frozen_accounts: false,
        charge_action_fees_on_fail: true,
        full_body_in_bounced: false,
        strict_extra_currency: true,
        authority_marks_enabled: false,
    }
}
