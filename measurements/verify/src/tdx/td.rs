//! What a TD may be, apart from what it measures: its attributes, its extended features and who else can reach into it.

use super::{
    attributes as bits,
    report::{TdField, TdReport},
    rows::Rows,
    terms::TdxTerms,
};
use crate::judgement::FailureClass;

/// The TD attributes of which one is enough to refuse a TD, whatever a policy states.
const FORBIDDEN: [(&str, u64, &str); 5] = [
    ("td.debug", bits::DEBUG, "not a debug TD"),
    ("td.profiling", bits::PROFILING, "not profiled by the host"),
    ("td.migratable", bits::MIGRATABLE, "not migratable"),
    (
        "td.service-td-ext",
        bits::SERVICE_TD_EXT,
        "no service TDs bound later",
    ),
    (
        "td.unknown-attributes",
        bits::UNKNOWN,
        "no unknown attribute bits",
    ),
];

/// Why a TD is refused, whatever a policy states; empty if nothing speaks against it.
pub(crate) fn never_accepted(report: &TdReport<'_>) -> Vec<&'static str> {
    let attributes = report.attributes();
    let mut broken: Vec<_> = FORBIDDEN
        .iter()
        .filter(|(_, mask, _)| attributes & mask != 0)
        .map(|(_, _, rule)| *rule)
        .collect();
    if attributes & bits::SEPT_VE_DISABLE == 0 {
        broken.push("SEPT_VE_DISABLE set");
    }
    if !service_tds(report).is_empty() {
        broken.push("no service TDs");
    }
    if in_partition(report) {
        broken.push("not inside a partitioned TD");
    }
    broken
}

pub(crate) fn judge(rows: &mut Rows, report: Option<&TdReport<'_>>, terms: &TdxTerms) {
    let Some(report) = report else {
        rows.skip(
            "td.attributes",
            FailureClass::Policy,
            "attributes of a TD",
            "there is no TD report",
        );
        return;
    };
    let attributes = report.attributes();
    for (id, mask, expected) in FORBIDDEN {
        let set = attributes & mask;
        rows.judge(id, FailureClass::Policy, expected, &format!("{set:#x}"), set == 0);
    }
    let disabled = attributes & bits::SEPT_VE_DISABLE != 0;
    let actual = if disabled { "set" } else { "clear" };
    rows.judge(
        "td.sept-ve-disable",
        FailureClass::Policy,
        "set",
        actual,
        disabled,
    );
    let (expected, holds) = match terms.attributes {
        Some(exact) => (format!("exactly {exact:#018x}"), attributes == exact),
        None => {
            let text = "no optional attribute unless a policy states it";
            (text.to_owned(), attributes & bits::STATED_BITS == 0)
        }
    };
    let actual = format!("{attributes:#018x} ({})", bits::names(attributes).join(", "));
    rows.judge("td.attributes", FailureClass::Policy, &expected, &actual, holds);
    judge_xfam(rows, report.xfam(), terms);
    judge_service_tds(rows, report);
}

fn judge_xfam(rows: &mut Rows, xfam: u64, terms: &TdxTerms) {
    let (expected, holds) = match terms.xfam {
        Some(exact) => (format!("exactly {exact:#018x}"), xfam == exact),
        None => (
            format!(
                "{:#x}, and nothing but {:#x}",
                bits::XFAM_REQUIRED,
                bits::XFAM_ACCEPTED
            ),
            xfam & bits::XFAM_REQUIRED == bits::XFAM_REQUIRED && xfam & !bits::XFAM_ACCEPTED == 0,
        ),
    };
    rows.judge(
        "td.xfam",
        FailureClass::Policy,
        &expected,
        &format!("{xfam:#018x}"),
        holds,
    );
}

fn judge_service_tds(rows: &mut Rows, report: &TdReport<'_>) {
    let bound = service_tds(report);
    let actual = if bound.is_empty() {
        "none".to_owned()
    } else {
        format!("{} is not zero", bound.join(", "))
    };
    rows.judge(
        "td.service-td",
        FailureClass::Policy,
        "no service TDs",
        &actual,
        bound.is_empty(),
    );
    if let Some([vm]) = report.field(TdField::VmId) {
        let expected = "the TD itself, not a virtual machine inside it";
        rows.judge(
            "td.partition",
            FailureClass::Policy,
            expected,
            &format!("VM {vm}"),
            !in_partition(report),
        );
    }
}

/// A service TD can do to this TD what its own code says, and nobody judges that. The reports of 1.0 have no such
/// fields: a TD with service TDs is never quoted in that form.
fn service_tds(report: &TdReport<'_>) -> Vec<&'static str> {
    const FIELDS: [TdField; 5] = [
        TdField::MrServiceTd,
        TdField::InitServiceTdHash,
        TdField::InitServiceTdAttributes,
        TdField::CurServiceTdHash,
        TdField::CurServiceTdAttributes,
    ];
    let is_set = |field: &TdField| {
        report
            .field(*field)
            .is_some_and(|value| value.iter().any(|byte| *byte != 0))
    };
    FIELDS.into_iter().filter(is_set).map(TdField::name).collect()
}

/// The L1 monitor of a partitioned TD asked for the report of one of its virtual machines.
fn in_partition(report: &TdReport<'_>) -> bool {
    report.field(TdField::VmId).is_some_and(|vm| vm != [0])
}

#[cfg(test)]
mod tests {
    use super::{super::report::BodyKind, *};
    use crate::judgement::Status;

    const ORDINARY: u64 = bits::SEPT_VE_DISABLE;
    const XFAM: u64 = 0x6_02e7;

    /// A TD report 1.5 ex with these bits and one byte set at `offset`.
    fn body(attributes: u64, xfam: u64, offset: Option<usize>) -> Vec<u8> {
        let mut body = vec![0; BodyKind::Td15Ex.bytes()];
        body[120..128].copy_from_slice(&attributes.to_le_bytes());
        body[128..136].copy_from_slice(&xfam.to_le_bytes());
        if let Some(offset) = offset {
            body[offset] = 1;
        }
        body
    }

    /// The ids of the rows that fail, all of them as a matter of policy.
    fn refused(body: &[u8], terms: &TdxTerms) -> Vec<String> {
        let report = TdReport::new(BodyKind::Td15Ex, body).expect("a TD's report");
        let mut rows = Rows::default();
        judge(&mut rows, Some(&report), terms);
        let failed = rows
            .into_checks()
            .into_iter()
            .filter(|check| check.status == Status::Fail);
        failed
            .map(|check| {
                assert_eq!(check.class, FailureClass::Policy);
                check.id
            })
            .collect()
    }

    fn strict(attributes: u64, xfam: u64) -> Vec<String> {
        refused(&body(attributes, xfam, None), &TdxTerms::default())
    }

    /// A policy that states exactly what the TD has.
    fn stated(attributes: u64, xfam: u64) -> Vec<String> {
        let terms = TdxTerms {
            attributes: Some(attributes),
            xfam: Some(xfam),
            ..TdxTerms::default()
        };
        refused(&body(attributes, xfam, None), &terms)
    }

    #[test]
    fn an_ordinary_td_is_accepted() {
        assert_eq!(strict(ORDINARY, XFAM), [""; 0]);
        assert_eq!(stated(ORDINARY, XFAM), [""; 0]);
    }

    #[test]
    fn a_debug_td_is_refused_whatever_a_policy_states() {
        assert_eq!(strict(ORDINARY | 1, XFAM), ["td.debug"]);
        assert_eq!(stated(ORDINARY | 1, XFAM), ["td.debug"]);
    }

    #[test]
    fn a_profiled_td_is_refused_whatever_a_policy_states() {
        for bit in 4..=6 {
            assert_eq!(strict(ORDINARY | 1 << bit, XFAM), ["td.profiling"], "bit {bit}");
            assert_eq!(stated(ORDINARY | 1 << bit, XFAM), ["td.profiling"], "bit {bit}");
        }
    }

    #[test]
    fn a_migratable_td_is_refused_whatever_a_policy_states() {
        assert_eq!(strict(ORDINARY | 1 << 29, XFAM), ["td.migratable"]);
        assert_eq!(stated(ORDINARY | 1 << 29, XFAM), ["td.migratable"]);
    }

    #[test]
    fn unknown_attribute_bits_are_refused_whatever_a_policy_states() {
        let unknown = [1, 2, 3].into_iter().chain(7..=15).chain(18..=26).chain(32..=61);
        for bit in unknown {
            assert_eq!(
                strict(ORDINARY | 1 << bit, XFAM),
                ["td.unknown-attributes"],
                "bit {bit}"
            );
            assert_eq!(
                stated(ORDINARY | 1 << bit, XFAM),
                ["td.unknown-attributes"],
                "bit {bit}"
            );
        }
    }

    #[test]
    fn a_td_without_sept_ve_disable_is_refused_whatever_a_policy_states() {
        assert_eq!(strict(0, XFAM), ["td.sept-ve-disable"]);
        assert_eq!(stated(0, XFAM), ["td.sept-ve-disable"]);
    }

    #[test]
    fn perfmon_key_locker_and_the_like_are_refused_unless_a_policy_states_them() {
        for (bit, name) in bits::STATED {
            assert_eq!(strict(ORDINARY | bit, XFAM), ["td.attributes"], "{name}");
            assert_eq!(stated(ORDINARY | bit, XFAM), [""; 0], "{name}");
        }
        let terms = TdxTerms {
            attributes: Some(ORDINARY | 1 << 63),
            ..TdxTerms::default()
        };
        assert_eq!(refused(&body(ORDINARY, XFAM, None), &terms), ["td.attributes"]);
    }

    #[test]
    fn unexpected_xfam_bits_are_refused_unless_a_policy_states_them() {
        for bit in 0..64 {
            let other = XFAM ^ 1 << bit;
            let usual = bits::XFAM_ACCEPTED & 1 << bit != 0 && bit > 1;
            assert_eq!(strict(ORDINARY, other).is_empty(), usual, "bit {bit}");
            assert_eq!(stated(ORDINARY, other), [""; 0], "bit {bit}");
        }
        let terms = TdxTerms {
            xfam: Some(XFAM | 1 << 8),
            ..TdxTerms::default()
        };
        assert_eq!(refused(&body(ORDINARY, XFAM, None), &terms), ["td.xfam"]);
    }

    #[test]
    fn service_tds_are_refused_in_every_field_that_shows_them() {
        let terms = TdxTerms::default();
        assert_eq!(strict(ORDINARY | 1 << 17, XFAM), ["td.service-td-ext"]);
        // MRSERVICETD, then hash and attributes at the beginning and now: first and last byte of each.
        for offset in [600, 647, 729, 776, 777, 784, 829, 876, 877, 884] {
            let bound = body(ORDINARY, XFAM, Some(offset));
            assert_eq!(refused(&bound, &terms), ["td.service-td"], "byte {offset}");
        }
    }

    #[test]
    fn a_virtual_machine_inside_a_td_is_refused() {
        let inside = body(ORDINARY, XFAM, Some(648));
        assert_eq!(refused(&inside, &TdxTerms::default()), ["td.partition"]);
    }

    #[test]
    fn what_is_never_accepted_agrees_with_the_rows() {
        for attributes in (0..64).map(|bit| ORDINARY ^ 1 << bit) {
            let bytes = body(attributes, XFAM, None);
            let report = TdReport::new(BodyKind::Td15Ex, &bytes).expect("a TD's report");
            assert_eq!(
                never_accepted(&report).is_empty(),
                stated(attributes, XFAM).is_empty()
            );
        }
    }
}
