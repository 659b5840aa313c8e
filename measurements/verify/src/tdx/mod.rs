//! Intel TDX quotes: from hostile bytes to a verdict, without I/O and without clock.
//!
//! [`judge_tdx`] judges one quote and lists every check. Who verifies many quotes keeps what does not change:
//!
//! ```text
//! Collateral --verify(root)--> VerifiedCollateral --verify_pck(chain)--> VerifiedPck --verify(quote, now)--> VerifiedQuote
//! ```
//!
//! This is the strict mode, and there is no other: no byte of a quote is free (the certificates in it have one
//! encoding, see [`ChainError`]; lengths add up; nothing follows), except that the zeros which Intel's quoting service
//! puts after a version 4 quote may be there or not ([`QUOTING_PADDING_BYTES`]). Why this is not a call of dcap-qvl's
//! verifier is in docs/decisions/0006-tdx-quotes-verified-here.md.

mod attributes;
mod certificate;
mod chain;
mod claims;
mod collateral;
mod der;
mod judge;
mod pck;
mod platform;
mod quote;
mod report;
mod revocation;
mod rows;
mod signature;
mod status;
mod tcb;
mod tcb_info;
mod td;
mod terms;
mod validity;
mod verify;

pub use certificate::CertificateError;
pub use chain::ChainError;
pub use collateral::{
    COLLATERAL_BYTES_MAX, Collateral, CollateralError, CollateralFormatError, CollateralPart,
    VerifiedCollateral,
};
pub use judge::judge_tdx;
pub use pck::{PckExtension, PckExtensionError};
pub use platform::{CollateralKey, CollateralKeyError, OtherCollateral, PckCa};
pub use quote::{QUOTE_BYTES_MAX, QUOTING_PADDING_BYTES, Quote, QuoteError};
pub use report::{BodyKind, EnclaveReport, TdField, TdReport};
pub use revocation::RevocationListError;
pub use status::TcbStatus;
pub use tcb::{TcbError, TcbLevel, TcbVerdict};
pub(crate) use td::never_accepted;
pub use terms::TdxTerms;
pub use validity::{Period, Validity, ValidityError};
pub use verify::{VerifiedPck, VerifiedQuote, VerifyError};
