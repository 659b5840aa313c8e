//! Hostile bytes in, a trusted guest out: judges a guest's evidence bundle against a policy.
//!
//! The client (and an auditor) gives an [`Appraiser`] its policy, the endorsements that the host carried along and the
//! time, and then what the guest presented with the report data that this very connection must have. Every check is
//! made and listed in a [`Report`]; only if all of them hold does [`Appraisal::into_trusted`] hand out a
//! [`TrustedGuest`], which nothing else can build.
//!
//! What it trusts: the policy, the caller's clock and report data, and the root certificate that the policy
//! names. The bundle and the endorsements come from the network. There is no I/O and no clock in here.

mod appraisal;
mod date;
pub mod judgement;
pub mod nvidia;
mod policy;
mod raw;
mod report;
mod root;
pub mod snp;
pub mod tdx;

pub use appraisal::{Appraisal, Appraiser, PlatformId, TrustedGuest, VendorRoots, danger};
pub use date::date_text;
pub use policy::{
    AMD_ROOTS, ANY_INSECURE, Accepted, Bits64, DocumentTerms, EventTerms, Expect, FieldAccepts, FieldRule,
    FieldValue, Floors, GpuEvidenceRule, HardwareTerms, MachineId, MachineTerms, POLICY_BYTES_MAX,
    POLICY_SIGNATURE_BYTES_MAX, POLICY_VERSION, PlatformKind, PlatformTerms, Policy, PolicyError, PolicyKey,
    PolicyKeyError, PolicyRole, PolicyTerms, ReadyRule, RegisterTerms, SignedPolicyError, TcbStatusName,
    TcbTerms, TdTerms, TdxExpectations, UsageKeyRule, sign_policy,
};
pub use raw::{GIVEN_ROOT, RawNvidia, RawSnp, RawTdx, judge_raw_nvidia, judge_raw_snp, judge_raw_tdx};
pub use report::{Check, Fault, Refusal, RefusalClass, Report, Verdict};
pub use root::{
    INTEL_SGX_ROOT_CA_PEM, INTEL_SGX_ROOT_CA_SHA256, Root, RootError, SIMULATED_ROOT_COMMON_NAME_PREFIX,
};
