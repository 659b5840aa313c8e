//! Money on TON: the deposit contract, access to a chain, and a local chain to try both without coins.
//!
//! A client funds its own deposit contract (`contract/deposit.tolk`), locks a [`Grant`] in it for one agent,
//! and that agent's vouchers draw on the grant. The launcher settles vouchers, the client locks grants and
//! withdraws, both through [`ChainClient`], which speaks the liteserver protocol to mainnet, testnet or the
//! [`LocalChain`] alike.
//!
//! What is trusted: the contract's code, which runs in a real TVM everywhere. The liteserver is not trusted with
//! money, since every message is signed, nor with an account's content, which is checked by Merkle proof against
//! the block that it names, nor with a grant's terms, whose hash is the grant's id. One that stands still or brings
//! no message to the chain is left for the next. It is trusted with naming the right block: neither validator
//! signatures nor the link from the shard's block to the masterchain are checked yet, so ask a liteserver of your
//! own, or several, where a lie about the deposit's state would cost you.
//!
//! [`Grant`]: cocoon_protocol::Grant

mod client;
mod config;
mod connection;
mod contract;
mod local;
mod proof;

pub use client::{ChainClient, ChainError};
pub use config::{ConfigError, GlobalConfig, Liteserver};
pub use contract::{
    DepositState, GRANT_LIFETIME_MAX_S, GrantState, RESERVE_NANO, SignedWithdrawal, WITHDRAW_ALL, Withdrawal,
    deposit_code, settle_minimum_nano,
};
pub use local::{LocalChain, LocalChainError, LocalChainHandle};
