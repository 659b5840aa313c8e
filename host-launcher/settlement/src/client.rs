//! Access to a chain through its liteservers.

use cocoon_evidence::Digest32;
use cocoon_protocol::{AccountAddress, NetworkId, SignedGrant, SignedVoucher};

use crate::{DepositState, GlobalConfig, GrantState, SignedWithdrawal};

/// Why a chain could not be asked, or did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// No liteserver answers.
    #[error(
        "no liteserver of the TON config answers ({tried} tried): {last}; check the config and the network"
    )]
    Unreachable {
        /// How many were tried.
        tried: usize,
        /// What the last one said.
        last: String,
    },
    /// The answer contradicts its own proof, or is not understood.
    #[error("the liteserver's answer to {request} is not acceptable: {reason}")]
    BadAnswer {
        /// Which request.
        request: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The servers are those of another network.
    #[error("the TON config leads to network {found}, expected network {expected}")]
    WrongNetwork {
        /// As configured.
        expected: i32,
        /// As the block says.
        found: i32,
    },
    /// The contract refused the message before accepting it; nothing has changed and nothing was paid.
    #[error("the contract refused to {operation}: {meaning}")]
    Refused {
        /// What was attempted.
        operation: &'static str,
        /// TVM exit code, where the server told it.
        exit_code: Option<i32>,
        /// In words, with what to do.
        meaning: String,
    },
    /// The message was taken and the chain does not show its effect in time. It may still come.
    #[error(
        "{operation}: the chain does not show it after {waited_s} s; ask again later, sending twice is harmless"
    )]
    Timeout {
        /// What was attempted.
        operation: &'static str,
        /// How long was waited.
        waited_s: u64,
    },
    /// The account holds too little.
    #[error("{address} holds {available_nano} nanoTON free, {needed_nano} are needed; fund it and try again")]
    InsufficientFunds {
        /// Which account.
        address: AccountAddress,
        /// What it has beside reserved caps.
        available_nano: u64,
        /// What it would need.
        needed_nano: u64,
    },
    /// Only the local chain has a faucet.
    #[error("there is no faucet on network {0}; send coins to the deposit's address from a wallet")]
    NoFaucet(i32),
}

/// A connection to one network. Cheap to clone; reconnects by itself.
#[derive(Debug, Clone)]
pub struct ChainClient {}

impl ChainClient {
    /// Connects to the first liteserver that answers and checks that it serves this network.
    ///
    /// # Errors
    /// [`ChainError::Unreachable`], [`ChainError::WrongNetwork`], [`ChainError::BadAnswer`].
    pub async fn connect(config: &GlobalConfig, network: NetworkId) -> Result<Self, ChainError> {
        let _ = (config, network);
        todo!()
    }

    /// An account's balance, nanoTON; 0 if there is no such account.
    ///
    /// # Errors
    /// [`ChainError::Unreachable`], [`ChainError::BadAnswer`].
    pub async fn balance(&self, address: &AccountAddress) -> Result<u64, ChainError> {
        let _ = address;
        todo!()
    }

    /// A deposit's state; `None` while nothing is deployed there.
    ///
    /// # Errors
    /// [`ChainError::Unreachable`]; [`ChainError::BadAnswer`], also if other code than ours is deployed there.
    pub async fn deposit(&self, address: &AccountAddress) -> Result<Option<DepositState>, ChainError> {
        let _ = address;
        todo!()
    }

    /// A grant locked in a deposit, by [`cocoon_protocol::Grant::id`].
    ///
    /// # Errors
    /// As [`Self::deposit`].
    pub async fn grant(
        &self,
        deposit: &AccountAddress,
        grant: &Digest32,
    ) -> Result<Option<GrantState>, ChainError> {
        let _ = (deposit, grant);
        todo!()
    }

    /// Locks a grant, deploying the deposit where needed, and waits until the chain shows it. A grant that is
    /// locked already is returned as it is.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub async fn lock_grant(&self, grant: &SignedGrant) -> Result<GrantState, ChainError> {
        let _ = grant;
        todo!()
    }

    /// Settles a voucher and waits until the chain shows it. One that was settled already, or a later one, is
    /// success without a message.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub async fn settle(&self, voucher: &SignedVoucher) -> Result<GrantState, ChainError> {
        let _ = voucher;
        todo!()
    }

    /// Withdraws and waits until the chain shows it.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub async fn withdraw(&self, withdrawal: &SignedWithdrawal) -> Result<DepositState, ChainError> {
        let _ = withdrawal;
        todo!()
    }

    /// Asks the local chain's giver for coins and waits until they are there; the new balance, nanoTON.
    ///
    /// # Errors
    /// [`ChainError::NoFaucet`] elsewhere, and see [`ChainError`].
    pub async fn request_faucet(&self, address: &AccountAddress, nano: u64) -> Result<u64, ChainError> {
        let _ = (address, nano);
        todo!()
    }
}
