//! Files and the clock.

use std::{
    fs::File,
    io::Read as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};

/// Reads a file of at most `bytes_max` bytes.
pub(crate) fn read_bounded(path: &Path, bytes_max: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let attempt = || format!("cannot read {}", path.display());
    File::open(path)
        .with_context(attempt)?
        .take(bytes_max as u64 + 1)
        .read_to_end(&mut bytes)
        .with_context(attempt)?;
    if bytes.len() > bytes_max {
        bail!("{} is longer than {bytes_max} bytes", path.display());
    }
    Ok(bytes)
}

/// Seconds since 1970 by this machine's clock.
pub(crate) fn now_s() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(now.context("the clock is before 1970; set it")?.as_secs())
}
