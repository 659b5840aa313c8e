//! Finds locked inputs: in a folder that the user names, in the cache, else in the pool of the system's
//! configured Debian mirrors. Where a file comes from does not matter, its hash does.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

use cocoon_evidence::Digest32;
use sha2::{Digest as _, Sha256};

use crate::{
    command::{self, CommandError},
    recipe::LockedInput,
};

/// Why an input is not at hand.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// A file with the right name has other content.
    #[error(
        "{} is not the locked input: it has {found_bytes} bytes with SHA-256 {found}, image.lock says \
         {expected_bytes} bytes with {expected}; remove it or replace it with the right file",
        path.display()
    )]
    WrongContent {
        /// Where it lies.
        path: PathBuf,
        /// Its length.
        found_bytes: u64,
        /// Its hash.
        found: Digest32,
        /// The locked length.
        expected_bytes: u64,
        /// The locked hash.
        expected: Digest32,
    },
    /// A file cannot be read or moved.
    #[error("cannot use {}", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is nowhere.
    #[error(
        "{file} (SHA-256 {sha256}) is not at hand and no configured Debian mirror has {pool}/{file}; put the \
         file into {} or name its folder in COCOON_INPUTS (Debian's archive of old versions is \
         https://snapshot.debian.org){reasons}",
        folder.display()
    )]
    Missing {
        /// The file's name.
        file: String,
        /// The locked hash.
        sha256: Digest32,
        /// Its folder on a mirror.
        pool: String,
        /// Where it may be put.
        folder: Box<Path>,
        /// What each mirror answered, ready for printing.
        reasons: Box<str>,
    },
}

/// Returns the path of a file with the locked content.
///
/// # Errors
/// See [`InputError`].
pub fn find(input: &LockedInput, given: Option<&Path>, cache: &Path) -> Result<PathBuf, InputError> {
    let folder = cache.join("inputs");
    let candidates = given.map(|folder| folder.join(&input.file));
    for path in candidates.into_iter().chain([folder.join(&input.file)]) {
        if path.try_exists().map_err(|source| unusable(&path, source))? {
            check(input, &path)?;
            return Ok(path);
        }
    }
    fs::create_dir_all(&folder).map_err(|source| unusable(&folder, source))?;
    download(input, &folder)
}

/// Downloads into a folder of its own, so that an interrupted download leaves nothing under the final name.
///
/// A pool holds a file as long as any suite needs it, so this works on a system whose own suite does not have
/// the package.
fn download(input: &LockedInput, folder: &Path) -> Result<PathBuf, InputError> {
    let work = tempfile::Builder::new()
        .prefix(".download-")
        .tempdir_in(folder)
        .map_err(|source| unusable(folder, source))?;
    let fetched = work.path().join(&input.file);
    let mut reasons = String::new();
    let from_a_mirror = mirrors().unwrap_or_default().iter().any(|mirror| {
        let failed = fetch(input, mirror, &fetched).err();
        failed.iter().for_each(|error| reasons += &format!("\n{error}"));
        failed.is_none()
    });
    if !from_a_mirror {
        return Err(InputError::Missing {
            file: input.file.clone(),
            sha256: input.sha256,
            pool: input.pool.clone(),
            folder: folder.into(),
            reasons: reasons.into(),
        });
    }
    check(input, &fetched)?;
    let path = folder.join(&input.file);
    fs::rename(&fetched, &path).map_err(|source| unusable(&path, source))?;
    Ok(path)
}

/// Base addresses of the configured mirrors, each ending in a slash.
fn mirrors() -> Result<Vec<String>, CommandError> {
    let mut apt = Command::new("apt-get");
    let listed = command::run(apt.args(["indextargets", "--format", "$(REPO_URI)"]), None)?;
    let mut mirrors: Vec<String> = listed.lines().map(str::to_owned).collect();
    mirrors.sort();
    mirrors.dedup();
    Ok(mirrors)
}

/// apt's own downloader: it knows the system's proxies and checks the hash.
fn fetch(input: &LockedInput, mirror: &str, to: &Path) -> Result<(), CommandError> {
    let LockedInput {
        pool, file, sha256, ..
    } = input;
    let mut apt = Command::new("/usr/lib/apt/apt-helper");
    apt.arg("download-file").arg(format!("{mirror}{pool}/{file}"));
    apt.arg(to).arg(format!("SHA256:{sha256}"));
    command::run(&mut apt, None).map(|_| ())
}

fn check(input: &LockedInput, path: &Path) -> Result<(), InputError> {
    let (bytes, sha256) = hash_file(path).map_err(|source| unusable(path, source))?;
    if (bytes, sha256) == (input.bytes, input.sha256) {
        return Ok(());
    }
    Err(InputError::WrongContent {
        path: path.to_owned(),
        found_bytes: bytes,
        found: sha256,
        expected_bytes: input.bytes,
        expected: input.sha256,
    })
}

/// Length and SHA-256 of a file, in constant memory.
///
/// # Errors
/// It cannot be read.
pub fn hash_file(path: &Path) -> io::Result<(u64, Digest32)> {
    let mut hash = Sha256::new();
    let bytes = io::copy(&mut File::open(path)?, &mut hash)?;
    Ok((bytes, Digest32(hash.finalize().into())))
}

fn unusable(path: &Path, source: io::Error) -> InputError {
    InputError::Unusable {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked(content: &[u8]) -> LockedInput {
        LockedInput {
            name: "test".into(),
            version: "1".into(),
            file: "cocoon-test-input_1_all.deb".into(),
            bytes: content.len() as u64,
            sha256: Digest32::of(content),
            pool: "pool/main/c/cocoon-test-input".into(),
        }
    }

    #[test]
    fn the_given_folder_comes_before_the_cache() {
        let (given, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let input = locked(b"content");
        fs::create_dir(cache.path().join("inputs")).unwrap();
        let cached = cache.path().join("inputs").join(&input.file);
        fs::write(&cached, b"content").unwrap();
        assert_eq!(find(&input, Some(given.path()), cache.path()).unwrap(), cached);
        let own = given.path().join(&input.file);
        fs::write(&own, b"content").unwrap();
        assert_eq!(find(&input, Some(given.path()), cache.path()).unwrap(), own);
    }

    #[test]
    fn another_content_or_a_truncated_one_is_refused() {
        let cache = tempfile::tempdir().unwrap();
        let given = tempfile::tempdir().unwrap();
        let input = locked(b"content");
        for content in [b"CONTENT".as_slice(), b"conten", b""] {
            fs::write(given.path().join(&input.file), content).unwrap();
            let error = find(&input, Some(given.path()), cache.path()).unwrap_err();
            assert!(matches!(error, InputError::WrongContent { .. }), "{error}");
        }
    }

    #[test]
    fn a_missing_input_is_named_with_its_hash_and_its_place() {
        let cache = tempfile::tempdir().unwrap();
        let input = locked(b"content");
        let text = find(&input, None, cache.path()).unwrap_err().to_string();
        for part in [&input.file, &input.sha256.to_string(), "COCOON_INPUTS"] {
            assert!(text.contains(part), "{text}");
        }
        let left = fs::read_dir(cache.path().join("inputs")).unwrap().count();
        assert_eq!(left, 0);
    }
}
