//! `diff`: what differs between two documents or pieces of evidence.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use cocoon_measurements::{
    diff::{Diff, diff},
    eventlog::EventLog,
    fields::Fields,
    replay::Replay,
};
use serde_json::Value;

use super::{
    Exit,
    input::{read_bounded, unwrap_evidence},
    output::{Table, Tone, print_json, print_text, printable},
};

/// The JSON form of the longest event log.
const DOCUMENT_BYTES_MAX: usize = 64 * 1024 * 1024;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A JSON document of this program (prediction, replay, verdict, quote), evidence or an event log.
    #[arg(value_name = "A")]
    a: PathBuf,
    /// Another, best of the same kind; of different kinds registers and events are compared.
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Exit> {
    let diff = diff(&document(&arguments.a)?, &document(&arguments.b)?);
    if arguments.json {
        print_json(&diff)?;
    } else {
        print_text(&text(&diff))?;
    }
    Ok(if diff.same { Exit::Done } else { Exit::Differs })
}

fn document(path: &Path) -> Result<Value> {
    let bytes = read_bounded(path, DOCUMENT_BYTES_MAX)?;
    if let Ok(document @ Value::Object(_)) = serde_json::from_slice::<Value>(&bytes)
        && document.get("quote").is_none_or(|quote| !quote.is_string())
    {
        return Ok(document);
    }
    let evidence = unwrap_evidence(bytes.clone()).and_then(|evidence| Ok(Fields::parse(&evidence)?));
    match (evidence, EventLog::parse(&bytes, None)) {
        (Ok(fields), _) => serde_json::to_value(fields).context("cannot show the evidence as JSON"),
        (Err(_), Ok(log)) => Ok(Replay::of(log).to_json()),
        (Err(evidence), Err(log)) => {
            bail!(
                "{} is neither JSON nor evidence ({evidence:#}) nor an event log ({log})",
                path.display()
            )
        }
    }
}

fn text(diff: &Diff) -> String {
    if diff.same {
        return "no difference\n".to_owned();
    }
    let mut table = Table::default();
    for row in &diff.rows {
        let shown = |side: &Option<String>| {
            side.as_deref()
                .map_or_else(|| "(not there)".to_owned(), printable)
        };
        table.toned_row([
            (Tone::Plain, &printable(&row.path)),
            (Tone::Dim, "A"),
            (Tone::Plain, &shown(&row.a)),
        ]);
        table.toned_row([(Tone::Plain, ""), (Tone::Dim, "B"), (Tone::Plain, &shown(&row.b))]);
    }
    table.text("")
}
