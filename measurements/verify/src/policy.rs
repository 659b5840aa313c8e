//! What a verifier accepts, as a TOML file. Every register, attribute and event has an expectation; what is
//! not stated is refused, and so is an unknown key, so that a misspelt rule cannot pass for a missing one.

mod bits;
mod document;
mod expect;
mod file;
mod signature;

use std::fmt;

use cocoon_evidence::{Digest48, Role};
use serde::{Deserialize, Serialize};

use crate::{
    nvidia::{NvidiaTerms, NvidiaTermsError},
    root::{Root, RootError},
    snp::{SnpTerms, SnpTermsError},
    tdx::{TcbStatus, TcbVerdict, TdxTerms},
};

pub use bits::Bits64;
pub(crate) use document::judge_fields;
pub use document::{FieldAccepts, FieldRule, FieldValue};
pub(crate) use expect::Comparison;
pub use expect::{ANY_INSECURE, Accepted, Expect};
pub use signature::{POLICY_SIGNATURE_BYTES_MAX, PolicyKey, PolicyKeyError, SignedPolicyError, sign_policy};

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

/// The rules of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "file::PolicyFile", into = "file::PolicyFile")]
pub struct PolicyTerms {
    /// [`POLICY_VERSION`].
    pub version: u32,
    /// Grows with every policy that replaces another.
    pub number: u64,
    /// Not accepted from then on; seconds since 1970.
    pub expires_s: u64,
    /// What the guest is for.
    pub role: PolicyRole,
    /// Who vouches for the evidence.
    pub platform: PlatformTerms,
    /// What the platform measured.
    pub hardware: HardwareTerms,
    /// The events of RTMR3.
    pub events: EventTerms,
    /// What is expected of NVIDIA devices, where `events.gpu_evidence` is `nvidia` or raw evidence is judged.
    pub nvidia: Option<NvidiaTerms>,
}

impl PolicyTerms {
    /// The rules for TDX, if it is TDX.
    pub fn tdx(&self) -> Option<&TdxExpectations> {
        match &self.hardware {
            HardwareTerms::Tdx(tdx) => Some(tdx),
            HardwareTerms::Snp(_) => None,
        }
    }

    /// The same, to be changed.
    pub fn tdx_mut(&mut self) -> Option<&mut TdxExpectations> {
        match &mut self.hardware {
            HardwareTerms::Tdx(tdx) => Some(tdx),
            HardwareTerms::Snp(_) => None,
        }
    }

    /// The rules for SEV-SNP, if it is SEV-SNP.
    pub fn snp(&self) -> Option<&SnpTerms> {
        match &self.hardware {
            HardwareTerms::Tdx(_) => None,
            HardwareTerms::Snp(snp) => Some(snp),
        }
    }
}

/// `platform.kind`, and the tables that go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HardwareTerms {
    /// Intel TDX: `[registers]`, `[td]` and `[tcb]`.
    Tdx(TdxExpectations),
    /// AMD SEV-SNP: `[snp]`. HOST_DATA and the report data take the place of run-time registers.
    Snp(SnpTerms),
}

impl HardwareTerms {
    /// `platform.kind`.
    pub fn kind(&self) -> PlatformKind {
        match self {
            Self::Tdx(_) => PlatformKind::Tdx,
            Self::Snp(_) => PlatformKind::Snp,
        }
    }
}

/// What is expected of a TDX guest and its platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxExpectations {
    /// The measured values.
    pub registers: RegisterTerms,
    /// How the TD was configured.
    pub td: TdTerms,
    /// How current the platform must be.
    pub tcb: TcbTerms,
}

/// `role`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyRole {
    /// [`Role::Inference`].
    Inference,
}

impl From<PolicyRole> for Role {
    fn from(role: PolicyRole) -> Self {
        match role {
            PolicyRole::Inference => Self::Inference,
        }
    }
}

/// `platform.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlatformKind {
    /// Intel TDX.
    Tdx,
    /// AMD SEV-SNP.
    Snp,
}

impl PlatformKind {
    /// As policies write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tdx => "tdx",
            Self::Snp => "snp",
        }
    }
}

/// `[platform]`, apart from its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformTerms {
    /// Whether `root_pem` is a simulator's root. Must be stated either way.
    pub simulated: bool,
    /// The root certificate: [`crate::INTEL_SGX_ROOT_CA_PEM`], or that of one simulated platform; for SEV-SNP
    /// [`AMD_ROOTS`].
    pub root_pem: String,
}

/// `platform.root_pem` of a policy for SEV-SNP: AMD's roots, which this library knows.
pub const AMD_ROOTS: &str = "amd";

