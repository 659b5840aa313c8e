//! A verification for people: one row for each register, attribute and event.

use std::fmt::Write as _;

use cocoon_verify::{Check, Fault, Refusal, Report, Verdict};

use crate::{Verification, plain};

/// Longer values are cut in the middle; those of a failed row are also shown whole.
const VALUE_CHARS: usize = 25;
/// Of a failed row's values.
const WHOLE_CHARS_MAX: usize = 2000;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Whether to colour verdicts.
    pub colour: bool,
}

/// The table and, as its last line, the verdict. `accepted` is whether there is a session.
pub fn render(verification: &Verification, accepted: bool, style: Style) -> String {
    let mut text = String::new();
    let certificate: Vec<_> = verification.certificate.checks.iter().collect();
    section(&mut text, "evidence in the certificate", &certificate, style);
    if let Some(fresh) = &verification.fresh {
        // Most rows are word for word those above; what is shown once more is what this connection adds.
        let (same, new): (Vec<_>, Vec<_>) =
            fresh.checks.iter().partition(|check| certificate.contains(check));
        let title = format!(
            "fresh evidence for this connection ({} checks are as above)",
            same.len()
        );
        section(&mut text, &title, &new, style);
    }
    line(&mut text, &policy_line(&verification.certificate));
    text.push_str(&verdict_line(verification, accepted, style));
    text
}

fn policy_line(report: &Report) -> String {
    let signer = match &report.policy_signer {
        Some(key) => format!("signed by {key}"),
        None => "not signed: taken as your own file".to_owned(),
    };
    format!("policy number {}, {signer}", report.policy_number)
}

/// What a refusal means: the failed checks, whose fault each is and what that usually means.
pub fn refusal_lines(refusal: &Refusal) -> Vec<String> {
    let failed = refusal
        .checks
        .iter()
        .filter(|check| check.verdict != Verdict::Skip);
    failed
        .map(|check| {
            format!(
                "{}: look at: {} ({})",
                check.name,
                check.fault,
                meaning(check.fault)
            )
        })
        .collect()
}

fn meaning(fault: Fault) -> &'static str {
    match fault {
        Fault::GuestImage => "another image, kernel, command line, firmware or launch document was booted",
        Fault::Host => "the provider's launcher or machine is not configured as the policy says",
        Fault::Platform => "the processor, its firmware or the quoting enclave is not accepted",
        Fault::Policy => "your policy: expired, or for another node",
        Fault::Network => {
            "somebody between you and the guest, or evidence that was made for another connection"
        }
    }
}

fn section(text: &mut String, title: &str, checks: &[&Check], style: Style) {
    line(text, &format!("{title}:"));
    line(text, &row("CHECK", "EXPECTED", "ACTUAL", "VERDICT"));
    for check in checks {
        let verdict = paint(check.verdict, style);
        line(
            text,
            &row(
                &check.name,
                &short(&check.expected),
                &short(&check.actual),
                &verdict,
            ),
        );
        if check.verdict == Verdict::Fail {
            whole(text, check);
        }
    }
    line(text, "");
}

fn whole(text: &mut String, check: &Check) {
    let one_line = |value: &str| plain(value, WHOLE_CHARS_MAX).replace('\n', " ");
    line(text, &format!("    expected {}", one_line(&check.expected)));
    line(text, &format!("    actual   {}", one_line(&check.actual)));
    line(
        text,
        &format!("    look at  {}: {}", check.fault, meaning(check.fault)),
    );
}

fn row(name: &str, expected: &str, actual: &str, verdict: &str) -> String {
    format!("  {name:<24} {expected:<VALUE_CHARS$} {actual:<VALUE_CHARS$} {verdict}")
}

fn line(text: &mut String, content: &str) {
    writeln!(text, "{}", content.trim_end()).expect("writing into memory cannot fail");
}

/// Values come from the network: one line, no control characters, at most [`VALUE_CHARS`].
fn short(value: &str) -> String {
    let value = plain(value, WHOLE_CHARS_MAX).replace(['\n', '\t'], " ");
    let count = value.chars().count();
    if count <= VALUE_CHARS {
        return value;
    }
    let kept = (VALUE_CHARS - 1) / 2;
    let head: String = value.chars().take(kept).collect();
    let tail: String = value.chars().skip(count - kept).collect();
    format!("{head}…{tail}")
}

