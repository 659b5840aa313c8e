//! A journal that has grown long is begun anew with what can still be settled: each start reads it whole, and keeps
//! every grant in it in memory. Nothing is deleted: the old file stays beside the new one, as the provider's books.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use super::{Entry, Journal, OpenError, encode, json_of, json_of_seen, read, sync_folder};

impl Journal<File> {
    /// Goes on in a new file of the same name, `path`, with the entries that `keep` picks, in their order. The old file
    /// gets the name `kept`. A crash leaves one or the other under `path`, each with everything that is owed.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing is lost.
    pub fn renew(
        &mut self,
        path: &Path,
        kept: &Path,
        keep: impl FnMut(&Entry) -> bool,
    ) -> Result<(), OpenError> {
        let io_error = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        let new = path.with_extension("new");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(io_error)?;
        let replace = || {
            file.sync_all()?;
            fs::hard_link(path, kept)?;
            fs::rename(&new, path)?;
            // Until then a crash may bring the old file back, without what is appended from here on.
            sync_folder(path)
        };
        let copied = copy(path, &file, keep);
        let length = copied
            .and_then(|length| replace().map(|()| length).map_err(io_error))
            .inspect_err(|_| {
                let _ = fs::remove_file(&new);
            })?;
        (self.storage, self.length) = (file, length);
        Ok(())
    }
}

/// Returns how many bytes were written.
fn copy(path: &Path, file: &File, mut keep: impl FnMut(&Entry) -> bool) -> Result<u64, OpenError> {
    let mut writer = BufWriter::new(file);
    let mut written = Ok(0);
    read(path, |entry| {
        if let Ok(length) = &mut written
            && keep(&entry)
        {
            let line = encode(&match &entry {
                Entry::Record(record) => json_of(record),
                Entry::Seen(seen) => json_of_seen(*seen),
            });
            *length += line.len() as u64;
            if let Err(error) = writer.write_all(&line) {
                written = Err(error);
            }
        }
    })?;
    written
        .and_then(|length| writer.flush().map(|()| length))
        .map_err(|source| OpenError::Io {
            path: path.to_owned(),
            source,
        })
}
