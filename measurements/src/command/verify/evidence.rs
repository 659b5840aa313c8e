//! Evidence and what comes with it, from files.

use std::{fs::File, io::Read as _, path::Path};

use anyhow::{Context as _, Result};

/// More than any judge reads. Of a longer file this much and one byte is taken, and its judge refuses the length.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Reads a file that an enemy may have written.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

/// The bytes that hexadecimal text stands for; anything else as it is. No evidence consists of such digits only: a
/// binary quote or report begins with a small number, JSON with a bracket.
pub(super) fn from_hex(bytes: Vec<u8>) -> Vec<u8> {
    let trimmed = bytes.trim_ascii();
    let digits = trimmed.strip_prefix(b"0x").unwrap_or(trimmed);
    let digits: Vec<u8> = digits
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    match hex::decode(&digits) {
        Ok(decoded) if !decoded.is_empty() => decoded,
        _ => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_text_may_be_wrapped_and_prefixed() {
        for text in ["04 00\nff\n", "0x0400ff", "\t0400FF "] {
            assert_eq!(from_hex(text.into()), [4, 0, 0xff], "{text:?}");
        }
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        for bytes in [&b""[..], b" ", b"040", b"0x", b"04zz", &[4, 0, 0xff], b"[{}]"] {
            assert_eq!(from_hex(bytes.to_vec()), bytes);
        }
    }
}
