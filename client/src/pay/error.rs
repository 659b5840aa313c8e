//! Why a session is not paid for.

use cocoon_protocol::{AccountAddress, ContractCode};
use cocoon_settlement::ChainError;

use crate::ExchangeError;

/// Why a session could not be paid for. No prompt was sent.
#[derive(Debug, thiserror::Error)]
pub enum PayError {
    /// The node wants to be paid through a contract that nobody here has read.
    #[error(
        "the node is paid through contract code {found:?}, this program knows {known:?}; use a node and a \
         cocoon of matching versions"
    )]
    UnknownContract {
        /// From the launch document.
        found: ContractCode,
        /// Compiled in.
        known: ContractCode,
    },
    /// Real coins for a simulated guest.
    #[error(
        "the platform is SIMULATED, and the node wants coins on network {network}: a simulated guest is paid on \
         the local chain only"
    )]
    SimulatedOnRealChain {
        /// From the launch document.
        network: i32,
    },
    /// The node is paid on another chain than the one that was opened.
    #[error("the node wants coins on network {found}, this deposit is on network {own}")]
    OtherNetwork {
        /// From the launch document.
        found: i32,
        /// Of the deposit.
        own: i32,
    },
    /// The cap does not cover one request.
    #[error(
        "one request may cost {need_nano} nanoTON, and no less is settled; --max-ton leaves {cap_nano} nanoTON: raise \
         --max-ton or lower --max-tokens"
    )]
    CapTooLow {
        /// The worst case.
        need_nano: u64,
        /// As allowed.
        cap_nano: u64,
    },
    /// What is open with the guest leaves too little for another grant.
    #[error(
        "grants that are open with this guest hold {open_nano} of the {cap_nano} nanoTON that --max-ton allows, and one \
         request may cost {need_nano} nanoTON: raise --max-ton, or wait until the last of them pays nothing any more, \
         in {rest_s} s"
    )]
    Open {
        /// What it could still draw.
        open_nano: u64,
        /// As allowed.
        cap_nano: u64,
        /// The worst case.
        need_nano: u64,
        /// Until nothing can be drawn.
        rest_s: u64,
        /// Why the guest does not serve on one of them.
        #[source]
        refusal: Option<ExchangeError>,
    },
    /// Prices and limits multiply to more than there is.
    #[error("the node's prices are beyond any amount of coins")]
    Price,
    /// The chain.
    #[error("the chain could not be asked, or refused")]
    Chain(#[source] ChainError),
    /// The deposit is short, and this network has no faucet.
    #[error(
        "the deposit {deposit} has {free_nano} nanoTON free, {needed_nano} are needed: send it {} nanoTON and try \
         again",
        needed_nano - free_nano
    )]
    Funds {
        /// The deposit's address.
        deposit: AccountAddress,
        /// What no grant reserves.
        free_nano: u64,
        /// Cap, reserve and gas.
        needed_nano: u64,
    },
    /// The guest does not take the grant.
    #[error("the node does not take the grant")]
    Offer(#[source] ExchangeError),
    /// The guest takes the grant, and serves less on it than one request may cost.
    #[error(
        "the node serves {left_nano} nanoTON more on the grant, one request may cost {need_nano} nanoTON; the \
         node's launcher may lag behind the chain: try again"
    )]
    Credit {
        /// As the node says.
        left_nano: u64,
        /// The worst case.
        need_nano: u64,
    },
}

impl From<ChainError> for PayError {
    fn from(error: ChainError) -> Self {
        Self::Chain(error)
    }
}
