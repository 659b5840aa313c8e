//! What a policy can say about a TDX quote. The default is the strict mode.

use std::collections::BTreeMap;

use super::{
    report::TdField,
    status::TcbStatus,
    tcb::{TcbLevel, TcbVerdict},
};

/// What is accepted. By default: a platform that is up to date, a TD with SEPT_VE_DISABLE and no other attribute, the
/// usual XFAM bits, and any register values, which are then listed as not judged.
///
/// Never accepted, whatever is stated here: debug, profiling, migratable and service TDs, unknown attribute bits,
/// SEPT_VE_DISABLE clear, revoked platforms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxTerms {
    /// Accepted statuses of platform, TDX module and quoting enclave together.
    pub tcb_accepted: Vec<TcbStatus>,
    /// The lowest accepted evaluation number.
    pub evaluation_number_min: u32,
    /// How long after the date of the level that it meets an outdated platform (or TDX module) counts as up to date.
    pub platform_grace_s: u64,
    /// Likewise for the quoting enclave.
    pub qe_grace_s: u64,
    /// The TD attributes, exactly.
    pub attributes: Option<u64>,
    /// XFAM, exactly.
    pub xfam: Option<u64>,
    /// Accepted values of fields: any one of the list. An empty list accepts nothing.
    pub fields: BTreeMap<TdField, Vec<Vec<u8>>>,
}

impl Default for TdxTerms {
    fn default() -> Self {
        Self {
            tcb_accepted: vec![TcbStatus::UpToDate],
            evaluation_number_min: 0,
            platform_grace_s: 0,
            qe_grace_s: 0,
            attributes: None,
            xfam: None,
            fields: BTreeMap::new(),
        }
    }
}

impl TdxTerms {
    /// Whether a status is accepted, and which it is after the grace periods.
    pub fn judge_status(&self, tcb: &TcbVerdict, now_s: u64) -> (bool, TcbStatus) {
        let graced = |status, date_s: u64, grace_s: u64| match status {
            TcbStatus::OutOfDate if in_grace(date_s, grace_s, now_s) => TcbStatus::UpToDate,
            TcbStatus::OutOfDateConfigurationNeeded if in_grace(date_s, grace_s, now_s) => {
                TcbStatus::ConfigurationNeeded
            }
            _ => status,
        };
        let qe = graced(tcb.qe.status, tcb.qe.date_s, self.qe_grace_s);
        let at_launch = graced(tcb.platform.status, tcb.platform.date_s, self.platform_grace_s);
        let at_launch = at_launch.with_component(qe);
        let status = tcb.current.as_ref().map_or(at_launch, |current| {
            at_launch.with_current(current.status.with_component(qe))
        });
        (
            status != TcbStatus::Revoked && self.tcb_accepted.contains(&status),
            status,
        )
    }

    /// From this second on [`Self::judge_status`] says something else, because a grace period has ended.
    pub(crate) fn grace_until_s(&self, tcb: &TcbVerdict, now_s: u64) -> u64 {
        let until_s = |level: &TcbLevel, grace_s: u64| {
            let graced = level.status.is_out_of_date() && in_grace(level.date_s, grace_s, now_s);
            graced.then(|| level.date_s.saturating_add(grace_s).saturating_add(1))
        };
        let platform = until_s(&tcb.platform, self.platform_grace_s);
        let qe = until_s(&tcb.qe, self.qe_grace_s);
        [platform, qe].into_iter().flatten().min().unwrap_or(u64::MAX)
    }
}

/// A period of zero is none, whatever the date.
fn in_grace(date_s: u64, grace_s: u64, now_s: u64) -> bool {
    grace_s > 0 && date_s.saturating_add(grace_s) >= now_s
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE_S: u64 = 1_700_000_000;

    fn level(status: TcbStatus) -> TcbLevel {
        TcbLevel {
            status,
            date_s: DATE_S,
            advisories: vec![],
        }
    }

    fn verdict(platform: TcbStatus, qe: TcbStatus) -> TcbVerdict {
        TcbVerdict {
            status: platform.with_component(qe),
            advisories: vec![],
            platform: level(platform),
            current: None,
            qe: level(qe),
        }
    }

    #[test]
    fn only_up_to_date_is_accepted_unless_another_status_is_named() {
        for status in TcbStatus::ALL {
            let tcb = verdict(status, TcbStatus::UpToDate);
            let (accepted, judged) = TdxTerms::default().judge_status(&tcb, DATE_S);
            assert_eq!((accepted, judged), (status == TcbStatus::UpToDate, status));
            let tcb_accepted = vec![status];
            let terms = TdxTerms {
                tcb_accepted,
                ..TdxTerms::default()
            };
            assert_eq!(terms.judge_status(&tcb, DATE_S).0, status != TcbStatus::Revoked);
        }
    }

    #[test]
    fn grace_ends_and_covers_only_its_own_component() {
        use TcbStatus::{OutOfDate, UpToDate};
        let platform = TdxTerms {
            platform_grace_s: 100,
            ..TdxTerms::default()
        };
        let qe = TdxTerms {
            qe_grace_s: 100,
            ..TdxTerms::default()
        };
        let old_platform = verdict(OutOfDate, UpToDate);
        let old_qe = verdict(UpToDate, OutOfDate);
        assert!(platform.judge_status(&old_platform, DATE_S + 100).0);
        assert!(!platform.judge_status(&old_platform, DATE_S + 101).0);
        assert!(!platform.judge_status(&old_qe, DATE_S).0);
        assert!(qe.judge_status(&old_qe, DATE_S + 100).0);
        assert!(!qe.judge_status(&old_qe, DATE_S + 101).0);
        assert!(!qe.judge_status(&old_platform, DATE_S).0);
        assert!(!TdxTerms::default().judge_status(&old_platform, DATE_S).0);
        assert!(!TdxTerms::default().judge_status(&old_platform, DATE_S - 1).0);
    }

    #[test]
    fn grace_does_not_configure_a_platform() {
        let tcb = verdict(TcbStatus::OutOfDateConfigurationNeeded, TcbStatus::UpToDate);
        let terms = TdxTerms {
            platform_grace_s: 100,
            ..TdxTerms::default()
        };
        let judged = terms.judge_status(&tcb, DATE_S);
        assert_eq!(judged, (false, TcbStatus::ConfigurationNeeded));
    }
}
