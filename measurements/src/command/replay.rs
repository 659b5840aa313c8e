//! `replay`: an event log in, every register after every event out, compared with a quote.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use cocoon_evidence::EvidenceBundle;
use cocoon_measurements::{
    eventlog::{BodyCheck, EventLog, LOG_BYTES_MAX, LogKind, LoggedRegister},
    fields::Fields,
    replay::{self, Compared},
};
use serde_json::json;

use super::{
    Exit,
    input::{read_bounded, read_evidence},
    output::{Table, Tone, print_json, print_text, toned},
};

#[derive(clap::Args)]
pub(crate) struct Replay {
    /// A CCEL (/sys/firmware/acpi/tables/data/CCEL), a TPM's log (binary_bios_measurements), dstack's log in
    /// JSON, or an evidence bundle of the agent.
    #[arg(value_name = "LOG")]
    log: PathBuf,
    /// A TDX quote or TD report of the same boot, raw or hexadecimal; ends with 10 unless all registers agree.
    #[arg(long, value_name = "FILE")]
    quote: Option<PathBuf>,
    /// Whose log it is, if the guess is wrong.
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// An evidence bundle of the agent; its events are added to RTMR3.
    #[arg(long, value_name = "FILE")]
    agent_log: Option<PathBuf>,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Tdx,
    Tpm,
}

pub(crate) fn run(arguments: &Replay) -> Result<Exit> {
    let log = read_bounded(&arguments.log, LOG_BYTES_MAX)?;
    let quote = arguments.quote.as_deref().map(read_evidence).transpose()?;
    let agent_log = match &arguments.agent_log {
        Some(path) => Some(EvidenceBundle::decode(&read_bounded(path, LOG_BYTES_MAX)?)?),
        None => None,
    };
    match replayed(arguments, &log, quote.as_deref(), agent_log.as_ref()) {
        // What cannot be parsed agrees with nothing.
        Err(error) if quote.is_some() => {
            eprintln!("error: {error:#}");
            Ok(Exit::Differs)
        }
        outcome => {
            let (replay, compared) = outcome?;
            print(&replay, compared.as_deref(), arguments.json)?;
            let agrees = compared.is_none_or(|rows| rows.iter().all(Compared::agrees));
            Ok(if agrees { Exit::Done } else { Exit::Differs })
        }
    }
}

fn replayed(
    arguments: &Replay,
    log: &[u8],
    quote: Option<&[u8]>,
    agent_log: Option<&EvidenceBundle>,
) -> Result<(replay::Replay, Option<Vec<Compared>>)> {
    let kind = arguments.kind.map(|kind| match kind {
        Kind::Tdx => LogKind::Tdx,
        Kind::Tpm => LogKind::Tpm,
    });
    let mut log = match EvidenceBundle::decode(log) {
        Ok(bundle) => EventLog::from(&bundle.events),
        Err(_) => EventLog::parse(log, kind)?,
    };
    if let Some(bundle) = agent_log {
        log.events.extend(EventLog::from(&bundle.events).events);
    }
    let replay = replay::Replay::of(log);
    let Some(quote) = quote else {
        return Ok((replay, None));
    };
    let claimed = Fields::parse(quote)?
        .registers()
        .context("the evidence has no TDX registers")?;
    let compared = replay
        .compare(&claimed.rtmrs)
        .context("the log is a TPM's: no quote of a TD fits it")?;
    Ok((replay, Some(compared)))
}

fn print(replay: &replay::Replay, compared: Option<&[Compared]>, json: bool) -> Result<()> {
    if !json {
        return print_text(&text(replay, compared)?);
    }
    let mut document = replay.to_json();
    if let Some(rows) = compared {
        let row = |row: &Compared| {
            json!({
                "register": row.register,
                "replayed": row.replayed,
                "quoted": row.quoted,
                "agrees": row.agrees(),
                "hint": row.hint(),
            })
        };
        document["quote"] = json!({
            "agrees": rows.iter().all(Compared::agrees),
            "registers": rows.iter().map(row).collect::<Vec<_>>(),
        });
    }
    print_json(&document)
}

fn text(replay: &replay::Replay, compared: Option<&[Compared]>) -> Result<String> {
    let mut out = String::new();
    events(&mut out, replay)?;
    writeln!(out, "\nRegisters after the last event")?;
    let mut table = Table::default();
    for (name, value) in replay.registers() {
        table.row([&name.to_string(), &hex::encode(value)]);
    }
    out += &table.text("  ");
    if let Some(offset) = replay.log.trailing_offset {
        writeln!(
            out,
            "\nAt offset {offset} other bytes follow the end of the log; nothing covers them."
        )?;
    }
    if let Some(rows) = compared {
        compare(&mut out, rows)?;
    }
    Ok(out)
}

fn events(out: &mut String, replay: &replay::Replay) -> std::fmt::Result {
    let rows = replay.log.events.iter().zip(&replay.values).enumerate();
    for (index, (event, value)) in rows {
        let check = event.check_body();
        let (tone, word) = match check {
            BodyCheck::Match => (Tone::Good, "body matches".to_owned()),
            BodyCheck::MatchPart(part) => (Tone::Good, format!("{part} matches")),
            BodyCheck::Mismatch => (Tone::Bad, "BODY IS NOT WHAT WAS MEASURED".to_owned()),
            BodyCheck::Unverified => (Tone::Dim, "body unverified".to_owned()),
        };
        let register = event.register.to_string();
        writeln!(
            out,
            "{index:>4}  {register:<6} {}  [{}]",
            event.event_type,
            toned(tone, &word)
        )?;
        let description = event.describe();
        if !description.is_empty() {
            writeln!(out, "        {description}")?;
        }
        for digest in &event.digests {
            writeln!(out, "      + {digest}  {}", digest.algorithm)?;
        }
        if let Some(value) = value {
            writeln!(out, "      = {}", hex::encode(value))?;
        }
    }
    Ok(())
}

fn compare(out: &mut String, rows: &[Compared]) -> std::fmt::Result {
    writeln!(out, "\nAgainst the quote")?;
    let mut table = Table::default();
    for row in rows {
        let name = LoggedRegister::Rtmr(row.register).to_string();
        let quoted = row.quoted.to_string();
        let (tone, word) = if row.agrees() {
            (Tone::Good, "agrees")
        } else {
            (Tone::Bad, "DIFFERS")
        };
        table.toned_row([(Tone::Plain, &name), (tone, word), (Tone::Plain, &quoted)]);
        if !row.agrees() {
            table.row(["", "", row.hint()]);
        }
    }
    *out += &table.text("  ");
    Ok(())
}
