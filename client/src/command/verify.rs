//! `cocoon verify`, and the part of `cocoon chat` that comes first.

use std::io::{self, IsTerminal as _};

use cocoon::{ConnectError, Deadlines, Exit, Session, Style, Verification};
use cocoon_verify::Policy;
use serde_json::{Value, json};

use super::Failure;
use crate::cli::{Target, VerifyArgs};

pub(super) async fn run(args: &VerifyArgs) -> Result<(), Failure> {
    let policy = super::load_policy(&args.target.terms)?;
    match connect(&args.target, &policy).await {
        Ok(session) => {
            let verification = session.verification();
            if args.json {
                super::print_json(&as_json(verification, None));
            } else {
                print_table(&mut io::stdout(), io::stdout().is_terminal(), verification, true);
            }
            Ok(())
        }
        Err(error) => {
            let verification = judged(&error);
            if let Some(verification) = verification {
                if args.json {
                    super::print_json(&as_json(verification, Some(&error)));
                } else {
                    print_table(&mut io::stdout(), io::stdout().is_terminal(), verification, false);
                }
            }
            explain(&error);
            Err(Failure::of(error))
        }
    }
}

/// Connects and verifies with this machine's clock.
pub(super) async fn connect(target: &Target, policy: &Policy) -> Result<Session, ConnectError> {
    let floors = super::floors(&target.terms);
    cocoon::connect(
        &target.url,
        policy,
        floors,
        cocoon::now_s(),
        &Deadlines::default(),
    )
    .await
}

/// What was judged before the error.
pub(super) fn judged(error: &ConnectError) -> Option<&Verification> {
    match error {
        ConnectError::Refused { verification, .. } | ConnectError::AnotherGuest { verification } => {
            Some(verification)
        }
        _ => None,
    }
}

/// Whose fault each failed check is, for people.
pub(super) fn explain(error: &ConnectError) {
    if let ConnectError::Refused { refusal, .. } = error {
        for line in cocoon::refusal_lines(refusal) {
            eprintln!("{line}");
        }
    }
}

pub(super) fn print_table(
    out: &mut impl io::Write,
    terminal: bool,
    verification: &Verification,
    accepted: bool,
) {
    let style = Style {
        colour: terminal && !crate::no_colour(),
    };
    // A closed pipe is the reader's choice; the exit code still tells.
    let _ = out.write_all(cocoon::render(verification, accepted, style).as_bytes());
    let _ = out.flush();
}

pub(super) fn as_json(verification: &Verification, error: Option<&ConnectError>) -> Value {
    let mut report = cocoon::verdict_json(verification, error.map(Exit::from));
    report["error"] = json!(error.map(|error| cocoon::plain(&error.to_string(), 4000)));
    report
}
