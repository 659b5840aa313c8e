//! The soak, short: the program is the same, so what it says of ten minutes it must be able to say of ten seconds.

use std::process::Command;

/// More connections than there are places, most of them idle; clients leave in the middle of answers.
#[test]
fn a_crowd_with_disconnects_and_idle_connections_is_served_and_leaves_nothing_behind() {
    let done = Command::new(env!("CARGO_BIN_EXE_cocoon-soak"))
        .args(["--streams", "100", "--idle", "1300", "--seconds", "10"])
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&done.stdout);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}{errors}");
    assert!(said.ends_with("everything held\n"), "{said}");
    let ended = said
        .lines()
        .find(|line| line.starts_with("idle connections that"));
    assert!(
        ended.is_some_and(|line| !line.ends_with(" 0")),
        "no idle connection had to go: {said}"
    );
}

/// Every token of every row came, and padding was sent with them.
#[test]
fn what_shaping_costs_is_measured_over_whole_streams() {
    let done = Command::new(env!("CARGO_BIN_EXE_cocoon-soak"))
        .args(["--shaping", "--seconds", "1"])
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&done.stdout);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}{errors}");
    let rows: Vec<_> = said.lines().skip(1).collect();
    assert_eq!(rows.len(), 5, "{said}");
    for row in &rows[..4] {
        let factor = row
            .split_whitespace()
            .next_back()
            .and_then(|word| word.parse::<f64>().ok());
        assert!(factor.is_some_and(|factor| factor > 1.0), "{row}");
    }
}
