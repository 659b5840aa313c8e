//! What goes to standard output and into files.

use std::{
    fs::File,
    io::{IsTerminal as _, Write},
    path::Path,
};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Context of an error that is about the result and not about the inputs.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the result")]
pub(crate) struct OutputFailed;

/// Prints one JSON document.
pub(crate) fn print_json(document: &impl Serialize) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut stdout, document)
        .map_err(std::io::Error::from)
        .and_then(|()| writeln!(stdout))
        .and_then(|()| stdout.flush())
        .context(OutputFailed)
}

/// Prints text.
pub(crate) fn print_text(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context(OutputFailed)
}

/// How a word in a table is to be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Holds.
    Good,
    /// Does not hold.
    Bad,
    /// Not judged, or of less interest.
    Dim,
    /// Everything else.
    Plain,
}

/// Colours `text` if standard output is a terminal and `NO_COLOR` (no-color.org) is not set.
pub(crate) fn toned(tone: Tone, text: &str) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Bad => "1;31",
        Tone::Dim => "2",
        Tone::Plain => return text.to_owned(),
    };
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
        && std::io::stdout().is_terminal();
    if wanted {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// Escapes what could move the cursor or reorder text, and cuts what no screen shows; for text from files.
pub(crate) fn printable(text: &str) -> String {
    const CHARS_MAX: usize = 400;
    let mut shown = String::new();
    for char in text.chars().take(CHARS_MAX) {
        match char {
            ' '..='~' => shown.push(char),
            other => shown.extend(other.escape_default()),
        }
    }
    if text.chars().nth(CHARS_MAX).is_some() {
        shown += "...";
    }
    shown
}

/// Cells in columns, two spaces between them; a cell may have a tone.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Vec<(Tone, String)>>,
}

impl Table {
    /// Adds a row of plain cells.
    pub(crate) fn row<const N: usize>(&mut self, cells: [&str; N]) {
        self.toned_row(cells.map(|cell| (Tone::Plain, cell)));
    }

    /// Adds a row.
    pub(crate) fn toned_row<const N: usize>(&mut self, cells: [(Tone, &str); N]) {
        self.rows
            .push(cells.map(|(tone, cell)| (tone, cell.to_owned())).into());
    }

    /// The rows, aligned, each with `indent` before it.
    pub(crate) fn text(&self, indent: &str) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|(_, cell)| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = indent.to_owned();
            for (column, (tone, cell)) in row.iter().enumerate() {
                line += &toned(*tone, cell);
                if column + 1 < row.len() {
                    line += &" ".repeat(widths[column] - cell.chars().count() + 2);
                }
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// Writes beside the file, then renames: a reader sees the old content or the new one.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, bytes).context(OutputFailed)
}

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let attempt = || format!("cannot write {}", path.display());
    let mut name = path.file_name().with_context(attempt)?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    let written = File::create_new(&beside)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        // Nothing to add if this fails too: the first error says why.
        let _ = std::fs::remove_file(&beside);
    }
    written.with_context(attempt)
}
