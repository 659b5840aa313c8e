//! Another memory size: the TD hand-off block lists the memory, its digest is the first event of RTMR0.
//!
//! All sizes to 2 TiB in steps of one MiB, round ones first, on all processors. Above 2816 MiB the blocks of all
//! sizes differ in their last number alone, so that all but the end of the block is hashed once.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use cocoon_evidence::{Digest48, Register};
use sha2::{Digest as _, Sha384};

use super::{Cause, Certainty, Expected, Observed, Subject};
use crate::eventlog::EventType;

/// 2 TiB.
pub const MEMORY_MIB_MAX: u64 = 2 << 20;

/// Less does not boot.
const MEMORY_MIB_MIN: u64 = 64;

/// From here on a q35 machine has memory above 4 GiB, and one shape of hand-off block.
const ONE_SHAPE_MIB: u64 = 2816;

/// Finds memory sizes.
pub struct MemorySearch<'a> {
    /// The hand-off block for a size in MiB, as it is measured; `None` if the firmware cannot have it.
    pub block: Box<dyn Fn(u64) -> Option<Vec<u8>> + Sync + 'a>,
    /// The whole launch with another size, to see which other registers that explains.
    pub predict: Box<dyn Fn(u64) -> Option<Expected> + 'a>,
    /// The size in the LaunchSpec.
    pub expected_mib: u64,
}

/// What a candidate's digest has to lead to.
enum Target<'a> {
    /// The event's digest, from a log.
    Digest(Digest48),
    /// The register's value, with the events that follow the hand-off block.
    Value(Digest48, &'a [Digest48]),
}

impl Target<'_> {
    fn is_hit(&self, digest: &Digest48) -> bool {
        match self {
            Self::Digest(wanted) => digest == wanted,
            Self::Value(wanted, following) => {
                Register::replay([digest].into_iter().chain(*following)).value() == *wanted
            }
        }
    }
}

impl MemorySearch<'_> {
    /// The cause, if another size explains RTMR0 (or its hand-off event, with a log).
    pub(super) fn find(
        &self,
        expected: &Expected,
        observed: &Observed,
        differing: &[Subject],
    ) -> Option<Cause> {
        let is_hand_off = |event_type| event_type == Some(EventType::EFI_HANDOFF_TABLES2);
        let first = expected
            .events(0)
            .first()
            .filter(|event| is_hand_off(event.event_type))?;
        let following: Vec<_> = expected.events(0)[1..].iter().map(|event| event.digest).collect();
        let target = match &observed.logged {
            Some(logged) => {
                let seen = logged[0]
                    .iter()
                    .find(|event| is_hand_off(Some(event.event_type)))?;
                if seen.digest == first.digest {
                    return None;
                }
                Target::Digest(seen.digest)
            }
            None => Target::Value(observed.value(Subject::Rtmr0)?, &following),
        };
        let mib = self.search(&target)?;
        Some(self.cause(mib, observed, differing))
    }

    fn cause(&self, mib: u64, observed: &Observed, differing: &[Subject]) -> Cause {
        let mut registers = vec![Subject::Rtmr0];
        let predicted = (self.predict)(mib);
        let gives = |subject: &Subject| {
            let predicted = predicted.as_ref().zip(observed.value(*subject));
            predicted.is_some_and(|(expected, value)| expected.accepts(*subject, &value))
        };
        let others = differing.iter().copied();
        registers.extend(others.filter(|subject| *subject != Subject::Rtmr0 && gives(subject)));
        // Without a log the whole register was replayed; with one, only the event of the memory map was found.
        let certainty = if observed.logged.is_none() || gives(&Subject::Rtmr0) {
            Certainty::Reproduced
        } else {
            Certainty::Seen
        };
        let (title, change) = words(mib, self.expected_mib);
        Cause {
            id: "memory",
            certainty,
            registers,
            title,
            change,
        }
    }

    fn search(&self, target: &Target<'_>) -> Option<u64> {
        let fast = FastBlock::new(&self.block);
        let block = &self.block;
        let digest = |mib: u64| match &fast {
            Some(fast) if mib >= ONE_SHAPE_MIB => Some(fast.digest(mib)),
            _ => block(mib).map(|block| Digest48::of(&block)),
        };
        round_first().find_map(|step| {
            let odd_multiples = |mib: &u64| step == ROUNDEST || !mib.is_multiple_of(step * 2);
            let candidates: Vec<u64> = (1..=MEMORY_MIB_MAX / step)
                .map(|factor| factor * step)
                .filter(odd_multiples)
                .collect();
            any_hit(&candidates, |mib| {
                mib >= MEMORY_MIB_MIN && digest(mib).is_some_and(|digest| target.is_hit(&digest))
            })
        })
    }
}

/// What is different, and what to do.
pub(super) fn words(mib: u64, expected_mib: u64) -> (String, String) {
    (
        format!("the machine has {mib} MiB of memory, the LaunchSpec says {expected_mib}"),
        format!("set memory_mib = {mib}, or start the machine with -m {expected_mib}M"),
    )
}

const ROUNDEST: u64 = 1024;

/// 1024, 512, ..., 1: machines have round sizes.
fn round_first() -> impl Iterator<Item = u64> {
    (0..=ROUNDEST.ilog2()).rev().map(|bits| 1 << bits)
}

/// The smallest candidate that hits, among those that the processors try at a time.
fn any_hit(candidates: &[u64], is_hit: impl Fn(u64) -> bool + Sync) -> Option<u64> {
    const NONE: u64 = u64::MAX;
    let threads = thread::available_parallelism().map_or(1, usize::from).min(16);
    let found = AtomicU64::new(NONE);
    thread::scope(|scope| {
        for part in candidates.chunks(candidates.len().div_ceil(threads).max(1)) {
            let (found, is_hit) = (&found, &is_hit);
            scope.spawn(move || {
                for mib in part {
                    if found.load(Ordering::Relaxed) != NONE {
                        return;
                    }
                    if is_hit(*mib) {
                        found.fetch_min(*mib, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    Some(found.into_inner()).filter(|mib| *mib != NONE)
}

/// A hand-off block whose last eight bytes, the length of the memory above 4 GiB, grow with the memory.
struct FastBlock {
    before: Sha384,
    base: u64,
}

impl FastBlock {
    /// `None` if the blocks are not like that: then every block is made and hashed whole.
    fn new(block: &(dyn Fn(u64) -> Option<Vec<u8>> + Sync)) -> Option<Self> {
        let first = block(ONE_SHAPE_MIB)?;
        let (prefix, last) = first.split_last_chunk::<8>()?;
        let base = u64::from_le_bytes(*last);
        for mib in [ONE_SHAPE_MIB + 1, 65_536, MEMORY_MIB_MAX] {
            let grown = (base + ((mib - ONE_SHAPE_MIB) << 20)).to_le_bytes();
            if block(mib)? != [prefix, &grown].concat() {
                return None;
            }
        }
        Some(Self {
            before: Sha384::new_with_prefix(prefix),
            base,
        })
    }

    fn digest(&self, mib: u64) -> Digest48 {
        let last = (self.base + ((mib - ONE_SHAPE_MIB) << 20)).to_le_bytes();
        Digest48(self.before.clone().chain_update(last).finalize().into())
    }
}
