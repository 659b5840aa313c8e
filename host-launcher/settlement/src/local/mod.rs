//! The embedded local chain: a real TVM and transaction executor behind a liteserver on loopback, for machines
//! and tests without coins.
//!
//! Real: the contracts' code in the TVM, transactions with all their phases and fees at mainnet's prices,
//! messages between accounts, logical time, addresses, the liteserver protocol, Merkle proofs of accounts.
//! Simulated: there are no validators and no consensus; each accepted external message makes one block, the
//! masterchain's block is the basechain's, blocks carry `global_id` [`NetworkId::LOCAL`], no signatures and no
//! shard proofs, and only the last one is kept. Coins come from a giver in the genesis and are worth nothing.
//!
//! Restarting executes the log of accepted messages again and holds the result against the recorded state
//! hashes, so a chain continues exactly or not at all.
//!
//! [`NetworkId::LOCAL`]: cocoon_protocol::NetworkId::LOCAL

mod chain;
pub(crate) mod genesis;
mod log;
#[cfg(test)]
mod payments;
mod server;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

#[cfg(test)]
pub(crate) use chain::Chain;
pub use server::{LocalChain, LocalChainHandle};

/// Why the local chain does not open or serve.
#[derive(Debug, thiserror::Error)]
pub enum LocalChainError {
    /// The directory or a file in it cannot be read or written.
    #[error("{path} cannot be read or written; check the folder's rights and the disk's space")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process serves it.
    #[error("the local chain in {dir} is in use by another process; stop that node first")]
    InUse {
        /// Which.
        dir: PathBuf,
    },
    /// What is on disk does not add up.
    #[error("{path} is corrupt at byte {offset}; restore the folder, or delete it to begin a new chain")]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// Where.
        offset: u64,
    },
    /// It would take too long to open again.
    #[error("{path} has reached the local chain's size limit; begin a new chain in another folder")]
    Full {
        /// Which file.
        path: PathBuf,
    },
    /// Executing the log again leads elsewhere.
    #[error(
        "message {number} of the local chain in {dir} no longer has the recorded effect: another version wrote it; \
         use that version, or delete the folder to begin a new chain"
    )]
    Diverged {
        /// Which chain.
        dir: PathBuf,
        /// Counted from 1.
        number: usize,
    },
    /// The executor failed on the chain's own data: a bug.
    #[error("the local chain failed while it was to {attempt}: {reason}")]
    Execution {
        /// What was attempted.
        attempt: &'static str,
        /// What the executor says.
        reason: String,
    },
    /// It would be reachable by others.
    #[error("the local chain only listens on loopback, not on {0}")]
    NotLoopback(SocketAddr),
    /// The port is taken.
    #[error("the local chain cannot listen on {address}; choose another port, or 0 for a free one")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl LocalChainError {
    fn execution(attempt: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Execution {
            attempt,
            reason: reason.to_string(),
        }
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}
