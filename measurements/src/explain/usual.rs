//! What usually makes a register differ, when nothing more is known.

use super::{
    Cause, Certainty, Observed, Subject,
    seen::{ACPI, COMMAND_LINE, FIRMWARE, KERNEL, SECURE_BOOT},
};

/// Causes for registers that no variation and no event explains, in the order of how often they are it.
pub(super) fn causes(observed: &Observed, open: &[Subject], differing: &[Subject]) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut add = |(id, title, change): (&'static str, &str, &str), registers: Vec<Subject>| {
        let certainty = Certainty::Possible;
        causes.push(Cause {
            id,
            certainty,
            registers,
            title: title.to_owned(),
            change: change.to_owned(),
        });
    };
    if open.contains(&Subject::Mrtd) {
        // Other firmware has other variables and sections too, which RTMR0 holds.
        let both = [Subject::Mrtd, Subject::Rtmr0];
        add(
            FIRMWARE,
            both.into_iter()
                .filter(|subject| differing.contains(subject))
                .collect(),
        );
    }
    // A log has said more about the other registers already.
    if observed.logged.is_some() {
        return causes;
    }
    if open.contains(&Subject::Rtmr0) {
        add(ACPI, vec![Subject::Rtmr0]);
        add(SECURE_BOOT, vec![Subject::Rtmr0]);
    }
    if open.contains(&Subject::Rtmr1) {
        add(KERNEL, vec![Subject::Rtmr1]);
    }
    if open.contains(&Subject::Rtmr2) {
        add(COMMAND_LINE, vec![Subject::Rtmr2]);
        causes.push(Cause {
            certainty: Certainty::Possible,
            ..not_in_the_log(Subject::Rtmr2)
        });
    }
    causes
}

/// The quote has a value that the log does not lead to.
pub(super) fn not_in_the_log(subject: Subject) -> Cause {
    let (id, title, change) = match subject {
        Subject::Rtmr2 => (
            "ima",
            "the kernel's IMA extends RTMR2 after the firmware's log has ended",
            "boot without IMA measurements (no ima_policy= on the command line), or build the kernel without IMA",
        ),
        _ => (
            "log-incomplete",
            "the log does not lead to the quoted value: it is of another boot, cut off, or changed",
            "take log and quote from the same boot, without a restart between them",
        ),
    };
    Cause {
        id,
        certainty: Certainty::Seen,
        registers: vec![subject],
        title: title.to_owned(),
        change: change.to_owned(),
    }
}
