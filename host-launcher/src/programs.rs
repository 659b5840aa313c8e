//! The programs that the launcher starts, and what to do where one is missing.

use std::{
    env,
    path::{Path, PathBuf},
};

/// A program is not installed.
#[derive(Debug, thiserror::Error)]
#[error("{program} is not installed ({looked_in}); {remedy}")]
pub struct MissingProgram {
    program: &'static str,
    looked_in: String,
    remedy: &'static str,
}

const QEMU: &str = "qemu-system-x86_64";
const BACKEND: &str = "vhost-device-vsock";

/// QEMU: as configured, else from PATH.
///
/// # Errors
/// It is in neither place.
pub fn qemu(configured: Option<&Path>) -> Result<PathBuf, MissingProgram> {
    let remedy = "install it with: apt-get install qemu-system-x86";
    find(QEMU, configured, path_folders(), remedy)
}

/// The vsock backend: as configured, else from Cocoon's cache, else from PATH.
///
/// # Errors
/// It is in none of these places.
pub fn vsock_backend(configured: Option<&Path>) -> Result<PathBuf, MissingProgram> {
    let folders = cache_folder().map(|cache| cache.join("tools/bin"));
    let remedy = "this kernel offers no /dev/vhost-vsock, which would do without it; load that with: modprobe \
                  vhost_vsock, or install the program with: cargo install --locked vhost-device-vsock@0.3.0 \
                  --root ~/.cache/cocoon/tools";
    find(
        BACKEND,
        configured,
        folders.into_iter().chain(path_folders()),
        remedy,
    )
}

fn cache_folder() -> Option<PathBuf> {
    let named = env::var_os("COCOON_CACHE").map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache/cocoon")))
}

fn path_folders() -> Vec<PathBuf> {
    env::var_os("PATH").map_or(vec![], |path| env::split_paths(&path).collect())
}

fn find(
    program: &'static str,
    configured: Option<&Path>,
    folders: impl IntoIterator<Item = PathBuf>,
    remedy: &'static str,
) -> Result<PathBuf, MissingProgram> {
    if let Some(path) = configured {
        return match path.is_file() {
            true => Ok(path.to_owned()),
            false => Err(MissingProgram {
                program,
                looked_in: format!("node.toml says {}", path.display()),
                remedy: "correct [tools] in node.toml, or leave it out",
            }),
        };
    }
    let found = folders
        .into_iter()
        .map(|folder| folder.join(program))
        .find(|path| path.is_file());
    found.ok_or(MissingProgram {
        program,
        looked_in: "not in PATH".into(),
        remedy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_folder_wins_and_a_missing_program_says_what_to_install() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(QEMU);
        std::fs::write(&program, "").unwrap();
        let folders = || [PathBuf::from("/none"), dir.path().to_owned()];
        assert_eq!(find(QEMU, None, folders(), "x").unwrap(), program);
        let error = find(BACKEND, None, folders(), "install it").unwrap_err();
        assert_eq!(
            error.to_string(),
            "vhost-device-vsock is not installed (not in PATH); install it"
        );
        let error = qemu(Some(Path::new("/none/qemu"))).unwrap_err();
        assert!(error.to_string().contains("node.toml says /none/qemu"));
    }
}
