//! What a verifier accepts, as a TOML file. Every register, attribute and event has an expectation; what is
//! not stated is refused, and so is an unknown key, so that a misspelt rule cannot pass for a missing one.

mod bits;
mod document;
mod expect;
mod file;
mod machines;
mod signature;
mod terms;

use cocoon_evidence::Role;

use crate::{
    nvidia::NvidiaTermsError,
    root::{Root, RootError},
    snp::SnpTermsError,
    tdx::TcbStatus,
};

pub use bits::Bits64;
pub(crate) use document::judge_fields;
pub use document::{FieldAccepts, FieldRule, FieldValue};
pub(crate) use expect::Comparison;
pub use expect::{ANY_INSECURE, Accepted, Expect};
pub use machines::{MachineId, MachineTerms};
pub use signature::{POLICY_SIGNATURE_BYTES_MAX, PolicyKey, PolicyKeyError, SignedPolicyError, sign_policy};
pub use terms::{
    AMD_ROOTS, DocumentTerms, EventTerms, GpuEvidenceRule, HardwareTerms, PlatformKind, PlatformTerms,
    PolicyRole, PolicyTerms, ReadyRule, RegisterTerms, TcbStatusName, TcbTerms, TdTerms, TdxExpectations,
    UsageKeyRule,
};

/// The version of the format that this crate reads and writes.
pub const POLICY_VERSION: u32 = 1;

/// A longer policy is refused before it is parsed: it comes from a file that somebody may have swapped.
pub const POLICY_BYTES_MAX: usize = 64 * 1024;

/// Why a text is not a policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Over [`POLICY_BYTES_MAX`].
    #[error("the policy has {bytes} bytes, at most {POLICY_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not TOML, a missing rule or an unknown key.
    #[error("the policy is not well formed")]
    Malformed(#[source] toml::de::Error),
    /// Written by a later Cocoon, or not a policy at all.
    #[error("the policy has version {0}, this program reads version {POLICY_VERSION}")]
    Version(u32),
    /// A list of alternatives without one.
    #[error("{0} is empty: state at least one accepted value")]
    Empty(&'static str),
    /// A status that can never be accepted.
    #[error("tcb.accepted names {0}, which is never accepted")]
    Status(TcbStatusName),
    /// The root certificate.
    #[error("the policy's platform root is not usable")]
    Root(#[from] RootError),
    /// Another root than AMD's, or a simulated one.
    #[error(
        "with platform.kind = \"snp\", platform.root_pem is {AMD_ROOTS:?} and platform.simulated is false"
    )]
    AmdRoot,
    /// Of another kind of platform, or masked.
    #[error("[machines] names {id:?}, which no machine of platform.kind has: {bytes} bytes, not all zero")]
    Machine {
        /// The first one.
        id: MachineId,
        /// How long it has to be.
        bytes: usize,
    },
    /// A provider's key, with which one chip can take another's id.
    #[error(
        "[machines] needs snp.signing_key = [\"vcek\"]: under a VLEK the chip id is only what the report says"
    )]
    MachineKey,
    /// `[snp]`.
    #[error(transparent)]
    Snp(#[from] SnpTermsError),
    /// `[nvidia]`.
    #[error(transparent)]
    Nvidia(#[from] NvidiaTermsError),
    /// GPUs without a rule.
    #[error("events.gpu_evidence = \"nvidia\" needs the table [nvidia]")]
    NoNvidia,
}

/// What the caller remembers, so that nobody can show him an older policy or older endorsements again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Floors {
    /// Policies with a lower number are refused.
    pub policy_number: u64,
    /// Endorsements with a lower TCB evaluation data number are refused; the policy may ask for more.
    pub tcb_evaluation_number: u32,
}

/// A policy that is well formed: every rule is stated, no list is empty, and the root is what it is said to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    terms: PolicyTerms,
    /// `None` for AMD's roots.
    root: Option<Root>,
    signer: Option<PolicyKey>,
}

