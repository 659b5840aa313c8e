//! Keeps what the guest runs and serves in memory, so that its disks are read before `ready` and never after.
//!
//! A page that is read from a disk when it is first touched tells the host that it was touched: which expert of a
//! model, which branch of a library, and so something of the prompt. Every file of a volume is therefore read
//! once, through dm-verity, and locked: the kernel then drops none of its pages, whoever maps the file later.

#![allow(
    unsafe_code,
    reason = "files are mapped, which the type system cannot see shrink"
)]

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use memmap2::Mmap;

/// More files than any image or model has; what is beyond is no volume of ours.
const FILES_MAX: usize = 4096;

/// Locked files; unlocked when dropped.
#[derive(Default)]
pub struct Resident {
    files: Vec<Mmap>,
}

/// Why a volume is not in memory.
#[derive(Debug, thiserror::Error)]
pub enum ResidentError {
    /// A file or folder cannot be read, or the memory is not there.
    #[error(
        "{} cannot be kept in memory: {source}; if the memory does not suffice, give the guest more",
        path.display()
    )]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Over `FILES_MAX`.
    #[error("there are more than {FILES_MAX} files in the volume of {}", path.display())]
    TooMany {
        /// Where they are.
        path: PathBuf,
    },
}

impl Resident {
    /// Locks every file of the volume that `top` lies on, from there downwards. Links and other volumes mounted
    /// below are left out.
    ///
    /// # Errors
    /// See [`ResidentError`].
    pub fn lock(&mut self, top: &Path) -> Result<(), ResidentError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ResidentError::File { path, source }
        };
        let volume = fs::symlink_metadata(top).map_err(failed(top))?.dev();
        let mut waiting = vec![top.to_owned()];
        while let Some(path) = waiting.pop() {
            let metadata = fs::symlink_metadata(&path).map_err(failed(&path))?;
            if metadata.dev() != volume {
                continue;
            }
            if metadata.is_dir() {
                for entry in fs::read_dir(&path).map_err(failed(&path))? {
                    waiting.push(entry.map_err(failed(&path))?.path());
                }
            } else if metadata.is_file() && metadata.len() > 0 {
                self.files.push(lock_file(&path).map_err(failed(&path))?);
            }
            if waiting.len() + self.files.len() > FILES_MAX {
                let path = top.to_owned();
                return Err(ResidentError::TooMany { path });
            }
        }
        Ok(())
    }

    /// How much is locked.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len() as u64).sum()
    }
}

fn lock_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the mapping is never read here; the file lies on a read-only volume under dm-verity.
    let mapped = unsafe { Mmap::map(&file)? };
    // Reads every page and keeps it; the bytes themselves are the kernel's to look at.
    mapped.lock()?;
    Ok(mapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked_kib() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmLck:"))
            .unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    #[test]
    fn every_file_below_is_locked_until_the_end_and_links_are_not_followed() {
        let volume = tempfile::tempdir().unwrap();
        let inner = volume.path().join("lib/inner");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("code"), vec![1; 3 * 4096]).unwrap();
        fs::write(volume.path().join("weights"), vec![2; 4096]).unwrap();
        fs::write(volume.path().join("empty"), []).unwrap();
        std::os::unix::fs::symlink("/proc", volume.path().join("elsewhere")).unwrap();
        let before = locked_kib();
        let mut resident = Resident::default();
        resident.lock(volume.path()).unwrap();
        assert_eq!((resident.bytes(), locked_kib() - before), (4 * 4096, 16));
        drop(resident);
        assert_eq!(locked_kib(), before);
    }

    #[test]
    fn a_volume_that_cannot_be_read_is_named() {
        let error = Resident::default()
            .lock(Path::new("/no/such/volume"))
            .unwrap_err();
        assert!(
            error.to_string().starts_with("/no/such/volume cannot be kept"),
            "{error}"
        );
    }
}
