//! Which Debian package a library of the root is from, for the manifest and the bill of materials: somebody who reads of
//! a flaw in a version of a package looks for just that.
//!
//! Packages are asked, not names compared: a locked package lists its files itself, and on this machine dpkg knows what
//! it has installed.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use cocoon_measurements::DebianPackage;

use crate::{
    command::{self, CommandError},
    input::{InputError, Sources},
    lock::Lock,
};

/// Where the libraries of a root are from, beside libtorch.
#[derive(Debug)]
pub enum Packages {
    /// Installed on this machine.
    Installed,
    /// Unpacked from the lock's packages.
    Locked {
        /// The folder that they were unpacked in.
        folder: PathBuf,
        /// Each path in there, relative, to its package.
        files: BTreeMap<PathBuf, DebianPackage>,
    },
}

/// Why nobody knows which package a library is from.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// A package is not at hand.
    #[error("a package that the builder root was unpacked from is not at hand any more")]
    Input(#[from] InputError),
    /// A package cannot be read.
    #[error("a package of the builder root does not list its files")]
    List(#[source] CommandError),
    /// A library is not there.
    #[error("cannot look at {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is from elsewhere.
    #[error("{} is in the builder root and in no package that it is made of: remove the builder root from the cache", path.display())]
    Nobody {
        /// Which.
        path: PathBuf,
    },
}

impl Packages {
    /// Asks every package of the builder root in `folder` for its files.
    ///
    /// # Errors
    /// See [`PackageError`].
    pub fn of_builder(lock: &Lock, sources: &Sources, folder: &Path) -> Result<Self, PackageError> {
        let mut files = BTreeMap::new();
        for input in &lock.builder.packages {
            let package = DebianPackage {
                name: input.name.clone(),
                version: input.version.clone(),
            };
            let paths = listed(&sources.find(input)?)?;
            files.extend(paths.into_iter().map(|path| (path, package.clone())));
        }
        let folder = folder.to_owned();
        Ok(Self::Locked { folder, files })
    }

    /// The package of a library of the C library's folder. On a machine without dpkg, or of a library that was put there
    /// by hand, none: such an image is for its builder alone.
    ///
    /// # Errors
    /// See [`PackageError`].
    pub fn package_of(&self, library: &Path) -> Result<Option<DebianPackage>, PackageError> {
        let file_error = |source| PackageError::File {
            path: library.to_owned(),
            source,
        };
        // Packages list files; a library's name is a link to one.
        let path = fs::canonicalize(library).map_err(file_error)?;
        match self {
            Self::Installed => Ok(installed(&path)),
            Self::Locked { folder, files } => {
                let folder = fs::canonicalize(folder).map_err(file_error)?;
                let package = path.strip_prefix(folder).ok().and_then(|path| files.get(path));
                let nobody = || PackageError::Nobody {
                    path: library.to_owned(),
                };
                package.cloned().map(Some).ok_or_else(nobody)
            }
        }
    }
}

/// The plain files of a package: deb-md5sums(5), a line for each. What it says of their content is not used.
fn listed(package: &Path) -> Result<Vec<PathBuf>, PackageError> {
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("--info").arg(package).arg("md5sums");
    let text = command::run(&mut dpkg, None).map_err(PackageError::List)?;
    let paths = text.lines().filter_map(|line| line.split_once("  "));
    // Debian merged /lib into /usr/lib; a package may still say the old name.
    let merged = |path: &Path| match path.starts_with("lib") || path.starts_with("lib64") {
        true => Path::new("usr").join(path),
        false => path.to_owned(),
    };
    Ok(paths.map(|(_, path)| merged(path.as_ref())).collect())
}

/// By the database of this machine's packages, in which a file may have its name from before /lib was merged.
fn installed(path: &Path) -> Option<DebianPackage> {
    let old = path.strip_prefix("/usr").map(|rest| Path::new("/").join(rest));
    let paths = [Some(path.to_owned()), old.ok()];
    let owner = paths.into_iter().flatten().find_map(|path| {
        let mut dpkg = Command::new("dpkg-query");
        let text = command::run(dpkg.arg("--search").arg(path), None).ok()?;
        let (owner, _) = text.lines().last()?.split_once(": ")?;
        Some(owner.to_owned())
    })?;
    let mut dpkg = Command::new("dpkg-query");
    dpkg.args(["--show", "--showformat=${Package} ${Version}", &owner]);
    let text = command::run(&mut dpkg, None).ok()?;
    let (name, version) = text.split_once(' ')?;
    Some(DebianPackage {
        name: name.to_owned(),
        version: version.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A package with these files, as Debian's tools make it.
    fn package(dir: &Path, md5sums: &str) -> PathBuf {
        let control = dir.join("tree/DEBIAN");
        fs::create_dir_all(&control).unwrap();
        fs::write(
            control.join("control"),
            "Package: one\nVersion: 1:2.0-3\nArchitecture: amd64\nMaintainer: nobody\nDescription: one\n",
        )
        .unwrap();
        fs::write(control.join("md5sums"), md5sums).unwrap();
        let file = dir.join("one.deb");
        let mut dpkg = Command::new("dpkg-deb");
        dpkg.arg("--build").arg(dir.join("tree")).arg(&file);
        command::run(&mut dpkg, None).unwrap();
        file
    }

    fn locked(folder: &Path, path: &str) -> Packages {
        let one = DebianPackage {
            name: "one".into(),
            version: "1:2.0-3".into(),
        };
        Packages::Locked {
            folder: folder.to_owned(),
            files: BTreeMap::from([(path.into(), one)]),
        }
    }

    #[test]
    fn a_package_lists_its_files_and_old_names_of_folders_are_merged() {
        let dir = tempfile::tempdir().unwrap();
        let file = package(
            dir.path(),
            "7defafbee297595227d1b19e9885ec51  usr/lib/libone.so.1.2\n\
             08b8e49f67322afd83a2fa3441f38516  lib/libold name.so\n\
             08b8e49f67322afd83a2fa3441f38516  libexec/one\n",
        );
        let paths = ["usr/lib/libone.so.1.2", "usr/lib/libold name.so", "libexec/one"];
        assert_eq!(listed(&file).unwrap(), paths.map(PathBuf::from));
        fs::write(&file, "no package").unwrap();
        assert!(matches!(listed(&file), Err(PackageError::List(_))));
    }

    #[test]
    fn a_library_is_its_packages_through_a_link_and_nobodys_without_one() {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("usr/lib");
        fs::create_dir_all(&lib).unwrap();
        fs::write(lib.join("libone.so.1.2"), "").unwrap();
        symlink("libone.so.1.2", lib.join("libone.so.1")).unwrap();
        fs::write(lib.join("libslipped-in.so.1"), "").unwrap();
        let packages = locked(dir.path(), "usr/lib/libone.so.1.2");
        let found = packages.package_of(&lib.join("libone.so.1")).unwrap().unwrap();
        assert_eq!((found.name.as_str(), found.version.as_str()), ("one", "1:2.0-3"));
        let error = packages.package_of(&lib.join("libslipped-in.so.1")).unwrap_err();
        assert!(matches!(error, PackageError::Nobody { .. }), "{error}");
        let elsewhere = locked(&lib, "usr/lib/libone.so.1.2");
        assert!(elsewhere.package_of(&lib.join("libone.so.1")).is_err());
    }

    /// This machine is Debian, as every machine that makes images is so far.
    #[test]
    fn dpkg_knows_what_is_installed_here_and_nothing_of_other_files() {
        let found = Packages::Installed.package_of(Path::new("/lib/x86_64-linux-gnu/libc.so.6"));
        let found = found.unwrap().expect("the C library is a package's");
        assert_eq!(found.name, "libc6");
        assert!(
            found.version.starts_with(|first: char| first.is_ascii_digit()),
            "{found:?}"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(Packages::Installed.package_of(file.path()).unwrap(), None);
    }
}
