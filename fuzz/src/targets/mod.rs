//! One function for each parser of bytes that an enemy may have written.

mod acpi;
mod evidence;
mod image;
mod log;
mod nvidia;
mod policy;
mod snp;
mod tdx;

pub use acpi::tables_file;
pub use evidence::{certificate_extension, evidence_bundle};
pub use image::{firmware, kernel, manifest};
pub use log::{event_log, evidence_fields};
pub use nvidia::{certificates, nvidia_evidence, nvidia_ocsp, nvidia_rim, nvidia_spdm};
pub use policy::{launch_document, policy};
pub use snp::{snp_judgement, snp_report};
pub use tdx::{tdx_collateral, tdx_judgement, tdx_quote};
