//! Files and the clock.

use std::{
    fs::File,
    io::Read as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
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
/// object that has the bytes as hexadecimal text under `quote` (dstack's guest agent answers so) or in base64
/// under `evidence` (NVIDIA's SDK does).
pub(crate) fn read_evidence(path: &Path) -> Result<Vec<u8>> {
    let bytes = read_bounded(path, 2 * EVIDENCE_BYTES_MAX)?;
    unwrap_evidence(bytes).with_context(|| format!("{} is not evidence", path.display()))
}

/// Evidence out of the forms that [`read_evidence`] takes.
pub(crate) fn unwrap_evidence(bytes: Vec<u8>) -> Result<Vec<u8>> {
    if matches!(bytes.trim_ascii_start().first(), Some(b'{' | b'[')) {
        let mut document: serde_json::Value = serde_json::from_slice(&bytes)?;
        if let Some(items) = document.as_array_mut() {
            ensure!(
                items.len() == 1,
                "the JSON has {} pieces of evidence, one is expected",
                items.len()
            );
            document = items.remove(0);
        }
        if let Some(evidence) = document["evidence"].as_str() {
            return BASE64_STANDARD
                .decode(evidence)
                .context("`evidence` is not base64");
        }
        let quote = document["quote"]
            .as_str()
            .context("the JSON has no text under `quote` or `evidence`")?;
        return hex::decode(quote.trim()).context("`quote` is not hexadecimal");
    }
    if let Ok(EvidenceBundle { platform, .. }) = EvidenceBundle::decode(&bytes) {
        let (Platform::Tdx { quote: evidence } | Platform::Snp { report: evidence }) = platform;
        return Ok(evidence);
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
