//! What is done to one record. Pure: a plan and the records give the bytes that leave.

/// Which direction is tampered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToNode,
    ToClient,
}

pub(crate) const WAYS: [Way; 2] = [Way::ToNode, Way::ToClient];

/// What the host does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Drop,
    Delay,
    Duplicate,
    Reorder,
    Corrupt,
    /// The record's header says another length.
    LieAboutLength,
    /// From here on nothing passes in this direction, but nothing is closed either.
    HalfOpen,
    /// The connection ends here.
    End,
}

/// Whole records or bytes within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Boundary,
    Inside,
}

pub(crate) const PLACES: [Place; 2] = [Place::Boundary, Place::Inside];

/// What is done to which record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) way: Way,
    /// The record, counted from 0 in its direction.
    pub(crate) record: usize,
    pub(crate) fault: Fault,
    pub(crate) place: Place,
    pub(crate) seed: u64,
}

/// What the host does next.
pub(super) enum Step {
    Send(Vec<u8>),
    Wait,
    Silence,
    End,
}

/// One direction.
pub(super) struct Outgoing {
    plan: Option<Plan>,
    next: usize,
    /// Waits for the record after it.
    held: Option<Vec<u8>>,
}

impl Outgoing {
    pub(super) fn new(plan: Option<Plan>) -> Self {
        Self {
            plan,
            next: 0,
            held: None,
        }
    }

    /// Whether the plan is about the record that comes next.
    pub(super) fn is_next_hit(&self) -> bool {
        self.plan.is_some_and(|plan| plan.record == self.next)
    }

    pub(super) fn take(&mut self, record: Vec<u8>) -> Vec<Step> {
        let hit = self.is_next_hit();
        self.next += 1;
        let plan = self.plan.filter(|_| hit);
        let Some(plan) = plan else {
            let held = self.held.take();
            return [Some(record), held]
                .into_iter()
                .flatten()
                .map(Step::Send)
                .collect();
        };
        match plan.place {
            Place::Boundary => self.damage_whole(plan, record),
            Place::Inside => damage_inside(plan, &record),
        }
    }

    fn damage_whole(&mut self, plan: Plan, mut record: Vec<u8>) -> Vec<Step> {
        match plan.fault {
            Fault::Drop => vec![],
            Fault::Delay => vec![Step::Wait, Step::Send(record)],
            Fault::Duplicate => vec![Step::Send(record.clone()), Step::Send(record)],
            Fault::Reorder => {
                self.held = Some(record);
                vec![]
            }
            // The record's type, which becomes one that there is not. (That an encrypted record says another type
            // outside than inside is of no matter to rustls: the one inside is authenticated, and counts.)
            Fault::Corrupt => {
                record[0] ^= 1 << (3 + Random(plan.seed).below(5));
                vec![Step::Send(record)]
            }
            Fault::LieAboutLength => vec![Step::Send(with_length(record, 1))],
            Fault::HalfOpen => vec![Step::Silence],
            Fault::End => vec![Step::End],
        }
    }
}

fn damage_inside(plan: Plan, record: &[u8]) -> Vec<Step> {
    let mut random = Random(plan.seed);
    // Behind the header, so that what is damaged is what the guest or the client said.
    let start = 5 + random.below(record.len() - 6);
    // Something follows, so that bytes in another order are other bytes.
    let run = 1 + random.below((record.len() - start - 1).min(64));
    let (before, rest) = record.split_at(start);
    let (bytes, after) = rest.split_at(run.min(rest.len()));
    let send = |parts: &[&[u8]]| vec![Step::Send(parts.concat())];
    match plan.fault {
        Fault::Drop => send(&[before, after]),
        Fault::Delay => vec![Step::Send(before.to_vec()), Step::Wait, Step::Send(rest.to_vec())],
        Fault::Duplicate => send(&[before, bytes, bytes, after]),
        Fault::Reorder => send(&[before, after, bytes]),
        Fault::Corrupt => {
            let mut record = record.to_vec();
            record[start] ^= 1 << random.below(8);
            vec![Step::Send(record)]
        }
        Fault::LieAboutLength => vec![Step::Send(with_length(record.to_vec(), -1))],
        Fault::HalfOpen => vec![Step::Send(before.to_vec()), Step::Silence],
        Fault::End => vec![Step::Send(before.to_vec()), Step::End],
    }
}

fn with_length(mut record: Vec<u8>, more: i16) -> Vec<u8> {
    let length = u16::from_be_bytes([record[3], record[4]]).wrapping_add_signed(more);
    record[3..5].copy_from_slice(&length.to_be_bytes());
    record
}

/// `SplitMix64` (Steele, Lea, Flood 2014): the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        usize::try_from(mixed % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }
}
