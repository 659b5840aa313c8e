//! Tables that were made once: a folder with a [`TablesFile`] of one machine for each build and shape.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use cocoon_evidence::Digest32;

use super::{
    GenerateError, MachineShape, MachineTables, QemuBuild, QemuBuildError, ReadMethod, TABLES_FILE_BYTES_MAX,
    TablesFile, TablesFileError, generate,
};

/// A folder that may be deleted at any time.
#[derive(Debug, Clone)]
pub struct TableCache {
    folder: PathBuf,
}

/// Why there are no tables.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The QEMU.
    #[error(transparent)]
    Build(#[from] QemuBuildError),
    /// Making the tables.
    #[error("cannot make the tables of this machine")]
    Generate(#[from] GenerateError),
    /// The folder.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file in it that is damaged, or of another machine.
    #[error("{} is damaged: delete it", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Why, unless it is whole and of another machine.
        source: Option<TablesFileError>,
    },
}

impl TableCache {
    /// A cache in `folder`, which is made when something is kept.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// The tables of `shape` from this QEMU: the kept ones, or new ones, which are kept. Says whether QEMU had to
    /// be started for the tables.
    ///
    /// # Errors
    /// See [`CacheError`].
    pub fn tables(
        &self,
        qemu: &Path,
        shape: &MachineShape,
        limit: Duration,
    ) -> Result<(MachineTables, Freshness), CacheError> {
        let build = QemuBuild::of(qemu)?;
        let path = self.folder.join(format!("{}.json", key(&build, shape)));
        if let Some(kept) = self.load(&path, &build, shape)? {
            return Ok((kept, Freshness::Kept));
        }
        let tables = MachineTables {
            files: generate(qemu, shape, ReadMethod::Dma, limit)?,
            qemu: build,
            shape: shape.clone(),
        };
        self.keep(&path, &tables)
            .map_err(|source| CacheError::Io { path, source })?;
        Ok((tables, Freshness::Made))
    }

    fn load(
        &self,
        path: &Path,
        build: &QemuBuild,
        shape: &MachineShape,
    ) -> Result<Option<MachineTables>, CacheError> {
        let json = match read(path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                let path = path.to_owned();
                return Err(CacheError::Io { path, source });
            }
        };
        let damaged = |source| CacheError::Damaged {
            path: path.to_owned(),
            source,
        };
        let file = TablesFile::parse(&json).map_err(|error| damaged(Some(error)))?;
        match <[MachineTables; 1]>::try_from(file.machines) {
            Ok([kept]) if kept.qemu == *build && kept.shape == *shape => Ok(Some(kept)),
            _ => Err(damaged(None)),
        }
    }

    /// Beside the file, then renamed: two processes that make the same tables both succeed.
    fn keep(&self, path: &Path, tables: &MachineTables) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let file = TablesFile {
            machines: vec![tables.clone()],
        };
        let mut beside = tempfile::NamedTempFile::new_in(&self.folder)?;
        beside.write_all(&file.to_json())?;
        beside.persist(path)?;
        Ok(())
    }
}

/// Where tables came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// From the cache.
    Kept,
    /// From a QEMU that was started for them.
    Made,
}

fn key(build: &QemuBuild, shape: &MachineShape) -> Digest32 {
    Digest32::of_parts([
        build.program_sha256.as_bytes().as_slice(),
        shape.digest().as_bytes(),
        build.version.as_bytes(),
    ])
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut json = Vec::new();
    File::open(path)?
        .take(TABLES_FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut json)?;
    Ok(json)
}
