//! Endorsements: what Intel (or a simulated platform's root) publishes about a platform. The host carries
//! them, so they are as hostile as the quote until their signatures are verified.

use dcap_qvl::{QeIdentity, QuoteCollateralV3, TcbInfo};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Longer endorsements are refused before they are parsed. Intel's are about 20 KiB.
pub const ENDORSEMENTS_BYTES_MAX: usize = 256 * 1024;

/// Why bytes are not endorsements.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EndorsementsError {
    #[error("{bytes} bytes, at most {ENDORSEMENTS_BYTES_MAX} are allowed")]
    TooLarge { bytes: usize },
    #[error("not the JSON of a TDX collateral: {0}")]
    Malformed(serde_json::Error),
}

/// Reads the JSON form of dcap-qvl's `QuoteCollateralV3`.
pub(crate) fn parse(bytes: &[u8]) -> Result<QuoteCollateralV3, EndorsementsError> {
    if bytes.len() > ENDORSEMENTS_BYTES_MAX {
        return Err(EndorsementsError::TooLarge { bytes: bytes.len() });
    }
    serde_json::from_slice(bytes).map_err(EndorsementsError::Malformed)
}

/// When the younger of TCB info and QE identity says that it was issued; not authentic by itself.
pub(crate) fn claimed_issue_s(collateral: &QuoteCollateralV3) -> Option<u64> {
    let tcb_info: TcbInfo = serde_json::from_str(&collateral.tcb_info).ok()?;
    let qe_identity: QeIdentity = serde_json::from_str(&collateral.qe_identity).ok()?;
    Some(seconds(&tcb_info.issue_date)?.max(seconds(&qe_identity.issue_date)?))
}

/// How reports print a time, seconds since 1970.
pub(crate) fn date_text(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|date| date.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{seconds} s after 1970"))
}

fn seconds(text: &str) -> Option<u64> {
    let date = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    date.unix_timestamp().try_into().ok()
}
