//! Finds locked inputs. In this order: a folder that the user names, the cache, the pools of the system's
//! configured Debian mirrors and Debian's archive of old versions (for a wheel: pip's configured index), a bundle
//! of the user's own. Where a file comes from does not matter, its hash does.

mod bundle;
mod fetch;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use cocoon_evidence::Digest32;
use sha2::{Digest as _, Sha256};

pub use self::{
    bundle::{BUNDLE_SUMS, write_bundle},
    fetch::debian_mirrors,
};
use crate::{
    command::CommandError,
    lock::{Kind, LockedInput},
    publish::WorkFolder,
};

/// Debian's own archive of everything that was ever in a suite.
pub const DEBIAN_ARCHIVE: &str = "https://snapshot.debian.org";

/// Where inputs may come from.
#[derive(Debug)]
pub struct Sources {
    /// A folder that is searched first and never written.
    pub given: Option<PathBuf>,
    /// What is fetched is kept in its folder `inputs`.
    pub cache: PathBuf,
    /// Address of a snapshot archive of Debian.
    pub archive: String,
    /// The time of the snapshot.
    pub snapshot: String,
    /// Address of a folder made by [`write_bundle`].
    pub bundle: Option<String>,
    /// apt is asked once.
    mirrors: OnceLock<Vec<String>>,
}

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
    /// A file cannot be read, copied or moved.
    #[error("cannot use {}", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is nowhere.
    #[error(
        "{file} (SHA-256 {sha256}) is not at hand, and nothing that was asked has {wanted}; put the file into {} or \
         name its folder in COCOON_INPUTS{reasons}",
        folder.display()
    )]
    Missing {
        /// The file's name.
        file: String,
        /// The locked hash.
        sha256: Digest32,
        /// What its publishers were asked for.
        wanted: Box<str>,
        /// Where it may be put.
        folder: Box<Path>,
        /// What each address answered, ready for printing.
        reasons: Box<str>,
    },
}

impl Sources {
    /// The usual places.
    pub fn new(given: Option<PathBuf>, cache: &Path, snapshot: &str) -> Self {
        Self {
            given,
            cache: cache.to_owned(),
            archive: DEBIAN_ARCHIVE.to_owned(),
            snapshot: snapshot.to_owned(),
            bundle: None,
            mirrors: OnceLock::new(),
        }
    }

    /// A file with the locked content on this machine, if there is one.
    ///
    /// # Errors
    /// [`InputError::WrongContent`]: something else has its name.
    pub fn at_hand(&self, input: &LockedInput) -> Result<Option<PathBuf>, InputError> {
        let found = self.named(&input.file)?;
        if let Some(path) = &found {
            check(input, path)?;
        }
        Ok(found)
    }

    /// The first file of this name in the folders of this machine, whatever its content.
    pub(crate) fn named(&self, file: &str) -> Result<Option<PathBuf>, InputError> {
        let folders = self.given.iter().cloned().chain([self.folder()]);
        for path in folders.map(|folder| folder.join(file)) {
            if path.try_exists().map_err(|source| unusable(&path, source))? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// The path of a file with the locked content, downloaded if need be.
    ///
    /// # Errors
    /// See [`InputError`]. Nothing incomplete is then under the input's name.
    pub fn find(&self, input: &LockedInput) -> Result<PathBuf, InputError> {
        match self.at_hand(input)? {
            Some(path) => Ok(path),
            None => self.download(input),
        }
    }

    /// Downloads into a folder of its own, so that an interrupted download leaves nothing under the final name.
    ///
    /// A pool holds a file as long as any suite needs it, so this works on a system whose own suite does not
    /// have the package.
    fn download(&self, input: &LockedInput) -> Result<PathBuf, InputError> {
        let folder = self.folder();
        fs::create_dir_all(&folder).map_err(|source| unusable(&folder, source))?;
        let work = WorkFolder::new(&folder, ".download-").map_err(|source| unusable(&folder, source))?;
        let fetched = work.path().join(&input.file);
        let mut reasons = String::new();
        let mut answered = |answer: Result<(), CommandError>| {
            answer.map_err(|error| reasons += &format!("\n{error}")).is_ok()
        };
        let mut addresses = self.addresses(input).into_iter();
        let found = (input.kind == Kind::Wheel && answered(fetch::wheel(input, work.path())))
            || addresses.any(|address| answered(fetch::from_address(&address, input, &fetched)));
        if !found {
            return Err(self.missing(input, &reasons));
        }
        if !fetched.is_file() {
            return Err(self.missing(input, "\npip fetched another file"));
        }
        check(input, &fetched)?;
        let path = folder.join(&input.file);
        let kept = File::open(&fetched).and_then(|file| file.sync_all());
        kept.and_then(|()| fs::rename(&fetched, &path))
            .map_err(|source| unusable(&path, source))?;
        Ok(path)
    }

    /// The error that says where an input may be put.
    pub fn missing(&self, input: &LockedInput, reasons: &str) -> InputError {
        InputError::Missing {
            file: input.file.clone(),
            sha256: input.sha256,
            wanted: match input.kind {
                Kind::Debian => format!("{}/{}", input.pool, input.file).into(),
                Kind::Wheel => format!("the wheel {} {}", input.name, input.version).into(),
            },
            folder: self.folder().into(),
            reasons: reasons.into(),
        }
    }

    fn addresses(&self, input: &LockedInput) -> Vec<String> {
        let LockedInput { pool, file, .. } = input;
        let bundle = self.bundle.iter().map(|bundle| format!("{bundle}/{file}"));
        if input.kind == Kind::Wheel {
            return bundle.collect();
        }
        // Without apt there are no mirrors; the other addresses may still do.
        let mirrors = self.mirrors.get_or_init(|| fetch::mirrors().unwrap_or_default());
        let mut addresses: Vec<_> = mirrors
            .iter()
            .map(|mirror| format!("{mirror}{pool}/{file}"))
            .collect();
        // The archive finds a file by the time at which a suite had it, or by its hash.
        let archived = match &input.archive_sha1 {
            Some(sha1) => format!("{}/file/{sha1}", self.archive),
            None => format!("{}/archive/debian/{}/{pool}/{file}", self.archive, self.snapshot),
        };
        addresses.push(archived);
        addresses.extend(bundle);
        addresses
    }

    /// Where what was fetched is kept, and what is given may be put.
    pub(crate) fn folder(&self) -> PathBuf {
        self.cache.join("inputs")
    }
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

pub(crate) fn unusable(path: &Path, source: io::Error) -> InputError {
    InputError::Unusable {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
