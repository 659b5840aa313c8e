//! The seconds in which something signed is valid.

/// From the first to the last second since 1970, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) from_s: u64,
    pub(super) to_s: u64,
}

impl Window {
    pub(super) fn contains(self, now_s: u64) -> bool {
        (self.from_s..=self.to_s).contains(&now_s)
    }

    /// The next second at which [`Self::contains`] says something else than at `now_s`.
    pub(super) fn changes_s(self, now_s: u64) -> u64 {
        let edges = [self.from_s, self.to_s.saturating_add(1)];
        let next = edges.into_iter().find(|edge| *edge > now_s);
        next.unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_changes_where_it_begins_and_after_it_ends() {
        let window = Window { from_s: 10, to_s: 20 };
        for (now_s, contains, changes_s) in [
            (9, false, 10),
            (10, true, 21),
            (20, true, 21),
            (21, false, u64::MAX),
        ] {
            assert_eq!(
                (window.contains(now_s), window.changes_s(now_s)),
                (contains, changes_s)
            );
        }
    }
}
