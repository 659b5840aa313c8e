//! Endorsements: what Intel (or a simulated platform's root) publishes about a platform. The host carries
//! them, so they are as hostile as the quote until their signatures are verified.

use dcap_qvl::QuoteCollateralV3;

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
