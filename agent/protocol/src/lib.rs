//! What crosses a trust boundary, in bytes: frames on vsock and on the engine's socket, the launch document,
//! engine messages, grants, vouchers, usage records and receipts.
//!
//! A leaf: no I/O of its own, no runtime, no TVM. Every reader here is bounded, because on both ends the
//! other side is not trusted.

mod account;
pub mod engine;
mod frame;
pub mod gpu;
mod grant;
pub mod host;
mod launch;
mod receipt;
pub mod simulated;

pub use account::{AccountAddress, ContractCode, NetworkId, ParseAddressError};
pub use frame::{FRAME_BYTES_MAX, FrameError, read_frame, write_frame};
#[cfg(feature = "tokio")]
pub use frame::{read_frame_async, write_frame_async};
pub use grant::{Grant, GrantError, SessionProof, SignedGrant, SignedVoucher, Voucher};
pub use launch::{
    LAUNCH_DOCUMENT_BYTES_MAX, LaunchDocument, LaunchDocumentError, Limits, ModelVolume, NumericProfile,
    Prices, Settlement, VerityVolume,
};
pub use receipt::{ContentKey, Receipt, SignedReceipt, TokenCounts};
