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
