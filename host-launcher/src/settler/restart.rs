//! What a start takes up of the runs before it.

use std::path::Path;

use tokio::time::Instant;

use super::{
    Settler,
    book::{Book, ended_before},
};
use crate::{
    journal::{self, Journal, OpenError},
    services::now_s,
};

/// So long after its expiry a grant of an earlier run is not even looked up. Long: right after it has started, a host's
/// clock can be hours ahead, and closing a living grant would lose what is owed on it.
pub(super) const FORGOTTEN_AFTER_S: u64 = 7 * 24 * 3600;

/// A journal of so many bytes is begun anew: some 400,000 records, which take five seconds to read.
const LONG_JOURNAL: u64 = 256 * 1024 * 1024;

impl Settler {
    /// Opens the journal and takes up what it holds: claims on grants that expired long ago are closed, all others are
    /// due. A long journal is begun anew without the closed ones. Also returns how many bytes of a torn last entry were cut.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn take_up(&self, path: &Path) -> Result<(Journal, u64), OpenError> {
        self.take_up_renewing(path, LONG_JOURNAL)
    }

    pub(super) fn take_up_renewing(&self, path: &Path, long: u64) -> Result<(Journal, u64), OpenError> {
        let (mut journal, torn_bytes) = Journal::open(path, |entry| match entry {
            journal::Entry::Record(record) => self.note(&record),
            journal::Entry::Seen(seen) => {
                self.learn(&seen);
            }
        })?;
        let now = Instant::now();
        for entry in self.book().entries.values_mut() {
            if entry
                .expires_s
                .is_some_and(|expires_s| ended_before(expires_s, FORGOTTEN_AFTER_S))
            {
                entry.settlement = entry.ended();
                entry.due = None;
            } else {
                entry.due = Some(now);
            }
        }
        if journal.length() >= long {
            let kept = path.with_extension(format!("until-{}", now_s()));
            self.renew(&mut journal, path, &kept)?;
            tracing::info!(kept = %kept.display(), "the journal was long and is begun anew");
        }
        Ok((journal, torn_bytes))
    }

    /// Begins the journal anew with the newest record of each grant that something can come of, and what the chain
    /// showed of it.
    fn renew(&self, journal: &mut Journal, path: &Path, kept: &Path) -> Result<(), OpenError> {
        let mut book = self.book();
        book.entries.retain(|_, entry| entry.due.is_some());
        book.records = 0;
        let Book { entries, records, .. } = &mut *book;
        journal.renew(path, kept, |entry| match entry {
            journal::Entry::Record(record) => {
                let open = entries.get(&record.voucher.voucher.grant);
                let keep = open.is_some_and(|open| open.newest == record.voucher);
                *records += u64::from(keep);
                keep
            }
            journal::Entry::Seen(seen) => entries.contains_key(&seen.grant),
        })
    }
}
