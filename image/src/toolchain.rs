//! The Rust toolchain as rustup installs it, pinned by content.
//!
//! rustup checks what it downloads, but nothing checks the installed files again. The lock therefore holds a
//! digest over those files that rustup's own lists name as compiler, cargo and standard library; what else lies
//! in the folder (lints, documentation, other targets) plays no part and is not taken into the builder root.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use cocoon_evidence::Digest32;

use crate::{
    command::{self, CommandError},
    input::hash_file,
    lock::RustToolchain,
};

const COMPONENTS: [&str; 3] = ["cargo", "rust-std", "rustc"];
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What a component has beside programs and libraries: manuals and completions.
const NEEDED: [&str; 2] = ["bin/", "lib/"];

/// Why there is no toolchain.
#[derive(Debug, thiserror::Error)]
pub enum ToolchainError {
    /// rustup or the version is missing.
    #[error("no Rust {version}; install it: rustup toolchain install {version} --profile minimal")]
    Missing {
        /// The locked version.
        version: String,
        /// Why.
        source: CommandError,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The files are not those that the lock was made from.
    #[error(
        "the Rust {version} in {} is not the locked one: its files hash to {found}, image.lock says {expected}; \
         install it again: rustup toolchain uninstall {version}, then rustup toolchain install {version}",
        sysroot.display()
    )]
    Other {
        /// The locked version.
        version: String,
        /// Where it lies.
        sysroot: PathBuf,
        /// Its digest.
        found: Digest32,
        /// The locked digest.
        expected: Digest32,
    },
}

/// A toolchain whose files have the locked digest.
#[derive(Debug, Clone)]
pub struct Toolchain {
    /// Its folder.
    pub sysroot: PathBuf,
    /// Relative paths of its files, in order.
    pub files: BTreeSet<String>,
}

impl Toolchain {
    /// Finds the locked toolchain and checks its files.
    ///
    /// # Errors
    /// See [`ToolchainError`].
    pub fn find(locked: &RustToolchain) -> Result<Self, ToolchainError> {
        let sysroot = sysroot(&locked.version)?;
        let (files, found) = tree_digest(&sysroot)?;
        if found != locked.tree_sha256 {
            return Err(ToolchainError::Other {
                version: locked.version.clone(),
                sysroot,
                found,
                expected: locked.tree_sha256,
            });
        }
        Ok(Self { sysroot, files })
    }
}

fn sysroot(version: &str) -> Result<PathBuf, ToolchainError> {
    let mut rustc = Command::new("rustc");
    rustc.arg(format!("+{version}")).args(["--print", "sysroot"]);
    let printed = command::run(&mut rustc, None).map_err(|source| ToolchainError::Missing {
        version: version.to_owned(),
        source,
    })?;
    Ok(PathBuf::from(printed.trim()))
}

/// The files of a toolchain and SHA-256 over their names and hashes in order, each name preceded by its length.
///
/// # Errors
/// A file cannot be read.
pub fn tree_digest(sysroot: &Path) -> Result<(BTreeSet<String>, Digest32), ToolchainError> {
    let mut files = BTreeSet::new();
    for component in COMPONENTS {
        let path = sysroot.join(format!("lib/rustlib/manifest-{component}-{TARGET}"));
        let list = fs::read_to_string(&path).map_err(|source| file_error(&path, source))?;
        let names = list.lines().filter_map(|line| line.strip_prefix("file:"));
        let needed = names.filter(|name| NEEDED.iter().any(|folder| name.starts_with(folder)));
        files.extend(needed.map(str::to_owned));
    }
    let mut parts = Vec::new();
    for name in &files {
        let path = sysroot.join(name);
        let (_, sha256) = hash_file(&path).map_err(|source| file_error(&path, source))?;
        parts.push(((name.len() as u64).to_le_bytes(), name, sha256));
    }
    let digest = Digest32::of_parts(
        parts
            .iter()
            .flat_map(|(length, name, sha256)| [length.as_slice(), name.as_bytes(), sha256.as_bytes()]),
    );
    Ok((files, digest))
}

fn file_error(path: &Path, source: io::Error) -> ToolchainError {
    ToolchainError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(sysroot: &Path, name: &str, content: &str) {
        let path = sysroot.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn sysroot_with(rustc: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let lists = [
            ("cargo", "bin/cargo"),
            ("rust-std", "lib/libstd.rlib"),
            ("rustc", "bin/rustc"),
        ];
        for (component, file) in lists {
            let list = format!("file:{file}\nfile:share/man/{component}.1\ndir:share/doc\n");
            write(
                dir.path(),
                &format!("lib/rustlib/manifest-{component}-{TARGET}"),
                &list,
            );
            write(dir.path(), file, if file == "bin/rustc" { rustc } else { "same" });
        }
        dir
    }

    #[test]
    fn a_changed_compiler_changes_the_digest_and_another_component_does_not() {
        let digest = |dir: &tempfile::TempDir| tree_digest(dir.path()).unwrap().1;
        let (one, other) = (sysroot_with("rustc"), sysroot_with("rustc with a back door"));
        assert_ne!(digest(&one), digest(&other));
        let before = digest(&one);
        write(one.path(), "bin/clippy-driver", "lints");
        write(one.path(), "share/man/rustc.1", "manual");
        assert_eq!(digest(&one), before);
    }

    #[test]
    fn a_toolchain_with_other_files_is_refused_with_what_to_do() {
        let locked = RustToolchain {
            version: "cocoon-no-such-version".into(),
            tree_sha256: Digest32::of(b""),
        };
        let error = Toolchain::find(&locked).unwrap_err();
        assert!(error.to_string().contains("rustup toolchain install"), "{error}");
        let dir = sysroot_with("rustc");
        fs::remove_file(dir.path().join("bin/cargo")).unwrap();
        assert!(matches!(
            tree_digest(dir.path()),
            Err(ToolchainError::File { .. })
        ));
    }
}
