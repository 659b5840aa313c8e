//! How much a guest may draw at most: what it could still draw on open grants, and what goes into a new one.

use super::PayError;
use crate::ExchangeError;

/// So long after it has expired by this machine's clock, a grant pays nothing by the chain's either.
const CHAIN_CLOCK_S: u64 = 120;

/// A grant is not halved where its half would pay for fewer requests.
const HALF_REQUESTS_MIN: u64 = 4;

/// How much of what may be at stake goes into one new grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locking {
    /// All of it.
    Whole,
    /// Half of it, as long as that pays for several requests. A node that is started anew is another guest, for which
    /// nothing would be left.
    Half,
}

impl Locking {
    pub(super) fn cap_nano(self, free_nano: u64, least_nano: u64) -> u64 {
        match self {
            Self::Half if free_nano / 2 >= least_nano.saturating_mul(HALF_REQUESTS_MIN) => free_nano / 2,
            _ => free_nano,
        }
    }
}

/// How long a grant may yet pay, by any clock of the chain's.
pub(crate) fn rest_s(expires_s: u32, now_s: u64) -> u64 {
    u64::from(expires_s)
        .saturating_add(CHAIN_CLOCK_S)
        .saturating_sub(now_s)
}

/// What a guest could still draw from grants that are open.
#[derive(Default)]
pub(super) struct AtStake {
    pub(super) nano: u64,
    /// When the last of them expires.
    expires_s: u32,
    /// One of them that does not end soon was not taken.
    pub(super) is_refused: bool,
    /// Why it does not take one of them.
    pub(super) refusal: Option<ExchangeError>,
}

impl AtStake {
    pub(super) fn add(&mut self, nano: u64, expires_s: u32) {
        self.nano = self.nano.saturating_add(nano);
        self.expires_s = self.expires_s.max(expires_s);
    }

    /// Too little is left for another grant.
    pub(super) fn short(self, cap_nano: u64, need_nano: u64, now_s: u64) -> PayError {
        if self.nano == 0 || cap_nano < need_nano {
            return PayError::CapTooLow { need_nano, cap_nano };
        }
        PayError::Open {
            open_nano: self.nano,
            cap_nano,
            need_nano,
            rest_s: rest_s(self.expires_s, now_s),
            refusal: self.refusal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_is_locked_while_that_pays_for_several_requests_and_never_more_than_is_free() {
        for (free_nano, half_nano) in [(1_000, 500), (800, 400), (799, 799), (100, 100)] {
            assert_eq!(Locking::Half.cap_nano(free_nano, 100), half_nano);
            assert_eq!(Locking::Whole.cap_nano(free_nano, 100), free_nano);
        }
    }

    #[test]
    fn a_grant_counts_until_no_clock_of_the_chain_lets_it_pay() {
        for (now_s, rest) in [(900, 220), (1_000, 120), (1_119, 1), (1_120, 0), (u64::MAX, 0)] {
            assert_eq!(rest_s(1_000, now_s), rest);
        }
    }
}
