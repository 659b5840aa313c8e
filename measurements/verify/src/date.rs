//! How reports print times.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// RFC 3339, from seconds since 1970.
pub fn date_text(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|date| date.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{seconds} s after 1970"))
}