/// `[registers]`: for each the accepted values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterTerms {
    /// Firmware, as it was loaded.
    pub mrtd: Expect<Digest48>,
    /// Firmware configuration and virtual hardware.
    pub rtmr0: Expect<Digest48>,
    /// What the firmware started: the kernel.
    pub rtmr1: Expect<Digest48>,
    /// What the kernel was told: the command line.
    pub rtmr2: Expect<Digest48>,
    /// MRCONFIGID, set by the host when it makes the TD.
    pub mr_config_id: Expect<Digest48>,
    /// MROWNER, likewise.
    pub mr_owner: Expect<Digest48>,
    /// MROWNERCONFIG, likewise.
    pub mr_owner_config: Expect<Digest48>,
}

/// `[td]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdTerms {
    /// TD attributes, exactly: debug, migration and unknown bits are refused unless they are stated here, and
    /// the quote verifier refuses most of them even then.
    pub attributes: Expect<Bits64>,
    /// Extended features that the TD may use, exactly.
    pub xfam: Expect<Bits64>,
}

/// `[tcb]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcbTerms {
    /// Accepted statuses of platform, TDX module and quoting enclave together, by Intel's names; usually
    /// `["UpToDate"]`.
    pub accepted: Vec<TcbStatusName>,
    /// `tcbEvaluationDataNumber` of TCB info and QE identity must be at least this.
    pub evaluation_number_min: u32,
    /// How long after the date of the TCB level that it meets an outdated platform or TDX module counts as up to
    /// date, seconds; 0 if not stated.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub platform_grace_s: u64,
    /// Likewise for the quoting enclave.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub qe_grace_s: u64,
}

impl TcbTerms {
    /// Whether a platform's status is accepted, and which it is after the grace periods.
    pub(crate) fn judge_status(&self, tcb: &TcbVerdict, now_s: u64) -> (bool, TcbStatus) {
        self.judged().judge_status(tcb, now_s)
    }

    /// The same rules in the form of the judge of quotes; nothing about the TD.
    pub(crate) fn judged(&self) -> TdxTerms {
        TdxTerms {
            tcb_accepted: self.accepted.iter().map(|name| name.0).collect(),
            evaluation_number_min: self.evaluation_number_min,
            platform_grace_s: self.platform_grace_s,
            qe_grace_s: self.qe_grace_s,
            ..TdxTerms::default()
        }
    }
}

fn is_zero(seconds: &u64) -> bool {
    *seconds == 0
}

/// `[events]`: what RTMR3 must record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventTerms {
    /// What the host may ask the guest to run.
    pub launch_document: DocumentTerms,
    /// SHA-384 of the accepted payloads of the model event.
    pub model: Expect<Digest48>,
    /// The key is new at every boot.
    pub usage_key: UsageKeyRule,
    /// What the guest measured of its GPUs.
    pub gpu_evidence: GpuEvidenceRule,
    /// The last event.
    pub ready: ReadyRule,
}

/// `events.launch_document`, or `[[events.launch_document_fields]]` in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentTerms {
    /// SHA-384 of the accepted documents.
    Digest(Expect<Digest48>),
    /// A rule for every value in the document.
    Fields(Vec<FieldRule>),
}

impl DocumentTerms {
    /// This document and no other.
    pub fn exact(digest: Digest48) -> Self {
        Self::Digest(Expect::exact(digest))
    }
}

/// `events.usage_key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UsageKeyRule {
    /// An Ed25519 key (32 bytes) that the log in the bundle holds; RTMR3 and the report data bind that log.
    Bound,
}

/// `events.gpu_evidence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpuEvidenceRule {
    /// A machine without GPU: empty payload, no evidence in the bundle.
    None,
    /// The payload is the digest of the GPU evidence in the bundle, and NVIDIA's devices in it are what `[nvidia]`
    /// states, asked by this guest in this boot.
    Nvidia,
}

/// `events.ready`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadyRule {
    /// The event is there with an empty payload, and nothing follows it.
    Empty,
}

/// A TCB status by Intel's name (Intel PCS API, "TCB info", `tcbStatus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TcbStatusName(pub(crate) TcbStatus);

impl TcbStatusName {
    /// Everything that Intel publishes is applied.
    pub const UP_TO_DATE: Self = Self(TcbStatus::UpToDate);

    /// Intel's name.
    pub fn name(self) -> String {
        self.0.to_string()
    }
}

impl fmt::Display for TcbStatusName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
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
mod tests {
    use super::*;
    use crate::INTEL_SGX_ROOT_CA_PEM;

