//! Endorsements: what Intel (or a simulated platform's root) publishes about a platform. The host carries
//! them, so they are as hostile as the quote until their signatures are verified.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Longer endorsements are refused before they are parsed. Intel's are about 20 KiB.
pub const ENDORSEMENTS_BYTES_MAX: usize = crate::tdx::COLLATERAL_BYTES_MAX;

/// How reports print a time, seconds since 1970.
pub(crate) fn date_text(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|date| date.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{seconds} s after 1970"))
}
