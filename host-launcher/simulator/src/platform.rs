//! x
use std::path::Path;

use crate::td::{InitialRegisters, SimulatedTd};

/// x
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {}

/// x
#[derive(Debug, Clone)]
pub struct SimulatedPlatform {}

impl SimulatedPlatform {
    /// x
    pub fn open_or_create(dir: &Path, now_s: u64) -> Result<Self, PlatformError> {
        let _ = (dir, now_s);
        Ok(Self {})
    }

    /// The test root, PEM: what a policy's `platform.root_pem` names.
    pub fn root_pem(&self) -> &str {
        ""
    }

    /// x
    pub fn collateral(&self, now_s: u64) -> Result<Vec<u8>, PlatformError> {
        let _ = now_s;
        Ok(vec![])
    }

    /// x
    pub fn start_td(&self, registers: InitialRegisters) -> SimulatedTd {
        SimulatedTd::new(registers)
    }
}
