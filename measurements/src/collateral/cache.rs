//! Collateral that was fetched once: a folder with a file for each service, FMSPC and CA. Nothing in it is trusted;
//! whoever loads a file judges it like an answer of the service.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;
use cocoon_verify::tdx::{COLLATERAL_BYTES_MAX, CollateralKey};

use super::service::Service;

#[derive(Debug, Clone)]
pub(super) struct CollateralCache {
    folder: PathBuf,
}

impl CollateralCache {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Two services that differ in an address are two services.
    pub(super) fn path(&self, service: &Service, key: &CollateralKey) -> PathBuf {
        let addresses = Digest32::of(service.addresses().as_bytes()).to_string();
        self.folder.join(format!(
            "{}-{}-{}-{}.json",
            service.kind().name(),
            &addresses[..16],
            hex::encode(key.fmspc),
            key.ca.name()
        ))
    }

    /// A file over the limit comes back one byte longer than that, and is refused by whoever parses it.
    pub(super) fn load(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut json = Vec::new();
        file.take(COLLATERAL_BYTES_MAX as u64 + 1)
            .read_to_end(&mut json)?;
        Ok(Some(json))
    }

    /// Beside the file, then renamed: a reader sees the old collateral or the new one.
    pub(super) fn keep(&self, path: &Path, json: &[u8]) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let mut beside = tempfile::NamedTempFile::new_in(&self.folder)?;
        beside.write_all(json)?;
        beside.as_file().sync_all()?;
        beside.persist(path)?;
        Ok(())
    }
}
