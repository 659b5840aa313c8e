//! A verification for people: one row for each register, attribute and event.

use std::fmt::Write as _;

use cocoon_verify::{Check, Fault, Refusal, Verdict, date_text};

use crate::{Facts, Verification, plain};

/// Longer values are cut in the middle; those of a failed row are also shown whole.
const VALUE_CHARS: usize = 25;
/// Of a failed row's values.
const WHOLE_CHARS_MAX: usize = 2000;
/// Of an event's payload; a launch document is shorter.
const PAYLOAD_CHARS_MAX: usize = 4000;

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
    facts(&mut text, &verification.facts);
    line(&mut text, &policy_line(verification));
    text.push_str(&verdict_line(verification, accepted, style));
    text
}

fn policy_line(verification: &Verification) -> String {
    let report = &verification.certificate;
    let signer = match &report.policy_signer {
        Some(key) => format!("signed by {key}"),
        None => "not signed: taken as your own file".to_owned(),
    };
    let expires = date_text(verification.facts.policy_expires_s);
    format!(
        "policy number {}, expires {expires}, {signer}",
        report.policy_number
    )
}

/// What the evidence says beside the rows.
fn facts(text: &mut String, facts: &Facts) {
    line(text, "RTMR3, event by event:");
    for (index, event) in facts.events.iter().enumerate() {
        line(
            text,
            &format!("  {} {}: {} bytes", index + 1, event.name, event.bytes),
        );
        if event.bytes > 0 {
            let payload = plain(&event.payload, PAYLOAD_CHARS_MAX);
            line(
                text,
                &format!("    payload  {}", payload.replace('\n', "\n             ")),
            );
        }
        line(text, &format!("    digest   {}", event.digest));
        line(text, &format!("    RTMR3    {}", event.register));
    }
    line(text, "");
    let date = |seconds: i64| date_text(u64::try_from(seconds).unwrap_or_default());
    let platform = facts.platform.as_deref().unwrap_or("not proven");
    for (name, value) in [
        ("platform", plain(platform, WHOLE_CHARS_MAX)),
        ("GPUs", facts.gpus.to_string()),
        ("certificate", format!("SHA-256 {}", facts.certificate_sha256)),
        (
            "",
            format!(
                "valid from {} to {}",
                date(facts.not_before_s),
                date(facts.not_after_s)
            ),
        ),
        ("judged as of", date_text(facts.judged_s)),
    ] {
        line(text, &format!("{name:<13} {value}"));
    }
}

/// What each row of the verification is about, for somebody who has never seen one.
pub fn explain(verification: &Verification) -> String {
    let mut text = String::new();
    let fresh = verification.fresh.iter().flat_map(|report| &report.checks);
    let mut told = std::collections::BTreeSet::new();
    line(&mut text, "what the rows mean:");
    for check in verification.certificate.checks.iter().chain(fresh) {
        if told.insert(check.name.as_ref()) {
            line(&mut text, &format!("  {}: {}", check.name, about(&check.name)));
        }
    }
    text
}

/// What a row is about, for somebody who has never seen one.
pub(crate) fn about(name: &str) -> &'static str {
    match name {
        "policy number" => "policies are numbered; one that is older than what you saw before is refused",
        "policy expiry" => {
            "a policy has to be renewed, so that what turned out to be unsafe is not accepted for ever"
        }
        "quote format" => {
            "the quote is the processor's signed statement of what was loaded; every byte has a meaning"
        }
        "endorsements" | "collateral" => {
            "what the processor's vendor publishes about its platforms; the host only carries it"
        }
        "quote signature" => {
            "the chain of certificates from the vendor's root to the key that signed the quote"
        }
        "endorsement freshness" => "certificates, revocation lists and security levels are valid now",
        "TCB status" => {
            "whether firmware and microcode have known holes, and which advisories tell about them"
        }
        "TCB evaluation number" => {
            "which edition of the vendor's list of holes was used; an older one is refused"
        }
        "report data" => {
            "binds the quote to this TLS key, or to this connection and your random number: nobody else can show it"
        }
        "TD attributes" => {
            "switches of the virtual machine: debugging, with which the host could read it, is off"
        }
        "XFAM" => "which processor features the guest may use",
        "MRTD" => "the firmware that was loaded",
        "RTMR0" => "the virtual hardware: memory, devices, ACPI tables",
        "RTMR1" => "the kernel that the firmware started",
        "RTMR2" => "the kernel's command line, which holds the root hash of the file system",
        "RTMR3" => "what the agent recorded, replayed from the events below",
        "MRCONFIGID" | "MROWNER" | "MROWNERCONFIG" => {
            "values that the host may set; here they have no meaning"
        }
        "HOST_DATA" => "the launch document's hash, set before the guest ran",
        "machine" => "which single machine it is: the policy names those that it takes, or does not take",
        "event order" => "each event was recorded exactly once",
        "event model" => "the root hash of the model's volume: each block is checked when it is read",
        "event usage-key" => "the key that signs receipts, made in this boot",
        "event gpu-evidence" => "what the GPUs say about themselves, measured before they were used",
        "event ready" => "the end: nothing is recorded after it",
        name if name.starts_with("event launch-document") => {
            "model, prices, limits and where to pay, as the host handed them over"
        }
        name if name.starts_with("GPU ") => {
            "a GPU's own evidence, held against NVIDIA's roots and reference values"
        }
        name if name.starts_with("snp ") => "a part of the SEV-SNP report or of its chain of certificates",
        _ => "a value of the evidence, held against your policy",
    }
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
    use cocoon_evidence::Digest32;
    use cocoon_verify::{RefusalClass, Report};

    use crate::EventFact;

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
            facts: Facts {
                certificate_sha256: Digest32::of(b"certificate"),
                not_before_s: 0,
                not_after_s: 1,
                judged_s: 1,
                policy_expires_s: 2,
                platform: None,
                gpus: 0,
                events: vec![EventFact {
                    name: "launch-document",
                    bytes: 9,
                    payload: "{\u{1b}[2J}".into(),
                    digest: "ee".repeat(48),
                    register: "ff".repeat(48),
                }],
            },
        }
    }

    #[test]
    fn each_event_is_shown_with_its_payload_and_the_register_after_it() {
        let text = render(
            &verification(true, Verdict::Simulated),
            true,
            Style { colour: false },
        );
        assert!(text.contains("1 launch-document: 9 bytes"), "{text}");
        assert!(text.contains(&"ff".repeat(48)), "{text}");
    }

    #[test]
    fn every_row_that_is_known_has_an_explanation_of_its_own() {
        let verification = verification(true, Verdict::Simulated);
        let text = explain(&verification);
        assert!(text.contains("RTMR2: the kernel's command line"), "{text}");
        assert_eq!(text.matches("MRTD").count(), 1);
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
