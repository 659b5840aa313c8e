//! Files and the clock.

use std::{
    fs::File,
    io::Read as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use cocoon_evidence::{EvidenceBundle, Platform};
use cocoon_measurements::fields::EVIDENCE_BYTES_MAX;

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

/// Reads a piece of evidence: raw bytes, the same as hexadecimal text, an evidence bundle of the agent, or a JSON
/// object that has the bytes as hexadecimal text under `quote` (dstack's guest agent answers so).
pub(crate) fn read_evidence(path: &Path) -> Result<Vec<u8>> {
    let bytes = read_bounded(path, 2 * EVIDENCE_BYTES_MAX)?;
    unwrap_evidence(bytes).with_context(|| format!("{} is not evidence", path.display()))
}

fn unwrap_evidence(bytes: Vec<u8>) -> Result<Vec<u8>> {
    if bytes.trim_ascii_start().starts_with(b"{") {
        let document: serde_json::Value = serde_json::from_slice(&bytes)?;
        let quote = document["quote"]
            .as_str()
            .context("the JSON has no text under `quote`")?;
        return hex::decode(quote.trim()).context("`quote` is not hexadecimal");
    }
    if let Ok(EvidenceBundle {
        platform: Platform::Tdx { quote },
        ..
    }) = EvidenceBundle::decode(&bytes)
    {
        return Ok(quote);
    }
    let text: Vec<u8> = bytes
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    if !text.is_empty() && text.iter().all(u8::is_ascii_hexdigit) {
        return hex::decode(&text).context("the hexadecimal text has an odd number of digits");
    }
    Ok(bytes)
}
