//! What goes to standard output and into files.

use std::{fs::File, io::Write, path::Path};

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
