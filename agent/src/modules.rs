//! The kernel's loader of modules, closed before any other program runs.
//!
//! Kernels of guests without GPUs have none. Where there is one, the kernel itself takes files of the verified
//! root only (LoadPin, docs/decisions/0012); this ends even that, until the machine is reset.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::Path,
};

/// The kernel's switch, which turns one way only (kernel documentation, admin-guide/sysctl/kernel.rst).
pub const SWITCH: &str = "/proc/sys/kernel/modules_disabled";
const LOCKED: &str = "1";

/// Why modules might still be loaded. The guest powers off.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// The switch cannot be used.
    #[error("locking the kernel's loader of modules: {0}")]
    Switch(#[from] io::Error),
    /// It was written, and shows something else.
    #[error("the kernel's loader of modules is not locked, although the kernel was told to")]
    Open,
}

/// Locks the loader, or finds that the kernel has none.
///
/// # Errors
/// See [`ModulesError`].
pub fn lock(switch: &Path) -> Result<(), ModulesError> {
    match OpenOptions::new().write(true).open(switch) {
        Ok(mut file) => file.write_all(LOCKED.as_bytes())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    if fs::read_to_string(switch)?.trim() == LOCKED {
        return Ok(());
    }
    Err(ModulesError::Open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_is_locked_where_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let switch = folder.path().join("modules_disabled");
        lock(&switch).unwrap();
        assert!(!switch.exists(), "a kernel without modules has nothing to lock");
        fs::write(&switch, "0").unwrap();
        lock(&switch).unwrap();
        assert_eq!(fs::read_to_string(&switch).unwrap(), "1");
    }

    #[test]
    fn a_loader_that_stays_open_is_an_error() {
        let error = lock(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, ModulesError::Open), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let error = lock(folder.path()).unwrap_err();
        assert!(matches!(error, ModulesError::Switch(_)), "{error}");
    }
}
