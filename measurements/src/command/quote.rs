//! `quote`: prints evidence field by field.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use cocoon_measurements::fields::Fields;

use super::{
    Exit,
    input::read_evidence,
    output::{Table, Tone, print_json, print_text},
};

#[derive(clap::Args)]
pub(crate) struct Quote {
    /// A TDX or SGX quote, a TD report, an SEV-SNP report or a GPU report, raw or hexadecimal.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Quote) -> Result<Exit> {
    let bytes = read_evidence(&arguments.file)?;
    let fields =
        Fields::parse(&bytes).with_context(|| format!("cannot read {}", arguments.file.display()))?;
    if arguments.json {
        print_json(&fields)?;
    } else {
        print_text(&text(&fields))?;
    }
    Ok(Exit::Done)
}

/// Longer values are cut; the JSON form has them whole.
const VALUE_CHARS_MAX: usize = 96;

fn text(fields: &Fields) -> String {
    let mut table = Table::default();
    for field in &fields.fields {
        let offset = field.offset.to_string();
        let mut value = field.value.clone();
        if value.len() > VALUE_CHARS_MAX {
            value.truncate(32);
            value += &format!("... ({} bytes)", field.value.len() / 2);
        }
        table.toned_row([
            (Tone::Dim, &offset),
            (Tone::Plain, &field.name),
            (Tone::Plain, &value),
            (Tone::Dim, &field.meaning),
        ]);
    }
    format!("{}, not verified\n\n{}", fields.format, table.text(""))
}
