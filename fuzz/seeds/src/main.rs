//! Writes the seeds of every target: `seeds CORPUS`, with COCOON_VECTORS set for the public vectors.

use std::{env, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let Some(corpus) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: seeds CORPUS; COCOON_VECTORS names the folder with public vectors");
        return ExitCode::from(2);
    };
    let vectors = env::var_os("COCOON_VECTORS").map(PathBuf::from);
    if vectors.is_none() {
        eprintln!("COCOON_VECTORS is not set: starting from our own seeds alone");
    }
    match cocoon_fuzz_seeds::write_all(vectors.as_deref(), &corpus) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("writing the seeds: {error}");
            ExitCode::FAILURE
        }
    }
}
