//! What a Cocoon guest proves, in bytes: digests, registers, the RTMR3 event log, the evidence bundle and
//! the report data that ties a quote to keys.
//!
//! Both sides use this crate: the agent inside the guest writes with it, verifiers read with it. It does no
//! I/O, reads no clock and checks no signature; what it parses comes from the network and is bounded.

mod binding;
mod bundle;
mod certificate;
mod digest;
mod endorsements;
mod event;
mod fresh;
mod gpu;
mod register;

pub use binding::{FreshBinding, NONCE_BYTES, ReportData, Role, TlsBinding};
pub use bundle::{BUNDLE_BYTES_MAX, BundleError, EvidenceBundle, Platform};
pub use certificate::{
    CERTIFICATE_BYTES_MAX, CMW_DIGEST_MEDIA_TYPE, CMW_MEDIA_TYPE, CertifiedEvidence, EVIDENCE_EXTENSION_OID,
    ExtensionError,
};
pub use digest::{Digest32, Digest48, ParseDigestError};
pub use endorsements::{ENDORSEMENTS_BYTES_MAX, ENDORSEMENTS_MEDIA_TYPE, Endorsements, EndorsementsError};
pub use event::{EVENT_PAYLOAD_BYTES_MAX, EventKind, EventLog, EventLogError, RuntimeEvent};
pub use fresh::{
    FRESH_BYTES_MAX, FRESH_REQUESTS_MAX, FreshEvidence, FreshEvidenceError, FreshLeaf, FreshTree,
    FreshTreeError,
};
pub use gpu::GpuEvidence;
pub use register::{Register, Rtmr};
