//! `cocoon-image inspect`.

use std::path::PathBuf;

use clap::Args;
use cocoon_image::inspect::{self, InspectedFile, Inspection};

use super::print_line;

const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;

#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// The folder of the image.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Print JSON: `{"root_hash": HEX, "artifacts": [..], "files": [..], "absent": [PATH..]}`.
    #[arg(long)]
    json: bool,
}

/// Whether the image is what its manifest lists.
pub(crate) fn inspect(arguments: &InspectArguments) -> anyhow::Result<bool> {
    let found = match inspect::inspect(&arguments.folder) {
        Ok(found) => found,
        Err(error) if error.is_forgery() => {
            eprintln!("DIFFERS: {:#}", anyhow::Error::new(error));
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    if arguments.json {
        print_line(serde_json::to_string_pretty(&found)?)?;
    } else {
        print(&found)?;
    }
    Ok(found.is_as_listed())
}

fn print(found: &Inspection) -> anyhow::Result<()> {
    for artifact in &found.artifacts {
        match &artifact.problem {
            None => print_line(format_args!(
                "{:>17} {} {}",
                artifact.bytes, artifact.sha256, artifact.file
            ))?,
            Some(problem) => print_line(format_args!("{}: DIFFERS: {problem}", artifact.file))?,
        }
    }
    print_line(format_args!(
        "\nroot: every block matches the root hash {}",
        found.root_hash
    ))?;
    for file in &found.files {
        let InspectedFile {
            path,
            mode,
            bytes,
            sha256,
            source,
            package,
        } = file;
        // Names are anybody's: a terminal must not be told what to do.
        let source = source
            .as_deref()
            .unwrap_or("DIFFERS: the manifest does not list it so");
        let sha256 = if mode.0 & S_IFMT == S_IFDIR {
            "-".into()
        } else {
            sha256.to_string()
        };
        let package = package.as_ref();
        let package = package.map_or(String::new(), |one| format!(" {} {}", one.name, one.version));
        print_line(format_args!(
            "{:06o} {bytes:>10} {sha256:<64} {}  {}{}",
            mode.0,
            path.escape_debug(),
            source.escape_debug(),
            package.escape_debug()
        ))?;
    }
    for path in &found.absent {
        print_line(format_args!(
            "{}: DIFFERS: only the manifest has it",
            path.escape_debug()
        ))?;
    }
    Ok(())
}
