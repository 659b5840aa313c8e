//! `cocoon verify`, and the part of `cocoon chat` that comes first.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    sync::Arc,
};

use anyhow::anyhow;
use cocoon::{ConnectError, Deadlines, Endpoint, Exit, Proof, Record, Session, Style, Verification};
use cocoon_verify::Policy;
use serde_json::{Value, json};

use super::Failure;
use crate::cli::{Target, Terms, VerifyArgs};

pub(super) async fn run(args: &VerifyArgs) -> Result<(), Failure> {
    let policy = super::load_policy(&args.terms)?;
    let judged = match (&args.url, &args.offline) {
        (_, Some(folder)) => offline(&args.terms, &policy, folder)?,
        (Some(url), None) => online(args, url, &policy).await?,
        (None, None) => return Err(Failure::usage(anyhow!("neither a URL nor --offline is given"))),
    };
    match judged {
        Ok(proof) => {
            show(args, proof.verification(), None);
            Ok(())
        }
        Err(error) => {
            if let Some(verification) = self::judged(&error) {
                show(args, verification, Some(&error));
            }
            explain(&error);
            Err(Failure::of(error))
        }
    }
}

fn show(args: &VerifyArgs, verification: &Verification, error: Option<&ConnectError>) {
    if args.json {
        super::print_json(&as_json(verification, error));
        return;
    }
    let mut out = io::stdout();
    if args.explain {
        // A closed pipe is the reader's choice; the exit code still tells.
        let _ = writeln!(out, "{}", cocoon::explain(verification));
    }
    print_table(
        &mut out,
        io::stdout().is_terminal(),
        verification,
        error.is_none(),
    );
}

type Judged = Result<Arc<Proof>, ConnectError>;

/// Floors that are remembered are newer than a record may be: only those of the command line count.
fn offline(terms: &Terms, policy: &Policy, folder: &Path) -> Result<Judged, Failure> {
    let record = Record::load(folder).map_err(Failure::usage)?;
    eprintln!(
        "judging what {} showed; it was not asked again",
        cocoon::plain(record.node(), 300)
    );
    Ok(record.judge(policy, super::asked_floors(terms)).map(Arc::new))
}

async fn online(args: &VerifyArgs, url: &Endpoint, policy: &Policy) -> Result<Judged, Failure> {
    let floors = super::floors(&args.terms, policy)?;
    let deadlines = Deadlines::default();
    let (record, session) = cocoon::connect_recorded(url, policy, floors, cocoon::now_s(), &deadlines).await;
    if let (Some(folder), Some(record)) = (&args.save, &record) {
        record.save(folder).map_err(Failure::usage)?;
    }
    if let Ok(session) = &session {
        super::accept(&args.terms, policy, session.guest())?;
    }
    Ok(session.map(|session| Arc::clone(session.proof())))
}

/// Connects and verifies with this machine's clock.
pub(super) async fn connect(
    target: &Target,
    policy: &Policy,
) -> Result<Result<Session, ConnectError>, Failure> {
    let floors = super::floors(&target.terms, policy)?;
    let now_s = cocoon::now_s();
    let session = cocoon::connect(&target.url, policy, floors, now_s, &Deadlines::default()).await;
    if let Ok(session) = &session {
        super::accept(&target.terms, policy, session.guest())?;
    }
    Ok(session)
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
