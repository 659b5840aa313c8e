//! What was accepted so far by verifiers under one policy: none of them accepts anything older again. Where it is
//! remembered in a file ([`Seen`]), no later program of this user does.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cocoon_verify::{Floors, Policy, TrustedGuest};
use tokio::task::spawn_blocking;

use crate::{Proof, Seen, SeenError};

/// The highest numbers that were accepted; clones share them.
#[derive(Debug, Clone)]
pub struct Accepted(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    floors: Mutex<Floors>,
    kept: Option<Kept>,
}

/// Where it is written, and under which policy.
#[derive(Debug)]
struct Kept {
    seen: Seen,
    policy: PathBuf,
}

impl Accepted {
    /// Begins at `floors`. What rises is written to `seen` before the guest counts as accepted. `policy`: where the
    /// policy was read from.
    pub fn remembered(floors: Floors, seen: Seen, policy: PathBuf) -> Self {
        Self::new(floors, Some(Kept { seen, policy }))
    }

    fn new(floors: Floors, kept: Option<Kept>) -> Self {
        Self(Arc::new(Inner {
            floors: Mutex::new(floors),
            kept,
        }))
    }

    pub(crate) fn floors(&self) -> Floors {
        *self.lock()
    }

    /// A guest met the policy.
    pub(crate) async fn raise(&self, policy: &Policy, proof: &Arc<Proof>) -> Result<(), SeenError> {
        if let Some(kept) = &self.0.kept {
            let (seen, path) = (kept.seen.clone(), kept.policy.clone());
            let (policy, proof) = (policy.clone(), Arc::clone(proof));
            // Another program of this user may hold the file.
            let written = spawn_blocking(move || seen.accept(&policy, &path, proof.guest())).await;
            written.unwrap_or_else(|error| Err(kept.seen.error("written", io::Error::from(error))))?;
        }
        self.raise_floors(proof.guest());
        Ok(())
    }

    /// Whoever runs for weeks is not to be shown endorsements again that are older than what it accepted.
    fn raise_floors(&self, guest: &TrustedGuest) {
        let mut floors = self.lock();
        let accepted = guest.tcb_evaluation_number().unwrap_or_default();
        floors.tcb_evaluation_number = floors.tcb_evaluation_number.max(accepted);
    }

    fn lock(&self) -> MutexGuard<'_, Floors> {
        self.0.floors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgotten when the program ends.
impl From<Floors> for Accepted {
    fn from(floors: Floors) -> Self {
        Self::new(floors, None)
    }
}
