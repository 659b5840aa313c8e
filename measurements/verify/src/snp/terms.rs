//! What a policy expects of an SEV-SNP guest: `[snp]` of the policy file. Where TDX has registers, SNP has the launch
//! measurement, HOST_DATA (the hash of the launch document) and the report data (which binds the event log).

use std::{collections::BTreeMap, fmt, str::FromStr};

use cocoon_evidence::{Digest32, Digest48};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    guest_policy,
    product::{SnpProduct, SnpTcb},
};
use crate::Bits64;

/// Sixteen bytes that a guest's owner chose, in lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SnpOwnerId(pub [u8; 16]);

impl fmt::Display for SnpOwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SnpOwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SnpOwnerId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id)?;
        Ok(Self(id))
    }
}

impl Serialize for SnpOwnerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SnpOwnerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(|error| de::Error::custom(format!("sixteen bytes in hex: {error}")))
    }
}

/// `[snp]`. Every list holds what is accepted and must not be empty; nothing has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpTerms {
    /// MEASUREMENT: the launch digests.
    pub measurement: Vec<Digest48>,
    /// HOST_DATA: SHA-256 of the launch documents.
    pub host_data: Vec<Digest32>,
    /// GUEST_POLICY, exactly. Debugging, a migration agent and bits that AMD reserves cannot be accepted.
    pub guest_policy: Vec<Bits64>,
    /// Privilege levels that may ask for a report: 0 is the guest's firmware and, without an SVSM, its kernel.
    pub vmpl: Vec<u32>,
    /// FAMILY_ID of the ID block; zeros without one.
    pub family_id: Vec<SnpOwnerId>,
    /// IMAGE_ID of the ID block; zeros without one.
    pub image_id: Vec<SnpOwnerId>,
    /// GUEST_SVN must be at least this.
    pub guest_svn_min: u32,
    /// ID_KEY_DIGEST; zeros without an ID block.
    pub id_key_digest: Vec<Digest48>,
    /// AUTHOR_KEY_DIGEST; zeros without an author key.
    pub author_key_digest: Vec<Digest48>,
    /// Keys that may have signed.
    pub signing_key: Vec<SnpSigningKeyTerm>,
    /// `[snp.platform_info]`.
    pub platform_info: SnpPlatformInfoTerms,
    /// `[snp.tcb_min.milan]` and so on: the accepted products, and the oldest accepted version of each part.
    pub tcb_min: BTreeMap<SnpProduct, SnpTcb>,
}

/// PLATFORM_INFO, bit by bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpPlatformInfoTerms {
    /// Bits that must be set.
    pub required: Bits64,
    /// Bits that may be set.
    pub allowed: Bits64,
}

/// A key that signs reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnpSigningKeyTerm {
    /// The chip's own.
    Vcek,
    /// A cloud provider's.
    Vlek,
}

impl SnpSigningKeyTerm {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Vcek => "vcek",
            Self::Vlek => "vlek",
        }
    }
}

/// Terms that nothing could meet, or that give away what they protect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnpTermsError {
    /// An empty list would refuse everything.
    #[error("snp.{0} is empty")]
    Empty(&'static str),
    /// Accepting these would let the host into the guest.
    #[error("snp.guest_policy accepts {0}, which {1}")]
    GuestPolicy(Bits64, &'static str),
    /// A required bit that is not allowed.
    #[error("snp.platform_info requires bits that it does not allow")]
    PlatformInfo,
    /// A version for a part that the product does not have, or none for one that it has.
    #[error("snp.tcb_min.{0}: fmc is for turin, and only for turin")]
    Fmc(SnpProduct),
    /// Four levels exist.
    #[error("snp.vmpl {0} is more than 3")]
    Vmpl(u32),
}

impl SnpTerms {
    /// Refuses terms that are empty or dangerous. A policy is checked when it is read; judging checks again.
    pub fn check(&self) -> Result<(), SnpTermsError> {
        let lists = [
            ("measurement", self.measurement.is_empty()),
            ("host_data", self.host_data.is_empty()),
            ("guest_policy", self.guest_policy.is_empty()),
            ("vmpl", self.vmpl.is_empty()),
            ("family_id", self.family_id.is_empty()),
            ("image_id", self.image_id.is_empty()),
            ("id_key_digest", self.id_key_digest.is_empty()),
            ("author_key_digest", self.author_key_digest.is_empty()),
            ("signing_key", self.signing_key.is_empty()),
            ("tcb_min", self.tcb_min.is_empty()),
        ];
        if let Some((name, _)) = lists.into_iter().find(|(_, empty)| *empty) {
            return Err(SnpTermsError::Empty(name));
        }
        for bits in &self.guest_policy {
            if let Some(why) = guest_policy::dangerous(bits.0) {
                return Err(SnpTermsError::GuestPolicy(*bits, why));
            }
        }
        if self.platform_info.required.0 & !self.platform_info.allowed.0 != 0 {
            return Err(SnpTermsError::PlatformInfo);
        }
        let mut floors = self.tcb_min.iter();
        if let Some((product, _)) =
            floors.find(|(product, floor)| floor.fmc.is_some() != (**product == SnpProduct::Turin))
        {
            return Err(SnpTermsError::Fmc(*product));
        }
        match self.vmpl.iter().find(|vmpl| **vmpl > 3) {
            Some(vmpl) => Err(SnpTermsError::Vmpl(*vmpl)),
            None => Ok(()),
        }
    }
}
