//! Lets a result appear under its name only when it is complete.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tempfile::{NamedTempFile, TempDir};

/// How names of folders begin that a build works in and removes when it ends.
pub const WORK_PREFIX: &str = ".work-";
/// In a [`WorkFolder`], the file that whoever works there holds a lock on.
const HELD: &str = "held";

/// Removes what killed builds left in a folder of the cache. The caller holds the cache's lock, so nobody works
/// there.
///
/// # Errors
/// The folder cannot be read, or something in it not be removed.
pub fn remove_killed(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(WORK_PREFIX) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// A folder to work in, for programs that may run at the same time. It is removed when dropped, or by the next that
/// starts beside it if this program is killed.
#[derive(Debug)]
pub struct WorkFolder {
    folder: TempDir,
    /// Held as long as somebody works here; a killed program lets go of it.
    _held: File,
}

impl WorkFolder {
    /// Makes one in `parent` whose name begins with `prefix`, and removes those that nobody works in any more.
    ///
    /// # Errors
    /// The file system's.
    pub fn new(parent: &Path, prefix: &str) -> io::Result<Self> {
        // Between making a folder and holding it, nobody may look.
        let gate = File::create(parent.join(format!("{prefix}lock")))?;
        gate.lock()?;
        for entry in fs::read_dir(parent)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(prefix) && entry.file_type()?.is_dir() {
                remove_if_left(&entry.path())?;
            }
        }
        let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?;
        let held = File::create(folder.path().join(HELD))?;
        held.lock()?;
        Ok(Self { folder, _held: held })
    }

    /// Where to work.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

fn remove_if_left(folder: &Path) -> io::Result<()> {
    let left = match File::open(folder.join(HELD)) {
        Ok(held) => held.try_lock().is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if left { fs::remove_dir_all(folder) } else { Ok(()) }
}

/// A file to write in `parent` whose name begins with `prefix`, readable for all, for programs that may run at the same
/// time. It is removed when dropped, or by the next that starts beside it if this program is killed.
///
/// # Errors
/// The file system's.
pub fn work_file(parent: &Path, prefix: &str) -> io::Result<NamedTempFile> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) && entry.file_type()?.is_file() {
            remove_if_let_go(&entry.path())?;
        }
    }
    loop {
        let file = tempfile::Builder::new()
            .prefix(prefix)
            .permissions(fs::Permissions::from_mode(0o644))
            .tempfile_in(parent)?;
        file.as_file().lock()?;
        // Somebody else may have removed it before it was locked.
        if file.path().exists() {
            return Ok(file);
        }
    }
}

/// Whoever works on a file holds its lock; a killed program lets go of it.
fn remove_if_let_go(path: &Path) -> io::Result<()> {
    let removed = match File::open(path) {
        Ok(file) if file.try_lock().is_ok() => fs::remove_file(path),
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    match removed {
        // Finished, or removed by another.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Why a result is not under its name.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The folder cannot be made, filled or renamed.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else is there.
    #[error("{} is there and holds no manifest.json: it is not replaced; give another --out", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
    },
}

/// A folder being filled, beside the place where it will appear.
#[derive(Debug)]
pub struct Staging {
    target: PathBuf,
    work: TempDir,
}

impl Staging {
    /// Starts a folder that will replace `target`, which has to be absent, empty or an older image.
    /// Removes what killed runs left beside it.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn beside(target: &Path) -> Result<Self, PublishError> {
        let target = std::path::absolute(target).map_err(|source| write_error(target, source))?;
        let is_empty = || Ok(fs::read_dir(&target)?.next().is_none());
        if target.exists()
            && !target.join("manifest.json").is_file()
            && !is_empty().map_err(|source| write_error(&target, source))?
        {
            return Err(PublishError::Foreign { path: target });
        }
        let (parent, name) = (target.parent(), target.file_name());
        let (Some(parent), Some(name)) = (parent, name) else {
            return Err(PublishError::Foreign { path: target });
        };
        let failed = |source| write_error(parent, source);
        fs::create_dir_all(parent).map_err(failed)?;
        let prefix = format!(".{}.partial-", name.to_string_lossy());
        for entry in fs::read_dir(parent).map_err(failed)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                fs::remove_dir_all(entry.path()).map_err(|source| write_error(&entry.path(), source))?;
            }
        }
        let work = tempfile::Builder::new()
            .prefix(&prefix)
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(parent)
            .map_err(failed)?;
        Ok(Self { target, work })
    }

    /// The folder to be filled.
    pub fn path(&self) -> &Path {
        self.work.path()
    }

    /// Puts the folder in its place in one step; what was there is removed.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn publish(self) -> Result<(), PublishError> {
        let (work, target) = (self.work.path(), &self.target);
        if target.exists() {
            // After the exchange the old image is in the temporary folder, which is removed when dropped.
            renameat2(AT_FDCWD, work, AT_FDCWD, target, RenameFlags::RENAME_EXCHANGE)
        } else {
            renameat2(AT_FDCWD, work, AT_FDCWD, target, RenameFlags::RENAME_NOREPLACE)
        }
        .map_err(|errno| write_error(target, errno.into()))
    }
}

