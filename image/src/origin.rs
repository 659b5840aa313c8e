//! What the manifest says beyond the artifacts: the source that an image was built from, and what it measures to on
//! the machines of `measurements/profiles`.
//!
//! Neither takes part in making an artifact: two commits with the same inputs give the same image.

mod expected;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use cocoon_evidence::Digest32;
use cocoon_measurements::{Commit, Manifest, ManifestError, Origin, SpecError};

pub use self::expected::{LaunchError, expected};
use crate::{command, lock, publish};

/// What git is told by variables would make it look elsewhere.
const GIT_VARIABLES: [&str; 4] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
];

/// Why a manifest cannot be completed.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// A file of the source tree, or the manifest.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A LaunchSpec of the source tree.
    #[error("a LaunchSpec of measurements/profiles or profiles-snp cannot be used")]
    Spec(#[from] SpecError),
    /// The registers do not follow from the image.
    #[error("cannot predict what the image measures to on {launch_spec}")]
    Measure {
        /// The machine.
        launch_spec: String,
        /// Why.
        source: LaunchError,
    },
    /// An artifact is not there or not what the manifest says.
    #[error("an artifact cannot be measured")]
    Artifact(#[from] ManifestError),
}

/// Describes the source tree; `builder_root` is the digest of the root that everything was compiled in, if one was.
///
/// # Errors
/// A lock file cannot be read. A tree without git, or that git does not trust, has no commit.
pub fn of_source(source: &Path, builder_root: Option<Digest32>) -> Result<Origin, OriginError> {
    let digest = |path: PathBuf| {
        let bytes = fs::read(&path).map_err(|source| file_error(&path, source))?;
        Ok::<_, OriginError>(Digest32::of(&bytes))
    };
    Ok(Origin {
        image_lock: digest(lock::path(source))?,
        cargo_lock: digest(source.join("Cargo.lock"))?,
        commit: commit(source),
        builder_root,
    })
}

/// Only of a repository whose root is the source tree: a copy that lies in some other repository is not its commit.
fn commit(source: &Path) -> Option<Commit> {
    let top = git(source, &["rev-parse", "--show-toplevel"])?;
    if fs::canonicalize(top.trim()).ok()? != fs::canonicalize(source).ok()? {
        return None;
    }
    let id = git(source, &["rev-parse", "--verify", "HEAD"])?.trim().to_owned();
    let changes = git(source, &["status", "--porcelain", "--untracked-files=normal"])?;
    Some(Commit {
        id,
        clean: changes.is_empty(),
    })
}

fn git(source: &Path, arguments: &[&str]) -> Option<String> {
    let mut git = Command::new("git");
    git.arg("--no-optional-locks")
        .arg("-C")
        .arg(source)
        .args(arguments);
    for variable in GIT_VARIABLES {
        git.env_remove(variable);
    }
    command::run(&mut git, None).ok()
}

/// Completes the manifest of an image that is in place, where it was written by an older builder or from another
/// commit with the same inputs. The artifacts stay as they are.
///
/// # Errors
/// See [`OriginError`]. The old manifest is then still there.
pub fn refresh(
    source: &Path,
    folder: &Path,
    mut manifest: Manifest,
    builder_root: Option<Digest32>,
) -> Result<Manifest, OriginError> {
    let origin = Some(of_source(source, builder_root)?);
    let expected = expected(source, folder, &manifest)?;
    if manifest.origin == origin && manifest.expected == expected {
        return Ok(manifest);
    }
    manifest.origin = origin;
    manifest.expected = expected;
    let path = folder.join("manifest.json");
    publish::file(&path, to_json(&manifest).as_bytes()).map_err(|source| file_error(&path, source))?;
    Ok(manifest)
}

/// The text of `manifest.json`.
pub fn to_json(manifest: &Manifest) -> String {
    serde_json::to_string_pretty(manifest).expect("plain data") + "\n"
}

fn file_error(path: &Path, source: io::Error) -> OriginError {
    OriginError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(lock::path(tree.path()).parent().unwrap()).unwrap();
        fs::write(lock::path(tree.path()), "lock").unwrap();
        fs::write(tree.path().join("Cargo.lock"), "crates").unwrap();
        tree
    }

    fn committed(tree: &Path) {
        let name = ["-c", "user.name=test", "-c", "user.email=test@example.org"];
        for arguments in [
            &["init", "--quiet"][..],
            &["add", "."],
            &["commit", "--quiet", "-m", "one"],
        ] {
            git(tree, &[&name[..], arguments].concat()).unwrap();
        }
    }

    #[test]
    fn a_changed_or_added_file_makes_the_tree_unclean_and_no_other_lock_passes_for_this() {
        let tree = tree();
        let bare = of_source(tree.path(), None).unwrap();
        assert_eq!(bare.commit, None, "no repository");
        assert_eq!(bare.image_lock, Digest32::of(b"lock"));
        committed(tree.path());
        let clean = || of_source(tree.path(), None).unwrap().commit.unwrap().clean;
        assert!(clean());
        fs::write(tree.path().join("added"), "").unwrap();
        assert!(!clean(), "an added file");
        fs::remove_file(tree.path().join("added")).unwrap();
        fs::write(tree.path().join("Cargo.lock"), "other crates").unwrap();
        assert!(!clean(), "a changed file");
        let changed = of_source(tree.path(), None).unwrap();
        assert_eq!(changed.cargo_lock, Digest32::of(b"other crates"));
    }

    #[test]
    fn a_copy_inside_another_repository_is_not_its_commit() {
        let outer = tree();
        committed(outer.path());
        let inner = outer.path().join("copy");
        fs::create_dir_all(lock::path(&inner).parent().unwrap()).unwrap();
        fs::write(lock::path(&inner), "lock").unwrap();
        fs::write(inner.join("Cargo.lock"), "crates").unwrap();
        assert_eq!(of_source(&inner, None).unwrap().commit, None);
    }
}
