//! A judgement for people.

use cocoon_verify::{
    GIVEN_ROOT,
    judgement::{Judgement, Status, Verdict},
};

use super::super::output::{Table, Tone, toned};

/// Longer values are cut in the middle; those of a failed row are also shown whole.
const VALUE_CHARS: usize = 40;

/// The rows, what is wrong, and as the last line the verdict.
pub(super) fn text(judgement: &Judgement, with_policy: bool) -> String {
    let mut table = Table::default();
    table.row(["STATUS", "CHECK", "EXPECTED", "ACTUAL"]);
    for check in judgement.checks() {
        table.toned_row([
            (tone(check.status), status(check.status)),
            (Tone::Plain, &check.id),
            (Tone::Plain, &short(&check.expected)),
            (Tone::Plain, &short(&check.actual)),
        ]);
    }
    let failed = judgement
        .checks()
        .iter()
        .filter(|check| check.status == Status::Fail);
    let reasons: String = failed
        .map(|check| {
            let (expected, actual, detail) = (&check.expected, &check.actual, &check.detail);
            let lines = [("expected", expected), ("actual", actual), ("why", detail)];
            let lines = lines.iter().filter(|(_, text)| !text.is_empty());
            let lines: String = lines
                .map(|(name, text)| format!("  {name:<8}  {}\n", printable(text)))
                .collect();
            format!("\n{}: {}\n{lines}", toned(Tone::Bad, "FAIL"), check.id)
        })
        .collect();
    format!(
        "{}{reasons}\n{}\n",
        table.text(""),
        verdict(judgement, with_policy)
    )
}

fn tone(status: Status) -> Tone {
    match status {
        Status::Pass => Tone::Good,
        Status::Fail => Tone::Bad,
        Status::Skip => Tone::Dim,
    }
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Pass => "PASS",
        Status::Fail => "FAIL",
        Status::Skip => "SKIP",
    }
}

fn verdict(judgement: &Judgement, with_policy: bool) -> String {
    let simulated = judgement.claims().get("simulated") == Some(&true.into());
    let given = judgement.checks().iter().any(|check| check.id == GIVEN_ROOT);
    let root = match (simulated, given) {
        (true, _) => " SIMULATED platform: whoever runs the host could have made it up.",
        (false, true) => " The root is the given one, NOT the vendor's.",
        (false, false) => "",
    };
    let skipped = judgement
        .checks()
        .iter()
        .filter(|check| check.status == Status::Skip);
    let skipped: Vec<_> = skipped.map(|check| check.id.as_str()).collect();
    let (tone, word, text) = match (judgement.verdict(), with_policy, skipped.is_empty()) {
        (Verdict::Fail, ..) => (Tone::Bad, "FAIL", "the evidence is refused".to_owned()),
        (Verdict::Pass, false, _) => (
            Tone::Good,
            "PASS",
            "platform genuine; registers NOT compared: no policy".to_owned(),
        ),
        (Verdict::Pass, true, true) => (
            Tone::Good,
            "PASS",
            "platform genuine, and the evidence meets the policy".to_owned(),
        ),
        (Verdict::Pass, true, false) => (
            Tone::Good,
            "PASS",
            format!(
                "platform genuine; the evidence meets the policy, but NOT compared: {}",
                skipped.join(", ")
            ),
        ),
    };
    format!("VERDICT: {}: {text}.{root}", toned(tone, word))
}

fn short(value: &str) -> String {
    let value = printable(value);
    let count = value.chars().count();
    if count <= VALUE_CHARS {
        return value;
    }
    let kept = (VALUE_CHARS - 1) / 2;
    let head: String = value.chars().take(kept).collect();
    let tail: String = value.chars().skip(count - kept).collect();
    format!("{head}…{tail}")
}

/// Values come from an enemy: no control characters reach the terminal.
fn printable(value: &str) -> String {
    let visible = |character: char| if character.is_control() { ' ' } else { character };
    value.chars().map(visible).collect()
}
