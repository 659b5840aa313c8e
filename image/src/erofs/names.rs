//! The names of a file system: which directories and files there are, without what the files hold.

use std::collections::BTreeMap;

const NAME_BYTES_MAX: usize = 255;
const S_IFREG: u32 = 0o100_000;

/// Every directory and file, in the order of the names.
#[derive(Debug, Default)]
pub struct Names {
    pub(super) root: Directory,
    files: usize,
}

pub(super) type Directory = BTreeMap<String, Node>;

#[derive(Debug)]
pub(super) enum Node {
    Directory(Directory),
    File(NamedFile),
}

#[derive(Debug)]
pub(super) struct NamedFile {
    /// `st_mode`.
    pub(super) mode: u32,
    pub(super) bytes: u64,
    /// How many files were added before.
    pub(super) number: usize,
}

/// Why a path cannot be added.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} cannot be in the file system: {reason}")]
pub struct PathError {
    path: String,
    reason: &'static str,
}

impl PathError {
    fn new(path: &str, reason: &'static str) -> Self {
        Self {
            path: path.to_owned(),
            reason,
        }
    }
}

impl Names {
    /// Adds a directory, mode 0755, with its parents.
    ///
    /// # Errors
    /// The path is not absolute and plain, or a file is in the way.
    pub fn add_directory(&mut self, path: &str) -> Result<(), PathError> {
        self.directory(path, &parts(path)?).map(|_| ())
    }

    /// Adds a file with the given permission bits; its parents get mode 0755. Returns how many files were added
    /// before.
    ///
    /// # Errors
    /// The path is not absolute and plain, or taken.
    pub fn add_file(&mut self, path: &str, permissions: u32, bytes: u64) -> Result<usize, PathError> {
        let parts = parts(path)?;
        let number = self.files;
        let (name, parents) = parts.split_last().expect("a path has at least one part");
        let directory = self.directory(path, parents)?;
        if directory.contains_key(*name) {
            return Err(PathError::new(path, "it is there already"));
        }
        let mode = S_IFREG | (permissions & 0o777);
        let file = NamedFile { mode, bytes, number };
        directory.insert((*name).to_owned(), Node::File(file));
        self.files += 1;
        Ok(number)
    }

    fn directory(&mut self, path: &str, parts: &[&str]) -> Result<&mut Directory, PathError> {
        let mut directory = &mut self.root;
        for name in parts {
            let node = directory
                .entry((*name).to_owned())
                .or_insert_with(|| Node::Directory(Directory::new()));
            let Node::Directory(next) = node else {
                return Err(PathError::new(path, "a part of it is a file"));
            };
            directory = next;
        }
        Ok(directory)
    }
}

/// The names of an absolute path; at least one.
fn parts(path: &str) -> Result<Vec<&str>, PathError> {
    let Some(relative) = path.strip_prefix('/') else {
        return Err(PathError::new(path, "it is not absolute"));
    };
    for name in relative.split('/') {
        let reason = match name {
            "" | "." | ".." => "its parts have to be plain names",
            _ if name.contains('\0') => "it has a zero byte",
            _ if name.len() > NAME_BYTES_MAX => "a part of it is longer than 255 bytes",
            _ => continue,
        };
        return Err(PathError::new(path, reason));
    }
    Ok(relative.split('/').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_paths_are_refused() {
        let mut names = Names::default();
        let mut add = |path: &str| names.add_file(path, 0o644, 0);
        for path in ["", "a", "/", "/a/", "//a", "/./a", "/a/../b", "/a\0b"] {
            assert!(add(path).is_err(), "{path:?}");
        }
        assert!(add(&format!("/{}", "x".repeat(256))).is_err());
        assert_eq!(add("/a"), Ok(0));
        assert!(add("/a").is_err(), "twice");
        assert!(add("/a/b").is_err(), "below a file");
        assert_eq!(add("/b"), Ok(1));
        assert!(names.add_directory("/a").is_err(), "a directory over a file");
    }
}
