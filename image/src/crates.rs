//! The crates that the guest's programs are compiled from, as a folder that cargo takes instead of a registry.
//!
//! Cargo checks a crate when it downloads it and never again: what lies unpacked in its home may have been
//! edited. Here every archive is checked against `Cargo.lock` and unpacked anew.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use cocoon_evidence::Digest32;
use serde::Deserialize;

use crate::{
    command::{self, CommandError},
    input::hash_file,
    publish::{WORK_PREFIX, remove_killed},
};

/// Why the crates are not at hand.
#[derive(Debug, thiserror::Error)]
pub enum CratesError {
    /// A file cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `Cargo.lock` is not what cargo writes.
    #[error("{} is malformed", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<toml::de::Error>,
    },
    /// Something that no checksum pins.
    #[error(
        "{name} {version} in Cargo.lock comes from {origin}, which has no checksum: only registry crates do"
    )]
    Unpinned {
        /// The crate.
        name: String,
        /// Its version.
        version: String,
        /// Where it would come from.
        origin: String,
    },
    /// Cargo failed.
    #[error("the crates were not fetched or unpacked")]
    Command(#[from] CommandError),
    /// No archive with the right content.
    #[error("{file} with SHA-256 {sha256} is not in {}: remove what is there and run cargo fetch --locked", home.display())]
    Missing {
        /// The archive.
        file: String,
        /// What `Cargo.lock` says.
        sha256: Digest32,
        /// Cargo's home.
        home: PathBuf,
    },
}

#[derive(Debug, Deserialize)]
struct CargoLock {
    package: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    /// None for the workspace's own.
    source: Option<String>,
    checksum: Option<Digest32>,
}

impl Package {
    fn archive(&self) -> String {
        format!("{}-{}.crate", self.name, self.version)
    }
}

/// The folder with all crates of a source tree, made if need be. The caller holds the cache's lock.
///
/// # Errors
/// See [`CratesError`]. Nothing half-unpacked is then under the folder's name.
pub fn vendor(source: &Path, cargo_home: &Path, cache: &Path) -> Result<PathBuf, CratesError> {
    let path = source.join("Cargo.lock");
    let text = fs::read_to_string(&path).map_err(|source| file_error(&path, source))?;
    let pinned = pinned(&text, &path)?;
    let vendors = cache.join("vendor");
    let folder = vendors.join(Digest32::of(text.as_bytes()).to_string());
    if folder.is_dir() {
        return Ok(folder);
    }
    if pinned
        .iter()
        .any(|(package, sha256)| archive(package, *sha256, cargo_home).is_none())
    {
        let mut cargo = Command::new("cargo");
        cargo.args(["fetch", "--locked", "--quiet"]).current_dir(source);
        command::run(&mut cargo, None)?;
    }
    fs::create_dir_all(&vendors).map_err(|source| file_error(&vendors, source))?;
    remove_killed(&vendors).map_err(|source| file_error(&vendors, source))?;
    let work = tempfile::Builder::new()
        .prefix(WORK_PREFIX)
        .tempdir_in(&vendors)
        .map_err(|source| file_error(&vendors, source))?;
    let new = work.path().join("crates");
    fs::create_dir(&new).map_err(|source| file_error(&new, source))?;
    for (package, sha256) in &pinned {
        let archive = archive(package, *sha256, cargo_home).ok_or_else(|| CratesError::Missing {
            file: package.archive(),
            sha256: *sha256,
            home: cargo_home.to_owned(),
        })?;
        unpack(package, *sha256, &archive, &new)?;
    }
    // Later builds trust what has this name: a power cut must not leave it half written.
    nix::unistd::sync();
    fs::rename(&new, &folder).map_err(|source| file_error(&folder, source))?;
    Ok(folder)
}

/// The checksum of every crate that is not the workspace's own, by name and version.
///
/// # Errors
/// `Cargo.lock` cannot be read, or a crate in it has no checksum.
pub(crate) fn checksums(source: &Path) -> Result<BTreeMap<(String, String), Digest32>, CratesError> {
    let path = source.join("Cargo.lock");
    let text = fs::read_to_string(&path).map_err(|source| file_error(&path, source))?;
    let pinned = pinned(&text, &path)?.into_iter();
    Ok(pinned
        .map(|(package, sha256)| ((package.name, package.version), sha256))
        .collect())
}

