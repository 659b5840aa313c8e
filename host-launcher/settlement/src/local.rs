//! The embedded local chain.

use std::{net::SocketAddr, path::Path};

use crate::GlobalConfig;

/// Why the local chain does not open or serve.
#[derive(Debug, thiserror::Error)]
pub enum LocalChainError {}

/// A chain of its own, in one directory. Its coins are worth nothing.
#[derive(Debug)]
pub struct LocalChain {}

/// A served local chain; it stops when this is dropped.
#[derive(Debug)]
pub struct LocalChainHandle {}

impl LocalChain {
    /// Opens the chain in `dir`, or makes a new one there.
    ///
    /// # Errors
    /// See [`LocalChainError`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, LocalChainError> {
        let _ = dir;
        todo!()
    }

    /// Serves it as a liteserver; port 0 takes a free one. Runs in tasks of the current tokio runtime.
    ///
    /// # Errors
    /// See [`LocalChainError`].
    pub async fn serve(self, listen: SocketAddr) -> Result<LocalChainHandle, LocalChainError> {
        let _ = listen;
        todo!()
    }
}

impl LocalChainHandle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        todo!()
    }

    /// What clients need to reach it.
    pub fn global_config(&self) -> &GlobalConfig {
        todo!()
    }

    /// Stops serving and closes the log.
    pub async fn shutdown(self) {
        todo!()
    }
}