impl Policy {
    /// Checks the rules.
    ///
    /// # Errors
    /// Names the rule that cannot be used.
    pub fn new(terms: PolicyTerms) -> Result<Self, PolicyError> {
        if terms.version != POLICY_VERSION {
            return Err(PolicyError::Version(terms.version));
        }
        if let Some(name) = empty_list(&terms) {
            return Err(PolicyError::Empty(name));
        }
        match (&terms.nvidia, terms.events.gpu_evidence) {
            (Some(nvidia), _) => nvidia.check()?,
            (None, GpuEvidenceRule::Nvidia) => return Err(PolicyError::NoNvidia),
            (None, GpuEvidenceRule::None) => {}
        }
        if let Some(machines) = &terms.machines {
            machines.check(&terms.hardware)?;
        }
        let PlatformTerms { simulated, root_pem } = &terms.platform;
        let root = match &terms.hardware {
            HardwareTerms::Tdx(tdx) => {
                let never = |status: &&TcbStatusName| status.0 == TcbStatus::Revoked;
                if let Some(status) = tdx.tcb.accepted.iter().find(never) {
                    return Err(PolicyError::Status(*status));
                }
                Some(Root::parse(root_pem, *simulated)?)
            }
            HardwareTerms::Snp(snp) => {
                if *simulated || root_pem != AMD_ROOTS {
                    return Err(PolicyError::AmdRoot);
                }
                snp.check()?;
                None
            }
        };
        Ok(Self {
            terms,
            root,
            signer: None,
        })
    }

    /// Reads a policy file that nobody needs to have signed: one that the caller wrote or chose himself. What
    /// somebody else publishes is read with [`Self::parse_signed`].
    ///
    /// # Errors
    /// The text is too long, not TOML, misses a rule, has an unknown key, or a rule cannot be used.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.len() > POLICY_BYTES_MAX {
            return Err(PolicyError::TooLarge { bytes: text.len() });
        }
        Self::new(toml::from_str(text).map_err(PolicyError::Malformed)?)
    }

    /// The file that [`Self::parse`] reads.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(&self.terms).expect("the terms hold only tables, strings and numbers in range")
    }

    /// The rules.
    pub fn terms(&self) -> &PolicyTerms {
        &self.terms
    }

    /// What the guest is for; enters the report data.
    pub fn role(&self) -> Role {
        self.terms.role.into()
    }

    /// Whether guests under this policy are simulated: to be shown everywhere.
    pub fn is_simulated(&self) -> bool {
        self.root.as_ref().is_some_and(Root::is_simulated)
    }

    /// Who signed it, if [`Self::parse_signed`] read it.
    pub fn signer(&self) -> Option<PolicyKey> {
        self.signer
    }

    /// Where the chain of a TDX quote must end; `None` for AMD's roots.
    pub(crate) fn root(&self) -> Option<&Root> {
        self.root.as_ref()
    }

    /// What is expected of a TDX guest, and where its chain must end.
    pub(crate) fn tdx(&self) -> Option<(&TdxExpectations, &Root)> {
        self.terms.tdx().zip(self.root.as_ref())
    }
}

fn empty_list(terms: &PolicyTerms) -> Option<&'static str> {
    let document = match &terms.events.launch_document {
        DocumentTerms::Digest(digests) => ("events.launch_document", digests.is_empty()),
        DocumentTerms::Fields(rules) => ("events.launch_document_fields", rules.is_empty()),
    };
    let events = [document, ("events.model", terms.events.model.is_empty())];
    let tdx = terms.tdx().map(tdx_lists).into_iter().flatten();
    events
        .into_iter()
        .chain(tdx)
        .find_map(|(name, empty)| empty.then_some(name))
}

fn tdx_lists(tdx: &TdxExpectations) -> [(&'static str, bool); 10] {
    let TdxExpectations { registers, td, tcb } = tdx;
    [
        ("registers.mrtd", registers.mrtd.is_empty()),
        ("registers.rtmr0", registers.rtmr0.is_empty()),
        ("registers.rtmr1", registers.rtmr1.is_empty()),
        ("registers.rtmr2", registers.rtmr2.is_empty()),
        ("registers.mr_config_id", registers.mr_config_id.is_empty()),
        ("registers.mr_owner", registers.mr_owner.is_empty()),
        ("registers.mr_owner_config", registers.mr_owner_config.is_empty()),
        ("td.attributes", td.attributes.is_empty()),
        ("td.xfam", td.xfam.is_empty()),
        ("tcb.accepted", tcb.accepted.is_empty()),
    ]
}

#[cfg(test)]
mod tests;
