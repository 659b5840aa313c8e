//! From when until when certificates, revocation lists and documents may be used together.

use std::fmt;

use super::{certificate::Certificate, revocation::RevocationList};
use crate::date::date_text;

/// One dated thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// What it is.
    pub of: &'static str,
    /// The first second, since 1970.
    pub from_s: u64,
    /// The last second.
    pub until_s: u64,
}

impl fmt::Display for Period {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, until) = (date_text(self.from_s), date_text(self.until_s));
        write!(formatter, "{} is valid from {from} until {until}", self.of)
    }
}

/// Something is used outside its time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{period}, and now it is {now}", now = date_text(*now_s))]
pub struct ValidityError {
    /// What is used.
    pub period: Period,
    /// When.
    pub now_s: u64,
}

/// Periods that all have to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validity(Vec<Period>);

impl Validity {
    pub(crate) fn add_certificate(&mut self, of: &'static str, certificate: &Certificate) {
        self.add_document(of, certificate.not_before_s, certificate.not_after_s);
    }

    /// A list is not used in the second of its nextUpdate: by then the next one exists.
    pub(crate) fn add_list(&mut self, of: &'static str, list: &RevocationList) {
        self.add_document(of, list.this_update_s, list.next_update_s.saturating_sub(1));
    }

    pub(crate) fn add_document(&mut self, of: &'static str, from_s: u64, until_s: u64) {
        self.0.push(Period { of, from_s, until_s });
    }

    /// Everything that is dated.
    pub fn periods(&self) -> &[Period] {
        &self.0
    }

    /// What ends first.
    pub fn first_to_end(&self) -> Option<&Period> {
        self.0.iter().min_by_key(|period| period.until_s)
    }

    /// The latest beginning: before it, something is not valid yet.
    pub fn from_s(&self) -> u64 {
        self.0
            .iter()
            .map(|period| period.from_s)
            .max()
            .unwrap_or_default()
    }

    /// The earliest end, inclusive: after it, something has expired.
    pub fn until_s(&self) -> u64 {
        self.0
            .iter()
            .map(|period| period.until_s)
            .min()
            .unwrap_or_default()
    }

    /// Whether all hold at `now_s`.
    ///
    /// # Errors
    /// Names the first that does not.
    pub fn check(&self, now_s: u64) -> Result<(), ValidityError> {
        let outside = self
            .0
            .iter()
            .find(|period| !(period.from_s..=period.until_s).contains(&now_s));
        match outside {
            Some(&period) => Err(ValidityError { period, now_s }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_period_has_to_hold() {
        let mut validity = Validity::default();
        validity.add_document("a", 10, 20);
        validity.add_document("b", 5, 15);
        assert_eq!((validity.from_s(), validity.until_s()), (10, 15));
        for (now_s, of) in [
            (9, Some("a")),
            (10, None),
            (15, None),
            (16, Some("b")),
            (21, Some("a")),
        ] {
            let outside = validity.check(now_s).err().map(|error| error.period.of);
            assert_eq!(outside, of, "{now_s}");
        }
    }
}
