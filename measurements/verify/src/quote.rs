//! A TDX quote: its exact extent, and the proof that the platform's root vouches for it.
//!
//! The chain, TCB info, QE identity and revocation lists are dcap-qvl's work (Intel TDX DCAP Quote Generation
//! Library and Quote Verification Library, "Quote format version 4" and "5"). It parses leniently, so this module
//! demands first that every byte of the quote is accounted for.

use dcap_qvl::{
    QuoteClaims, QuoteCollateralV3, QuotePolicy,
    quote::{AuthData, Quote, TDReport10},
    verify::QuoteVerifier,
};

use crate::root::Root;

/// A longer quote is refused before it is parsed. Real ones have 5 to 8 KiB.
const QUOTE_BYTES_MAX: usize = 16 * 1024;

/// Bytes before and between the variable parts of a quote's authentication data, version 4 and 5.
const AUTH_LENGTH_BYTES: usize = 4;
const SIGNATURE_AND_KEY_BYTES: usize = 64 + 64;
const CERT_HEADER_BYTES: usize = 2 + 4;
const QE_REPORT_AND_SIGNATURE_BYTES: usize = 384 + 64;
const QE_AUTH_LENGTH_BYTES: usize = 2;

const CERT_DATA_PCK_CHAIN: u16 = 5;
const CERT_DATA_QE_REPORT: u16 = 6;

/// A quote that is well formed; nothing in it is authentic yet.
pub(crate) struct ParsedQuote<'a> {
    raw: &'a [u8],
    report: TDReport10,
}

/// Why bytes are not a TDX quote.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QuoteError {
    #[error("{bytes} bytes, at most {QUOTE_BYTES_MAX} are allowed")]
    TooLarge { bytes: usize },
    #[error("cannot be parsed: {0}")]
    Malformed(String),
    #[error("no TD report inside")]
    NotTdx,
    #[error("certification data of type {0}, expected {expected}", expected = CERT_DATA_PCK_CHAIN)]
    Certification(u16),
    #[error("{found} bytes, its fields account for {expected}")]
    Extent { found: usize, expected: usize },
}

impl<'a> ParsedQuote<'a> {
    pub(crate) fn parse(raw: &'a [u8]) -> Result<Self, QuoteError> {
        if raw.len() > QUOTE_BYTES_MAX {
            return Err(QuoteError::TooLarge { bytes: raw.len() });
        }
        let quote = Quote::parse(raw).map_err(|error| QuoteError::Malformed(format!("{error:#}")))?;
        let report = *quote.report.as_td10().ok_or(QuoteError::NotTdx)?;
        check_extent(raw, &quote)?;
        Ok(Self { raw, report })
    }

    /// What the quote claims.
    pub(crate) fn claimed(&self) -> &TDReport10 {
        &self.report
    }

    /// Proves that `root` vouches for the quote at `now_s`.
    pub(crate) fn verify(
        &self,
        root: &Root,
        collateral: &QuoteCollateralV3,
        now_s: u64,
    ) -> Result<QuoteClaims, String> {
        // Statuses and evaluation numbers are judged by our own policy, row by row.
        QuoteVerifier::new(root.der().to_vec())
            .verify_with_policy(self.raw, collateral, now_s, &QuotePolicy::claims_only(now_s))
            .map_err(|error| format!("{error:#}"))
    }
}

/// Nested lengths that do not add up would leave bytes that no signature covers and nobody reads.
fn check_extent(raw: &[u8], quote: &Quote) -> Result<(), QuoteError> {
    let AuthData::V4(auth) = &quote.auth_data else {
        return Err(QuoteError::NotTdx);
    };
    let outer = &auth.certification_data;
    let inner = &auth.qe_report_data.certification_data;
    for (kind, expected) in [
        (outer.cert_type, CERT_DATA_QE_REPORT),
        (inner.cert_type, CERT_DATA_PCK_CHAIN),
    ] {
        if kind != expected {
            return Err(QuoteError::Certification(kind));
        }
    }
    let certification = QE_REPORT_AND_SIGNATURE_BYTES
        + QE_AUTH_LENGTH_BYTES
        + auth.qe_report_data.qe_auth_data.data.len()
        + CERT_HEADER_BYTES
        + inner.body.data.len();
    let authentication = SIGNATURE_AND_KEY_BYTES + CERT_HEADER_BYTES + certification;
    let total = quote.signed_length() + AUTH_LENGTH_BYTES + authentication;
    for (found, expected) in [(outer.body.data.len(), certification), (raw.len(), total)] {
        if found != expected {
            return Err(QuoteError::Extent { found, expected });
        }
    }
    Ok(())
}
