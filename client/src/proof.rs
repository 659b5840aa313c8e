//! That a TLS key belongs to a guest that meets the policy, and for how long that may be believed.
//!
//! A proof is made from the evidence of one connection. For [`FRESH_FOR`] the key stands for the guest: who shows
//! the same certificate and holds its private key needs no new quote. Then fresh evidence is asked for again, so
//! that a key that leaked, or a platform that was revoked, is noticed.

use std::time::{Duration, Instant};

use cocoon_evidence::Digest32;
use cocoon_protocol::LaunchDocument;
use cocoon_verify::TrustedGuest;

use crate::{Leaf, Verification};

/// How long possession of a proven key suffices.
pub const FRESH_FOR: Duration = Duration::from_secs(600);

/// One point of time on two clocks. The monotonic one cannot be set back but stands still while a machine
/// sleeps; the other one runs on but can be set. A proof is fresh only if both say so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) monotonic: Instant,
    pub(crate) now_s: u64,
}

impl Moment {
    /// Now; `now_s` is the caller's clock.
    pub(crate) fn at(now_s: u64) -> Self {
        Self {
            monotonic: Instant::now(),
            now_s,
        }
    }
}

/// A guest that met its policy, as the holder of one TLS key. Only this crate makes one, from judged evidence.
#[derive(Debug)]
pub struct Proof {
    guest: TrustedGuest,
    launch: LaunchDocument,
    verification: Verification,
    certificate: Digest32,
    made: Moment,
    /// The first second at which certificate, policy or endorsements are expired.
    until_s: u64,
}

impl Proof {
    /// `made`: before its evidence was asked for.
    pub(crate) fn new(
        guest: TrustedGuest,
        launch: LaunchDocument,
        verification: Verification,
        leaf: &Leaf,
        made: Moment,
    ) -> Self {
        let certificate_until_s = u64::try_from(leaf.not_after_s.saturating_add(1)).unwrap_or_default();
        Self {
            until_s: guest.valid_until_s().min(certificate_until_s),
            guest,
            launch,
            verification,
            certificate: leaf.digest,
            made,
        }
    }

    /// The guest.
    pub fn guest(&self) -> &TrustedGuest {
        &self.guest
    }

    /// What it runs and costs, as it measured it.
    pub fn launch(&self) -> &LaunchDocument {
        &self.launch
    }

    /// Everything that was judged.
    pub fn verification(&self) -> &Verification {
        &self.verification
    }

    /// SHA-256 of the certificate (DER) whose key is proven.
    pub fn certificate(&self) -> &Digest32 {
        &self.certificate
    }

    /// When it was made, seconds since 1970.
    pub fn made_s(&self) -> u64 {
        self.made.now_s
    }

    /// From this second on it is not believed any more, even within [`FRESH_FOR`].
    pub fn until_s(&self) -> u64 {
        self.until_s
    }

    pub(crate) fn is_fresh(&self, now: Moment) -> bool {
        is_fresh(self.made, self.until_s, now)
    }
}

fn is_fresh(made: Moment, until_s: u64, now: Moment) -> bool {
    let monotonic = now.monotonic.saturating_duration_since(made.monotonic);
    let Some(age_s) = now.now_s.checked_sub(made.now_s) else {
        // The clock was set back: how old the proof is cannot be said.
        return false;
    };
    monotonic < FRESH_FOR && age_s < FRESH_FOR.as_secs() && now.now_s < until_s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_ages_on_both_clocks() {
        let made = Moment::at(1_000_000);
        let later = |monotonic_s, wall_s: i64| Moment {
            monotonic: made.monotonic + Duration::from_secs(monotonic_s),
            now_s: made.now_s.saturating_add_signed(wall_s),
        };
        let fresh = |monotonic_s, wall_s| is_fresh(made, u64::MAX, later(monotonic_s, wall_s));
        assert!(fresh(0, 0));
        assert!(fresh(599, 599));
        assert!(!fresh(600, 0), "the wall clock was stopped");
        assert!(!fresh(0, 600), "the machine slept");
        assert!(!fresh(1, -1), "the clock was set back");
    }

    #[test]
    fn a_proof_ends_with_what_it_rests_upon() {
        let made = Moment::at(1_000_000);
        assert!(is_fresh(made, 1_000_001, made));
        assert!(!is_fresh(made, 1_000_000, made));
    }
}
