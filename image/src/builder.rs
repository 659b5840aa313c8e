//! The builder root: the system that release images are compiled in, unpacked from locked packages.
//!
//! No maintainer script runs; the few links that they would make are named in `builder.toml`. The result lies
//! in the cache under a digest of everything that went into it, so it is unpacked once.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use cocoon_evidence::Digest32;

use crate::{
    command::{self, CommandError},
    input::{InputError, Sources},
    lock::Lock,
    progress::Progress,
    publish::{WORK_PREFIX, remove_killed},
    sandbox::{self, Bind, Sandbox},
    suite::Wanted,
    toolchain::{Toolchain, ToolchainError},
};

/// Changes when this module unpacks differently from the same packages.
const METHOD: &str = "builder-root-1";
/// Debian's merged /usr, before the first package: otherwise `bin` would become a folder of its own.
const MERGED: [(&str, &str); 4] = [
    ("bin", "usr/bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("sbin", "usr/sbin"),
];
/// Where the Rust toolchain lies in the root.
const RUST: &str = "rust";

/// An unpacked builder root.
#[derive(Debug, Clone)]
pub struct BuilderRoot {
    folder: PathBuf,
    /// The program that enters it: see [`Sandbox::helper`].
    helper: PathBuf,
    /// Of everything that it was made from.
    pub digest: Digest32,
}

/// Why there is no builder root.
#[derive(Debug, thiserror::Error)]
pub enum BuilderError {
    /// A package is not at hand.
    #[error("a package of the builder root is not at hand; `cocoon-image lock fetch` gets them all")]
    Input(#[from] InputError),
    /// The Rust toolchain is not the locked one.
    #[error("the builder root has no Rust")]
    Toolchain(#[from] ToolchainError),
    /// A package cannot be unpacked.
    #[error("a package of the builder root was not unpacked")]
    Unpack(#[from] CommandError),
    /// Programs cannot be run in it.
    #[error(
        "programs cannot be run in the builder root; if the system forbids user namespaces, run this as root or \
         allow them: sysctl kernel.unprivileged_userns_clone=1 or kernel.apparmor_restrict_unprivileged_userns=0"
    )]
    Enter(#[source] CommandError),
    /// The cache cannot be used.
    #[error("cannot use {} for the builder root (it takes 1 GB)", path.display())]
    File {
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl BuilderRoot {
    /// Unpacks the builder root of a lock, or finds it in the cache. The caller holds the cache's lock.
    ///
    /// # Errors
    /// See [`BuilderError`]. Nothing half-unpacked is then under the root's name.
    pub fn prepare(
        lock: &Lock,
        wanted: &Wanted,
        sources: &Sources,
        helper: &Path,
        progress: &Progress,
    ) -> Result<Self, BuilderError> {
        // Also for a root that is there: its files may be links to the toolchain's.
        let toolchain = Toolchain::find(&lock.rust)?;
        let digest = digest(lock, wanted);
        let folder = sources.cache.join("builder").join(digest.to_string());
        if !folder.is_dir() {
            progress.stage("builder root: fetching and unpacking locked packages");
            unpack(lock, wanted, sources, &toolchain, &folder)?;
        }
        let root = Self {
            folder,
            helper: helper.to_owned(),
            digest,
        };
        // Better known now than from the log of the first build.
        command::run(&mut root.sandbox([]).command("/usr/bin/true", &[]), None)
            .map_err(BuilderError::Enter)?;
        Ok(root)
    }

    /// Where it lies on this machine.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A way to run programs in it, with folders of this machine bound to places in it: where from, where to,
    /// writable.
    pub fn sandbox<const N: usize>(&self, binds: [(&Path, &str, bool); N]) -> Sandbox {
        let binds = binds.map(|(from, to, writable)| Bind {
            from: from.to_owned(),
            to: to.to_owned(),
            writable,
        });
        Sandbox {
            root: self.folder.clone(),
            helper: self.helper.clone(),
            binds: binds.into(),
        }
    }
}

fn unpack(
    lock: &Lock,
    wanted: &Wanted,
    sources: &Sources,
    toolchain: &Toolchain,
    folder: &Path,
) -> Result<(), BuilderError> {
    let roots = folder.parent().expect("it was joined to one");
    fs::create_dir_all(roots).map_err(|source| file_error(roots, source))?;
    remove_killed(roots).map_err(|source| file_error(roots, source))?;
    let work = tempfile::Builder::new()
        .prefix(WORK_PREFIX)
        .tempdir_in(roots)
        .map_err(|source| file_error(roots, source))?;
    let root = work.path().join("root");
    make_skeleton(&root).map_err(|source| file_error(&root, source))?;
    for package in &lock.builder.packages {
        let file = sources.find(package)?;
        let mut unpack = Command::new("dpkg-deb");
        command::run(unpack.arg("--extract").args([&file, &root]), None)?;
    }
    link_all(&root, &wanted.links).map_err(|source| file_error(&root, source))?;
    add_toolchain(&root, toolchain)?;
    // Later builds trust what has this name: a power cut must not leave it half written.
    nix::unistd::sync();
    fs::rename(&root, folder).map_err(|source| file_error(folder, source))
}

/// SHA-256 over this module's method, the packages' hashes, the links and the toolchain's digest.
fn digest(lock: &Lock, wanted: &Wanted) -> Digest32 {
    let mut text = format!("{METHOD}\nrust {}\n", lock.rust.tree_sha256);
    for package in &lock.builder.packages {
        text += &format!("package {}\n", package.sha256);
    }
    for (link, target) in &wanted.links {
        text += &format!("link {link} {target}\n");
    }
    Digest32::of(text.as_bytes())
}

fn make_skeleton(root: &Path) -> io::Result<()> {
    for (link, target) in MERGED {
        fs::create_dir_all(root.join(target))?;
        symlink(target, root.join(link))?;
    }
    for folder in sandbox::MOUNT_POINTS {
        fs::create_dir_all(root.join(folder.trim_start_matches('/')))?;
    }
    Ok(())
}

fn link_all(root: &Path, links: &BTreeMap<String, String>) -> io::Result<()> {
    links
        .iter()
        .try_for_each(|(link, target)| symlink(target, root.join(link)))
}

/// Hard links where the file systems allow it: the toolchain has 500 MB.
fn add_toolchain(root: &Path, toolchain: &Toolchain) -> Result<(), BuilderError> {
    for name in &toolchain.files {
        let (from, to) = (toolchain.sysroot.join(name), root.join(RUST).join(name));
        let folder = to.parent().expect("it was joined to one");
        fs::create_dir_all(folder).map_err(|source| file_error(folder, source))?;
        if fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).map_err(|source| file_error(&to, source))?;
        }
    }
    Ok(())
}

fn file_error(path: &Path, source: io::Error) -> BuilderError {
    BuilderError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe;

    #[test]
    fn the_digest_covers_every_package_every_link_and_the_compiler() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let (lock, wanted) = (Lock::load(source).unwrap(), recipe::builder(source).unwrap());
        let base = digest(&lock, &wanted);
        let mut other = lock.clone();
        other.builder.packages[0].sha256 = Digest32::of(b"another package");
        assert_ne!(digest(&other, &wanted), base);
        let mut other = lock.clone();
        other.builder.packages.pop();
        assert_ne!(digest(&other, &wanted), base);
        let mut other = lock.clone();
        other.rust.tree_sha256 = Digest32::of(b"another compiler");
        assert_ne!(digest(&other, &wanted), base);
        let mut linked = wanted.clone();
        linked.links.insert("usr/bin/cc".into(), "clang".into());
        assert_ne!(digest(&lock, &linked), base);
        let mut moved = lock.clone();
        moved.builder.packages[0].pool = "pool/elsewhere".into();
        assert_eq!(
            digest(&moved, &wanted),
            base,
            "where a file comes from does not matter"
        );
    }
}