fn paint(verdict: Verdict, style: Style) -> String {
    let colour = match verdict {
        Verdict::Pass => "32",
        Verdict::Simulated | Verdict::Skip => "33",
        Verdict::Fail => "31",
    };
    coloured(verdict.name(), colour, style)
}

fn coloured(text: &str, colour: &str, style: Style) -> String {
    if style.colour {
        format!("\u{1b}[{colour}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

fn verdict_line(verification: &Verification, accepted: bool, style: Style) -> String {
    let simulated = verification.certificate.simulated;
    let (text, colour) = match (accepted, simulated) {
        (true, false) => (
            "VERDICT: PASS. The guest meets the policy on this connection.",
            "32",
        ),
        (true, true) => (
            "VERDICT: SIMULATED. The guest meets the policy, but the platform is simulated: whoever runs the host \
             can read everything. Send nothing private.",
            "33",
        ),
        (false, false) => ("VERDICT: FAIL. The guest is refused; no prompt was sent.", "31"),
        (false, true) => (
            "VERDICT: FAIL (SIMULATED platform). The guest is refused; no prompt was sent.",
            "31",
        ),
    };
    format!("{}\n", coloured(text, colour, style))
}

#[cfg(test)]
mod tests {
    use cocoon_verify::RefusalClass;

    use super::*;

    fn verification(simulated: bool, verdict: Verdict) -> Verification {
        let check = |name, verdict| Check {
            name: std::borrow::Cow::Borrowed(name),
            expected: "ab".repeat(48),
            actual: "cd\u{1b}[2J\n".repeat(16),
            verdict,
            fault: Fault::GuestImage,
            class: RefusalClass::Policy,
        };
        let report = Report {
            simulated,
            policy_number: 7,
            policy_signer: None,
            checks: vec![check("MRTD", Verdict::Simulated), check("RTMR2", verdict)],
        };
        Verification {
            certificate: report.clone(),
            fresh: Some(report),
        }
    }

    #[test]
    fn a_simulated_platform_is_said_out_loud() {
        let text = render(
            &verification(true, Verdict::Simulated),
            true,
            Style { colour: false },
        );
        let verdict = text.lines().last().unwrap();
        assert!(verdict.starts_with("VERDICT: SIMULATED"), "{verdict}");
        let real = render(&verification(false, Verdict::Pass), true, Style { colour: false });
        assert!(real.lines().last().unwrap().starts_with("VERDICT: PASS"));
    }

    #[test]
    fn a_failed_row_names_register_and_both_values_in_full() {
        let text = render(&verification(true, Verdict::Fail), false, Style { colour: false });
        assert!(
            text.lines()
                .any(|line| line.contains("RTMR2") && line.ends_with("FAIL")),
            "{text}"
        );
        assert!(text.contains(&"ab".repeat(48)));
        assert!(text.contains("guest-image"));
        assert!(text.lines().last().unwrap().starts_with("VERDICT: FAIL"));
    }

    #[test]
    fn a_row_that_fails_only_in_fresh_evidence_is_shown() {
        let mut both = verification(true, Verdict::Simulated);
        let fresh = both.fresh.as_mut().unwrap();
        fresh.checks[1].verdict = Verdict::Fail;
        let text = render(&both, false, Style { colour: false });
        let rows: Vec<_> = text.lines().filter(|line| line.contains("RTMR2")).collect();
        assert_eq!(rows.len(), 2, "{text}");
        assert!(rows[1].ends_with("FAIL"));
        assert_eq!(text.matches("MRTD").count(), 1, "{text}");
    }

    #[test]
    fn evidence_cannot_write_escape_sequences_to_the_terminal() {
        let text = render(&verification(true, Verdict::Fail), false, Style { colour: false });
        assert!(!text.contains('\u{1b}'));
        let coloured = render(&verification(true, Verdict::Fail), false, Style { colour: true });
        assert!(!coloured.contains("\u{1b}[2J"));
    }
}