    fn text() -> String {
        let digest = Digest48::of(b"x");
        let registers: String = [
            "mrtd",
            "rtmr0",
            "rtmr1",
            "rtmr2",
            "mr_config_id",
            "mr_owner",
            "mr_owner_config",
        ]
        .map(|name| format!("{name} = [\"{digest}\"]\n"))
        .concat();
        format!(
            "version = 1\nnumber = 7\nexpires_s = 1800000000\nrole = \"inference\"\n\n\
             [platform]\nkind = \"tdx\"\nsimulated = false\nroot_pem = \"\"\"\n{INTEL_SGX_ROOT_CA_PEM}\"\"\"\n\n\
             [registers]\n{registers}\n\
             [td]\nattributes = \"0x0000000010000000\"\nxfam = \"0x00000000000602e7\"\n\n\
             [tcb]\naccepted = [\"UpToDate\"]\nevaluation_number_min = 17\n\n\
             [events]\nlaunch_document = [\"{digest}\"]\nmodel = [\"{digest}\"]\nusage_key = \"bound\"\n\
             gpu_evidence = \"none\"\nready = \"empty\"\n"
        )
    }

    const FIELDS: &str = "[[events.launch_document_fields]]\nfield = \"version\"\none_of = [1]\n";

    #[test]
    fn a_launch_document_has_either_digests_or_field_rules() {
        let both = text() + FIELDS;
        assert!(matches!(Policy::parse(&both), Err(PolicyError::Malformed(_))));
        let digest = format!("launch_document = [\"{}\"]\n", Digest48::of(b"x"));
        let fields = both.replacen(&digest, "", 1);
        let policy = Policy::parse(&fields).unwrap();
        assert!(
            matches!(&policy.terms().events.launch_document, DocumentTerms::Fields(rules) if rules.len() == 1)
        );
        assert_eq!(Policy::parse(&policy.to_toml()).unwrap(), policy);
        let neither = text().replacen(&digest, "", 1);
        assert!(matches!(Policy::parse(&neither), Err(PolicyError::Malformed(_))));
    }

    #[test]
    fn a_policy_round_trips_through_its_file() {
        let policy = Policy::parse(&text()).unwrap();
        assert_eq!(policy.terms().number, 7);
        assert!(!policy.is_simulated());
        assert_eq!(Policy::parse(&policy.to_toml()).unwrap(), policy);
    }

    #[test]
    fn leaving_out_any_rule_is_an_error() {
        let full = text();
        let rules: Vec<_> = full
            .lines()
            .filter(|line| line.contains(" = ") && !line.contains("\"\"\""))
            .collect();
        assert_eq!(rules.len(), 22);
        for rule in rules {
            let cut = full.replacen(&format!("{rule}\n"), "", 1);
            assert!(Policy::parse(&cut).is_err(), "without {rule}");
        }
    }

    #[test]
    fn a_misspelt_rule_is_an_error_in_every_table() {
        let text = text() + FIELDS;
        let text = || {
            text.replacen(
                &format!("launch_document = [\"{}\"]\n", Digest48::of(b"x")),
                "",
                1,
            )
        };
        assert!(Policy::parse(&text()).is_ok());
        for table in [
            "",
            "[platform]\n",
            "[registers]\n",
            "[td]\n",
            "[tcb]\n",
            "[events]\n",
            "[[events.launch_document_fields]]\n",
        ] {
            let extra = text().replacen(table, &format!("{table}rtmr9 = [\"00\"]\n"), 1);
            let error = Policy::parse(&extra).unwrap_err();
            assert!(matches!(error, PolicyError::Malformed(_)), "{table}: {error}");
        }
    }

    #[test]
    fn an_empty_list_is_an_error() {
        let lists: Vec<_> = text()
            .lines()
            .filter_map(|line| line.split_once(" = [").map(|(name, _)| name.to_owned()))
            .collect();
        assert_eq!(lists.len(), 10);
        for name in lists {
            let empty: String = text()
                .lines()
                .map(|line| match line.starts_with(&format!("{name} = [")) {
                    true => format!("{name} = []\n"),
                    false => format!("{line}\n"),
                })
                .collect();
            let error = Policy::parse(&empty).unwrap_err();
            assert!(matches!(error, PolicyError::Empty(_)), "{name}: {error}");
        }
    }

    #[test]
    fn values_that_cannot_be_meant_are_errors() {
        for (from, to) in [
            ("version = 1", "version = 2"),
            ("\"0x0000000010000000\"", "\"0x10000000\""),
            ("\"0x0000000010000000\"", "268435456"),
            ("\"UpToDate\"", "\"uptodate\""),
            ("\"UpToDate\"", "\"Revoked\""),
            ("simulated = false", "simulated = true"),
            ("\"bound\"", "\"any\""),
            ("role = \"inference\"", "role = \"training\""),
            ("kind = \"tdx\"", "kind = \"snp\""),
        ] {
            let changed = text().replacen(from, to, 1);
            assert_ne!(changed, text());
            assert!(Policy::parse(&changed).is_err(), "{to}");
        }
    }

    #[test]
    fn an_oversized_policy_is_refused_unread() {
        let long = text() + &"#".repeat(POLICY_BYTES_MAX);
        assert!(matches!(Policy::parse(&long), Err(PolicyError::TooLarge { .. })));
    }
}
