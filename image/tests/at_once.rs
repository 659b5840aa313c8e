//! In a program of its own: after the failure it starts nothing more.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use cocoon_image::{
    command::{self, CommandError},
    interrupt,
};

#[test]
fn a_failure_ends_what_runs_beside_it_and_is_the_one_that_is_told() {
    let begin = Instant::now();
    let both = interrupt::at_once(
        || {
            thread::sleep(Duration::from_millis(300));
            command::run(&mut Command::new("false"), None)
        },
        || {
            // The shell's child is killed, too: it holds the pipes that are read to their end.
            command::run(Command::new("sh").args(["-c", "sleep 600; true"]), None)?;
            command::run(&mut Command::new("true"), None)
        },
    );
    let Err(CommandError::Failed { line, .. }) = both else {
        panic!("{both:?}");
    };
    assert_eq!(line, "false");
    assert!(begin.elapsed() < Duration::from_secs(60));
    let error = command::run(&mut Command::new("true"), None).unwrap_err();
    let CommandError::Start { source, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(source.to_string(), "stopped, because something else failed");
}
