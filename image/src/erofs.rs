//! Uncompressed EROFS file systems: always the same bytes for the same tree, and none but those are read back.
//!
//! A tree is built entry by entry, never from a host folder: modes, owners, times and order do not depend on
//! the machine. Owner is 0:0 and every time is 0. [`Layout`] says where everything lies.

mod layout;
mod names;
mod read;
mod write;

use cocoon_evidence::Digest32;

pub use self::{
    layout::{Inode, Layout},
    names::{Names, PathError},
    read::{FormError, read},
    write::{Content, Tree, WriteError},
};

/// One entry of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Absolute path.
    pub path: String,
    /// `st_mode`.
    pub mode: u32,
    /// Length of the content, 0 for a directory.
    pub bytes: u64,
    /// Of the content, of nothing for a directory.
    pub sha256: Digest32,
}

#[cfg(test)]
mod tests;