fn pinned(text: &str, path: &Path) -> Result<Vec<(Package, Digest32)>, CratesError> {
    let lock: CargoLock = toml::from_str(text).map_err(|source| CratesError::Malformed {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    let mut pinned = Vec::new();
    for package in lock.package {
        match (&package.source, package.checksum) {
            (None, _) => {}
            (Some(_), Some(sha256)) => pinned.push((package, sha256)),
            (Some(origin), None) => {
                return Err(CratesError::Unpinned {
                    origin: origin.clone(),
                    name: package.name,
                    version: package.version,
                });
            }
        }
    }
    Ok(pinned)
}

/// Cargo keeps archives in a folder for each registry; which one does not matter, the content does.
fn archive(package: &Package, sha256: Digest32, cargo_home: &Path) -> Option<PathBuf> {
    let registries = fs::read_dir(cargo_home.join("registry/cache")).ok()?;
    registries
        .flatten()
        .map(|registry| registry.path().join(package.archive()))
        .find(|path| hash_file(path).is_ok_and(|(_, found)| found == sha256))
}

fn unpack(package: &Package, sha256: Digest32, archive: &Path, vendor: &Path) -> Result<(), CratesError> {
    let mut tar = Command::new("tar");
    tar.args([
        "--extract",
        "--gzip",
        "--no-same-owner",
        "--no-same-permissions",
        "--file",
    ]);
    command::run(tar.arg(archive).arg("--directory").arg(vendor), None)?;
    // cargo's form of a vendored crate; it trusts the files, which were checked as a whole just now.
    let sums = vendor
        .join(format!("{}-{}", package.name, package.version))
        .join(".cargo-checksum.json");
    fs::write(&sums, format!("{{\"files\":{{}},\"package\":\"{sha256}\"}}"))
        .map_err(|source| file_error(&sums, source))
}

fn file_error(path: &Path, source: io::Error) -> CratesError {
    CratesError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: &str = "[[package]]\nname = \"own\"\nversion = \"1.0.0\"\n";

    fn lock(sha256: &str) -> String {
        format!(
            "{NONE}[[package]]\nname = \"leaf\"\nversion = \"2.0.0\"\nsource = \"registry+somewhere\"\nchecksum = {sha256:?}\n"
        )
    }

    /// A crate in cargo's home, and the source tree that asks for it.
    fn home_with(source: &Path, home: &Path, locked: Option<&str>) {
        let files = home.join("leaf-2.0.0");
        fs::create_dir(&files).unwrap();
        fs::write(files.join("Cargo.toml"), "[package]").unwrap();
        let registry = home.join("registry/cache/any");
        fs::create_dir_all(&registry).unwrap();
        let archive = registry.join("leaf-2.0.0.crate");
        let mut tar = Command::new("tar");
        tar.args(["--create", "--gzip", "--file"]).arg(&archive);
        command::run(tar.current_dir(home).arg("leaf-2.0.0"), None).unwrap();
        let sha256 = hash_file(&archive).unwrap().1.to_string();
        fs::write(source.join("Cargo.lock"), lock(locked.unwrap_or(&sha256))).unwrap();
    }

    #[test]
    fn a_crate_is_unpacked_under_its_checksum() {
        let (source, home, cache) = (
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
        );
        home_with(source.path(), home.path(), None);
        let folder = vendor(source.path(), home.path(), cache.path()).unwrap();
        assert!(folder.join("leaf-2.0.0/Cargo.toml").is_file());
        let sums = fs::read_to_string(folder.join("leaf-2.0.0/.cargo-checksum.json")).unwrap();
        let archive = home.path().join("registry/cache/any/leaf-2.0.0.crate");
        assert!(
            sums.contains(&hash_file(&archive).unwrap().1.to_string()),
            "{sums}"
        );
    }

    #[test]
    fn an_archive_that_somebody_changed_is_not_used() {
        let (source, home, cache) = (
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
        );
        home_with(
            source.path(),
            home.path(),
            Some(&Digest32::of(b"the true archive").to_string()),
        );
        assert!(vendor(source.path(), home.path(), cache.path()).is_err());
        let left = fs::read_dir(cache.path()).unwrap().flatten();
        let left: Vec<_> = left
            .flat_map(|entry| fs::read_dir(entry.path()).unwrap())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn what_has_no_checksum_is_refused() {
        let text = format!("{NONE}source = \"git+https://example.org/own\"\n");
        let error = pinned(&text, Path::new("Cargo.lock")).unwrap_err();
        assert!(matches!(error, CratesError::Unpinned { .. }), "{error}");
        assert_eq!(pinned(NONE, Path::new("Cargo.lock")).unwrap().len(), 0);
    }
}
