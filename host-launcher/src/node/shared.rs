//! What `status` tells, and where in the state directory things are.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use cocoon_measurements::LaunchPlatform;
use cocoon_settlement::ChainClient;
use tokio::time::timeout;

use super::open::simulated_root;
use crate::{
    boot::BootProgress,
    config::Config,
    relay::RelayCounters,
    settler::{Settler, totals},
    status::{CLAIMS_MAX, Connections, NodeState, Provider, Status, Usage},
};

/// The chain tells a balance within this, or `status` goes without.
const BALANCE_LIMIT: Duration = Duration::from_secs(5);

/// What `status` tells from.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) url: String,
    pub(super) chain: ChainClient,
    pub(super) ton_config: PathBuf,
    pub(super) settler: Settler,
    pub(super) relayed: Arc<RelayCounters>,
    pub(super) now: Mutex<Now>,
}

pub(super) struct Now {
    pub(super) state: NodeState,
    pub(super) accelerator: &'static str,
    pub(super) boot: BootProgress,
}

impl Shared {
    pub(super) fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn status(&self) -> Status {
        let provider = self.provider().await;
        let (records, mut claims) = self.settler.claims();
        let (served_nano, settled_nano) = totals(&claims);
        claims.sort_by_key(|claim| claim.settlement.is_final());
        claims.truncate(CLAIMS_MAX);
        let simulated = self.config.spec.platform == LaunchPlatform::Simulated;
        let state_dir = &self.config.state_dir;
        let now = self.now();
        Status {
            state: now.state,
            pid: std::process::id(),
            url: self.url.clone(),
            platform: if simulated { "simulated" } else { "tdx" }.into(),
            accelerator: now.accelerator.into(),
            simulated_root: simulated.then(|| simulated_root(state_dir)),
            ton_config: self.ton_config.clone(),
            launch_document: launch_document_path(state_dir),
            console: state_dir.join("console.log"),
            stages: now.boot.reached().to_vec(),
            connections: Connections {
                open: self.relayed.open.load(Ordering::Relaxed),
                total: self.relayed.total.load(Ordering::Relaxed),
            },
            usage: Usage {
                records,
                served_nano,
                settled_nano,
                claims,
            },
            provider,
        }
    }

    async fn provider(&self) -> Provider {
        let payout_address = self.config.payout_address;
        let (balance_nano, error) = match timeout(BALANCE_LIMIT, self.chain.balance(&payout_address)).await {
            Ok(Ok(nano)) => (Some(nano), None),
            Ok(Err(error)) => (None, Some(format!("{:#}", anyhow::Error::from(error)))),
            Err(_) => (None, Some("the chain does not answer in time".into())),
        };
        Provider {
            payout_address,
            balance_nano,
            error,
        }
    }
}

/// Where usage records are kept.
pub fn journal_path(state_dir: &Path) -> PathBuf {
    state_dir.join("journal")
}

pub(super) fn launch_document_path(state_dir: &Path) -> PathBuf {
    state_dir.join("launch-document.json")
}
