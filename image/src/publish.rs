//! Lets a result appear under its name only when it is complete.

use std::{
    fs::{self, File, FileType},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tempfile::{NamedTempFile, TempDir};

/// How names of folders begin that a build works in and removes when it ends.
pub const WORK_PREFIX: &str = ".work-";

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
    /// The folder itself, locked as long as somebody works here.
    _held: File,
}

impl WorkFolder {
    /// Makes one in `parent` whose name begins with `prefix`, and removes those that nobody works in any more.
    ///
    /// # Errors
    /// The file system's.
    pub fn new(parent: &Path, prefix: &str) -> io::Result<Self> {
        remove_left(parent, prefix, FileType::is_dir)?;
        loop {
            let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?;
            let held = match File::open(folder.path()) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                opened => opened?,
            };
            // NFS locks no folders: there nobody can tell what was left, and nothing is removed.
            let _ = held.lock();
            // Somebody else may have removed it before it was locked.
            if folder.path().exists() {
                return Ok(Self { folder, _held: held });
            }
        }
    }

    /// Where to work.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A file to write in `parent` whose name begins with `prefix`, readable for all, for programs that may run at the same
/// time. It is removed when dropped, or by the next that starts beside it if this program is killed.
///
/// # Errors
/// The file system's.
pub fn work_file(parent: &Path, prefix: &str) -> io::Result<NamedTempFile> {
    remove_left(parent, prefix, FileType::is_file)?;
    loop {
        let file = tempfile::Builder::new().prefix(prefix).tempfile_in(parent)?;
        make_readable(file.as_file())?;
        file.as_file().lock()?;
        // Somebody else may have removed it before it was locked.
        if file.path().exists() {
            return Ok(file);
        }
    }
}

/// Lets everybody read a file, whatever the umask: who runs an image need not be who built it.
///
/// # Errors
/// The file system's.
pub fn make_readable(file: &File) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

fn remove_left(parent: &Path, prefix: &str, is_wanted: fn(&FileType) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let is_named = entry.file_name().to_string_lossy().starts_with(prefix);
        if !is_named || !is_wanted(&entry.file_type()?) {
            continue;
        }
        match remove_if_let_go(&entry.path()) {
            // Finished or removed by another, or another user's.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {}
            removed => removed?,
        }
    }
    Ok(())
}

/// Whoever works on something holds its lock; a killed program lets go of it.
fn remove_if_let_go(path: &Path) -> io::Result<()> {
    let left = File::open(path)?;
    if left.try_lock().is_err() {
        return Ok(());
    }
    if left.metadata()?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
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
    work: WorkFolder,
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
        let work = WorkFolder::new(parent, &prefix).map_err(failed)?;
        fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755)).map_err(failed)?;
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
        // An old image is then the temporary folder, which is removed when dropped.
        replace(self.work.path(), &self.target).map_err(|source| write_error(&self.target, source))
    }
}

/// Gives a finished file or folder its name in one step. What had the name then has that of the new one: in a work
/// folder it is removed with the rest.
///
/// # Errors
/// The file system's. What was there before is then still there.
pub fn replace(new: &Path, path: &Path) -> io::Result<()> {
    if !path.exists() {
        // File systems that cannot exchange, such as NFS, can at least do this.
        return fs::rename(new, path);
    }
    Ok(renameat2(
        AT_FDCWD,
        new,
        AT_FDCWD,
        path,
        RenameFlags::RENAME_EXCHANGE,
    )?)
}

/// Writes a file that is under its name only when it is complete; an older one is replaced.
///
/// # Errors
/// The folder's or the disk's. What was there before is then still there.
pub fn file(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path
        .parent()
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "no file name"))?;
    let mut new = tempfile::Builder::new().prefix(".partial-").tempfile_in(folder)?;
    make_readable(new.as_file())?;
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

        let WorkFolder { folder, _held: held } = Staging::beside(&target).unwrap().work;
        let left = folder.keep();
        // As if this program were killed.
        drop(held);
        assert!(left.exists());
        drop(Staging::beside(&target).unwrap());
        assert_eq!(names(dir.path()), ["image"]);
        assert_eq!(fs::read_to_string(target.join("manifest.json")).unwrap(), "old");
    }

    /// Two caches, one place for the image: neither build knows of the other.
    #[test]
    fn two_builds_of_one_image_leave_each_other_alone_and_the_last_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("image");
        let [first, second] = [(); 2].map(|()| Staging::beside(&target).unwrap());
        for (staging, content) in [(&second, "second"), (&first, "first")] {
            fs::write(staging.path().join("manifest.json"), content).unwrap();
        }
        second.publish().unwrap();
        first.publish().unwrap();
        assert_eq!(fs::read_to_string(target.join("manifest.json")).unwrap(), "first");
        assert_eq!(names(dir.path()), ["image"]);
    }

    /// Somebody who believes the name finds the old or the new one whole, whenever a build is killed.
    #[test]
    fn what_was_under_the_name_is_removed_only_with_the_work_folder() {
        let cache = tempfile::tempdir().unwrap();
        let work = tempfile::Builder::new()
            .prefix(WORK_PREFIX)
            .tempdir_in(cache.path())
            .unwrap();
        let (new, path) = (work.path().join("done"), cache.path().join("part"));
        for content in ["old", "new"] {
            fs::create_dir(&new).unwrap();
            fs::write(new.join("file"), content).unwrap();
            replace(&new, &path).unwrap();
            if content == "old" {
                assert!(!new.exists());
            }
        }
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "new");
        assert_eq!(fs::read_to_string(new.join("file")).unwrap(), "old");
        // A part may be a single file, too.
        replace(&new.join("file"), &path.join("file")).unwrap();
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "old");
        drop(work);
        assert_eq!(names(cache.path()), ["part"]);
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
        for name in [".verify-killed", ".other"] {
            fs::create_dir_all(dir.path().join(name).join("image")).unwrap();
        }
        let first = WorkFolder::new(dir.path(), ".verify-").unwrap();
        assert!(!dir.path().join(".verify-killed").exists());
        let second = WorkFolder::new(dir.path(), ".verify-").unwrap();
        assert!(first.path().is_dir() && second.path().is_dir());
        drop((first, second));
        assert_eq!(names(dir.path()), [".other"]);
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
