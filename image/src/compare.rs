//! Compares two finished images, byte by byte, and says where they differ first.
//!
//! One of them is somebody's claim: its manifest is believed only for where to look. What is compared are the
//! files' bytes. Content of the root's files lies where [`crate::erofs`] puts it: last before the hash tree, in
//! path order, each from a block boundary.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
};

use cocoon_measurements::{FileEntry, Manifest, ManifestError};
use serde_json::Value;

use crate::verity::BLOCK_BYTES;

const MANIFEST: &str = "manifest.json";
const BUFFER_BYTES: usize = 1 << 20;
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;

/// How one file of the first image stands to that of the second.
#[derive(Debug, PartialEq, Eq)]
pub struct Compared {
    /// Its name in the image's folder.
    pub file: String,
    /// None: they are the same.
    pub difference: Option<Difference>,
}

/// What differs.
#[derive(Debug, PartialEq, Eq)]
pub enum Difference {
    /// From the first to the last differing byte; to the end of the longer one, if one is longer.
    Bytes {
        /// In the whole file.
        range: Range<u64>,
        /// In the root file system.
        inside: Option<Inside>,
    },
    /// A field of the manifest.
    Field(String),
    /// The first image has it and the second does not.
    Alone,
}

/// A place in a root file system.
#[derive(Debug, PartialEq, Eq)]
pub enum Inside {
    /// In a file's content.
    File {
        /// Absolute path in the guest.
        path: String,
        /// None: only one of the images has the file.
        range: Option<Range<u64>>,
    },
    /// Superblock, inodes or directories.
    Metadata,
    /// The dm-verity tree.
    HashTree,
}

/// Why images cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// A manifest.
    #[error("there is no usable image in {}", folder.display())]
    Manifest {
        /// Of the image.
        folder: PathBuf,
        /// Why.
        source: Box<ManifestError>,
    },
    /// A file.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl fmt::Display for Compared {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, difference } = self;
        match difference {
            None => write!(to, "{file}: the same"),
            Some(Difference::Alone) => write!(to, "{file}: DIFFERS, only one image has it"),
            // Names in a manifest are anybody's: a terminal must not be told what to do.
            Some(Difference::Field(field)) => write!(to, "{file}: DIFFERS in {}", field.escape_debug()),
            Some(Difference::Bytes { range, inside }) => {
                write!(
                    to,
                    "{file}: DIFFERS in bytes {} to {}",
                    range.start,
                    range.end - 1
                )?;
                match inside {
                    None => Ok(()),
                    Some(Inside::Metadata) => write!(to, ", first in the file system's metadata"),
                    Some(Inside::HashTree) => write!(to, ", first in the hash tree"),
                    Some(Inside::File { path, range: None }) => {
                        write!(to, ", first {}: only one has it", path.escape_debug())
                    }
                    Some(Inside::File {
                        path,
                        range: Some(range),
                    }) => {
                        let (path, last) = (path.escape_debug(), range.end - 1);
                        write!(to, ", first {path}, bytes {} to {last}", range.start)
                    }
                }
            }
        }
    }
}

/// Compares all artifacts that the first image's manifest names, then the manifests.
///
/// # Errors
/// See [`CompareError`].
pub fn compare(left: &Path, right: &Path) -> Result<Vec<Compared>, CompareError> {
    let (one, other) = (Image::load(left)?, Image::load(right)?);
    let mut all = Vec::new();
    for (name, artifact) in one.manifest.artifacts.named() {
        let mut counterparts = other.manifest.artifacts.named();
        let Some((_, counterpart)) = counterparts.find(|(other, _)| *other == name) else {
            all.push(Compared {
                file: artifact.file.clone(),
                difference: Some(Difference::Alone),
            });
            continue;
        };
        let (a, b) = (
            one.folder.join(&artifact.file),
            other.folder.join(&counterpart.file),
        );
        let range = differing(open(&a)?, open(&b)?).map_err(|source| read_error(&a, source))?;
        let difference = match range {
            None => None,
            Some(range) if name == "root" => {
                let inside = inside(&one, &other, &a, &b, range.start)?;
                Some(Difference::Bytes {
                    range,
                    inside: Some(inside),
                })
            }
            Some(range) => Some(Difference::Bytes { range, inside: None }),
        };
        all.push(Compared {
            file: artifact.file.clone(),
            difference,
        });
    }
    // The origin is no part of the image: a later commit that changes no input gives the same one.
    let value = |image: &Image| {
        let origin = None;
        let manifest = Manifest {
            origin,
            ..image.manifest.clone()
        };
        serde_json::to_value(&manifest).expect("plain data")
    };
    all.push(Compared {
        file: MANIFEST.into(),
        difference: differing_field(&value(&one), &value(&other)).map(Difference::Field),
    });
    Ok(all)
}

struct Image {
    folder: PathBuf,
    manifest: Manifest,
}

impl Image {
    fn load(folder: &Path) -> Result<Self, CompareError> {
        let manifest = Manifest::load(&folder.join(MANIFEST)).map_err(|source| CompareError::Manifest {
            folder: folder.to_owned(),
            source: Box::new(source),
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            manifest,
        })
    }

    fn entry(&self, path: &str) -> Option<&FileEntry> {
        self.manifest.files.iter().find(|entry| entry.path == path)
    }