/// Writes a file that is under its name only when it is complete; an older one is replaced.
///
/// # Errors
/// The folder's or the disk's. What was there before is then still there.
pub fn file(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path
        .parent()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no file name"))?;
    let mut new = tempfile::Builder::new()
        .prefix(".partial-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    new.write_all(content)?;
    new.as_file().sync_all()?;
    new.persist(path)?;
    Ok(())
}

fn write_error(path: &Path, source: io::Error) -> PublishError {
    PublishError::Write {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_is_under_the_name_before_publishing_and_only_the_new_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("deep/image");
        for content in ["first", "second"] {
            let staging = Staging::beside(&target).unwrap();
            fs::write(staging.path().join("manifest.json"), content).unwrap();
            if content == "first" {
                assert!(!target.exists());
            }
            staging.publish().unwrap();
            assert_eq!(fs::read_to_string(target.join("manifest.json")).unwrap(), content);
            assert_eq!(names(target.parent().unwrap()), ["image"]);
        }
    }

    #[test]
    fn a_run_that_fails_or_is_killed_leaves_the_old_image() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("image");
        let staging = Staging::beside(&target).unwrap();
        fs::write(staging.path().join("manifest.json"), "old").unwrap();
        staging.publish().unwrap();

        let killed = Staging::beside(&target).unwrap();
        let left = killed.work.keep();
        assert!(left.exists());
        drop(Staging::beside(&target).unwrap());
        assert_eq!(names(dir.path()), ["image"]);
        assert_eq!(fs::read_to_string(target.join("manifest.json")).unwrap(), "old");
    }

    #[test]
    fn only_what_killed_builds_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".work-1", "finished", ".download-1"] {
            fs::create_dir_all(dir.path().join(name).join("deep")).unwrap();
        }
        remove_killed(dir.path()).unwrap();
        assert_eq!(names(dir.path()), [".download-1", "finished"]);
    }

    #[test]
    fn a_work_folder_is_removed_by_the_next_only_when_nobody_works_there() {
        let dir = tempfile::tempdir().unwrap();
        let killed = dir.path().join(".verify-killed");
        for name in [".verify-killed", ".verify-before-it-was-held", ".other"] {
            fs::create_dir_all(dir.path().join(name).join("image")).unwrap();
        }
        fs::write(killed.join(HELD), "").unwrap();
        let first = WorkFolder::new(dir.path(), ".verify-").unwrap();
        assert!(!killed.exists());
        let second = WorkFolder::new(dir.path(), ".verify-").unwrap();
        assert!(first.path().is_dir() && second.path().is_dir());
        drop((first, second));
        assert_eq!(names(dir.path()), [".other", ".verify-lock"]);
    }

    #[test]
    fn a_work_file_is_removed_by_the_next_only_when_nobody_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".volume-killed", ".other", "model.img"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join(".volume-folder")).unwrap();
        let first = work_file(dir.path(), ".volume-").unwrap();
        assert!(!dir.path().join(".volume-killed").exists());
        let second = work_file(dir.path(), ".volume-").unwrap();
        assert!(first.path().is_file() && second.path().is_file());
        first.persist(dir.path().join("model.img")).unwrap();
        drop(second);
        drop(work_file(dir.path(), ".volume-").unwrap());
        assert_eq!(names(dir.path()), [".other", ".volume-folder", "model.img"]);
    }

    #[test]
    fn a_folder_that_is_no_image_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("letter.txt"), "dear").unwrap();
        let error = Staging::beside(dir.path()).unwrap_err();
        assert!(matches!(error, PublishError::Foreign { .. }), "{error}");
    }
}
