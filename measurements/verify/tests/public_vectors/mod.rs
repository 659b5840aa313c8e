//! The folder with public test vectors.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What `COCOON_VECTORS` names, if it is set; else the caller has nothing to test.
pub(crate) fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("COCOON_VECTORS").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: COCOON_VECTORS does not name a folder with public test vectors");
    }
    folder
}

/// A file that is missing fails the test.
pub(crate) fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