    /// Where each file's content begins, as far as the manifest makes sense, and the first of them.
    fn contents(&self) -> (Vec<(&FileEntry, u64)>, u64) {
        let files = self.manifest.files.iter();
        let mut files: Vec<_> = files.filter(|entry| entry.mode.0 & S_IFMT == S_IFREG).collect();
        files.sort_by(|a, b| a.path.split('/').cmp(b.path.split('/')));
        let mut next = self.tree_start();
        let mut found = Vec::new();
        for entry in files.into_iter().rev() {
            let blocks = entry.bytes.div_ceil(BLOCK_BYTES as u64);
            let Some(start) = blocks
                .checked_mul(BLOCK_BYTES as u64)
                .and_then(|bytes| next.checked_sub(bytes))
            else {
                break;
            };
            next = start;
            found.push((entry, start));
        }
        (found, next)
    }

    fn tree_start(&self) -> u64 {
        self.manifest
            .root_verity
            .data_blocks
            .saturating_mul(BLOCK_BYTES as u64)
    }

    fn start_of(&self, path: &str) -> Option<u64> {
        let (contents, _) = self.contents();
        contents
            .iter()
            .find(|(entry, _)| entry.path == path)
            .map(|(_, start)| *start)
    }

    /// What lies at an offset of the root.
    fn at(&self, offset: u64) -> Inside {
        if offset >= self.tree_start() {
            return Inside::HashTree;
        }
        let (contents, _) = self.contents();
        let holder = contents.iter().find(|(_, start)| *start <= offset);
        holder.map_or(Inside::Metadata, |(entry, start)| Inside::File {
            path: entry.path.clone(),
            range: Some(offset - start..offset - start + 1),
        })
    }
}

/// The first file in which two roots differ. A file that is longer in one moves all that follow, so the lists are
/// asked first; where they agree, one of the manifests is not true, and the offset decides.
fn inside(one: &Image, other: &Image, a: &Path, b: &Path, offset: u64) -> Result<Inside, CompareError> {
    let paths = one.manifest.files.iter().chain(&other.manifest.files);
    let changed = paths
        .map(|entry| entry.path.as_str())
        .find(|path| one.entry(path) != other.entry(path));
    let Some(path) = changed else {
        return Ok(one.at(offset));
    };
    let (Some(x), Some(y)) = (one.entry(path), other.entry(path)) else {
        return Ok(Inside::File {
            path: path.to_owned(),
            range: None,
        });
    };
    let (Some(from), Some(to)) = (one.start_of(path), other.start_of(path)) else {
        return Ok(one.at(offset));
    };
    let range =
        differing(part(a, from, x.bytes)?, part(b, to, y.bytes)?).map_err(|source| read_error(a, source))?;
    Ok(match range {
        // Only its mode differs, or the list says something untrue.
        None => one.at(offset),
        range => Inside::File {
            path: path.to_owned(),
            range,
        },
    })
}

fn open(path: &Path) -> Result<File, CompareError> {
    File::open(path).map_err(|source| read_error(path, source))
}

fn part(path: &Path, start: u64, bytes: u64) -> Result<impl Read, CompareError> {
    let mut file = open(path)?;
    file.seek(SeekFrom::Start(start))
        .map_err(|source| read_error(path, source))?;
    Ok(file.take(bytes))
}

/// From the first to the last difference; none if both are the same.
fn differing(a: impl Read, b: impl Read) -> io::Result<Option<Range<u64>>> {
    let mut a = BufReader::with_capacity(BUFFER_BYTES, a);
    let mut b = BufReader::with_capacity(BUFFER_BYTES, b);
    let (mut at, mut found) = (0, None::<Range<u64>>);
    loop {
        let (x, y) = (a.fill_buf()?, b.fill_buf()?);
        let common = x.len().min(y.len());
        // Where one has ended, all that the other has left differs.
        let used = if common == 0 { x.len().max(y.len()) } else { common };
        if used == 0 {
            return Ok(found);
        }
        if common == 0 || x[..used] != y[..used] {
            let differs = |index: &usize| common == 0 || x[*index] != y[*index];
            let first = (0..used).find(differs).expect("something differs") as u64;
            let last = (0..used).rfind(differs).expect("something differs") as u64;
            let start = found.map_or(at + first, |range: Range<u64>| range.start);
            found = Some(start..at + last + 1);
        }
        let (left, right) = (used.min(x.len()), used.min(y.len()));
        a.consume(left);
        b.consume(right);
        at += used as u64;
    }
}

/// The path of the first value that differs, in the order of the names.
fn differing_field(a: &Value, b: &Value) -> Option<String> {
    let below = |name: &str, x: &Value, y: &Value| {
        differing_field(x, y).map(|rest| format!("{name}.{rest}").trim_end_matches('.').to_owned())
    };
    let nothing = Value::Null;
    match (a, b) {
        _ if a == b => None,
        (Value::Object(a), Value::Object(b)) => {
            let names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
            let value =
                |of: &serde_json::Map<String, Value>, name: &str| of.get(name).cloned().unwrap_or_default();
            names
                .into_iter()
                .find_map(|name| below(name, &value(a, name), &value(b, name)))
        }
        (Value::Array(a), Value::Array(b)) => (0..a.len().max(b.len())).find_map(|index| {
            let (x, y) = (a.get(index).unwrap_or(&nothing), b.get(index).unwrap_or(&nothing));
            below(&index.to_string(), x, y)
        }),
        _ => Some(String::new()),
    }
}

fn read_error(path: &Path, source: io::Error) -> CompareError {
    CompareError::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
pub(crate) mod tests;
