//! Root, intermediate and endorsement key of one report, found among what came along, and the checks that `sev`
//! makes (signatures) and omits (names, validity, revocation).

use sev::certs::snp::Verifiable;

use super::{
    certificate::{CertificateRole, SnpCertificate, VekFacts, common_name},
    crl::Crl,
    endorsements::Endorsements,
    report::SigningKey,
    root::{SnpRoot, TrustedKey},
};

/// A chain that cannot be put together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("no {} certificate came along", .0.map_or("VCEK or VLEK", SigningKey::name))]
    NoEndorsementKey(Option<SigningKey>),
    #[error("{0} endorsement keys came along, and nothing says which one signed")]
    ManyEndorsementKeys(usize),
    #[error("the certificate of {0}, which issued {1}, is missing")]
    NoIssuer(String, String),
    #[error("{0} different certificates of {1} came along")]
    ManyIssuers(usize, String),
}

impl ChainError {
    /// Whether something has to be handed in, as against something handed in being wrong.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::NoEndorsementKey(_) | Self::NoIssuer(..))
    }
}

/// Three certificates that name each other; nothing is verified yet.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) root: SnpCertificate,
    pub(crate) intermediate: SnpCertificate,
    pub(crate) vek: SnpCertificate,
    pub(crate) facts: VekFacts,
}

impl Chain {
    /// Takes what came along; only an authority that did not is taken from those known.
    pub(crate) fn assemble(
        given: &Endorsements,
        signing_key: Option<SigningKey>,
        trust: &SnpRoot,
    ) -> Result<Self, ChainError> {
        let (vek, facts) = endorsement_key(given, signing_key)?;
        let intermediate = issuer(given, trust, vek, |role| {
            matches!(role, CertificateRole::Intermediate)
        })?;
        let root = issuer(given, trust, &intermediate, |role| {
            matches!(role, CertificateRole::Root)
        })?;
        Ok(Self {
            root,
            intermediate,
            vek: vek.clone(),
            facts: facts.clone(),
        })
    }

    fn named(&self) -> [(&SnpCertificate, &'static str); 3] {
        let is_vlek = self.facts.kind == SigningKey::Vlek;
        [
            (&self.root, "ARK"),
            (&self.intermediate, if is_vlek { "ASVK" } else { "ASK" }),
            (&self.vek, self.facts.kind.name()),
        ]
    }

    /// The first signature that does not hold: the root's of itself, the root's of the intermediate, and the
    /// intermediate's of the endorsement key.
    pub(crate) fn verify_signatures(&self) -> Result<(), String> {
        let [root, intermediate, vek] = self.named();
        for (signer, signed) in [(root, root), (root, intermediate), (intermediate, vek)] {
            (signer.0.sev(), signed.0.sev())
                .verify()
                .map_err(|error| format!("{} did not sign {}: {error}", signer.1, signed.1))?;
        }
        Ok(())
    }

    /// Authorities that came along for nothing: which of them no authority at hand signed. Those of other products
    /// are welcome; a changed copy of a known one is not.
    pub(crate) fn forged_extras(&self, given: &Endorsements, trust: &SnpRoot) -> Vec<String> {
        let used = [&self.root.der, &self.intermediate.der];
        let extras = given
            .certificates
            .iter()
            .filter(|extra| !matches!(extra.role, CertificateRole::Vek(_)) && !used.contains(&&extra.der));
        let forged = extras.filter(|extra| {
            let at_hand = given.certificates.iter().chain(trust.known());
            let mut issuers = at_hand.filter(|issuer| issuer.subject() == extra.issuer());
            !issuers.any(|issuer| (issuer.sev(), extra.sev()).verify().is_ok())
        });
        forged.map(SnpCertificate::common_name).collect()
    }

    /// AMD's names keep VCEKs and VLEKs apart: one intermediate issues only the former, the other only the
    /// latter (57230, section 2).
    pub(crate) fn expected_issuer(&self, trusted: TrustedKey) -> Option<String> {
        let TrustedKey::Amd(product) = trusted else {
            return None;
        };
        Some(match self.facts.kind {
            SigningKey::Vcek => format!("SEV-{product}"),
            SigningKey::Vlek => format!("SEV-VLEK-{product}"),
        })
    }

    pub(crate) fn issuer_name(&self) -> String {
        common_name(self.vek.issuer()).unwrap_or_else(|| self.vek.issuer().to_string())
    }

    /// The time in which all three are valid.
    pub(crate) fn validity_s(&self) -> (u64, u64) {
        let validities = self.named().map(|(certificate, _)| certificate.validity_s());
        let from = validities.iter().map(|(from, _)| *from).max().unwrap_or(u64::MAX);
        let until = validities.iter().map(|(_, until)| *until).min().unwrap_or(0);
        (from, until)
    }

    /// Those that are not valid at `now_s`.
    pub(crate) fn outdated(&self, now_s: u64) -> Vec<&'static str> {
        let outdated = self.named().into_iter().filter(|(certificate, _)| {
            let (from, until) = certificate.validity_s();
            !(from..=until).contains(&now_s)
        });
        outdated.map(|(_, name)| name).collect()
    }

    /// The lists of this chain's root, each of which has to hold.
    pub(crate) fn crls<'a>(&self, given: &'a Endorsements) -> Vec<&'a Crl> {
        let mut crls = given.crls.iter().collect::<Vec<_>>();
        crls.retain(|crl| crl.is_issued_by(&self.root));
        crls
    }

    /// What the list of the root says against this chain, or why it says nothing.
    pub(crate) fn check_crl(&self, crl: &Crl, now_s: u64) -> Result<(), CrlVerdict> {
        crl.verify(&self.root)
            .map_err(|error| CrlVerdict::NotTheRoots(error.to_string()))?;
        let (from, until) = crl.validity_s();
        let until = until.ok_or(CrlVerdict::Endless)?;
        if !(from..=until).contains(&now_s) {
            return Err(CrlVerdict::Outdated { from, until });
        }
        let mut named = self.named().into_iter().take(2);
        match named.find(|(certificate, _)| crl.revokes(certificate)) {
            Some((_, name)) => Err(CrlVerdict::Revoked(name)),
            None => Ok(()),
        }
    }
}

/// Why a revocation list stands against a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CrlVerdict {
    NotTheRoots(String),
    Endless,
    Outdated { from: u64, until: u64 },
    Revoked(&'static str),
}

fn endorsement_key(
    given: &Endorsements,
    signing_key: Option<SigningKey>,
) -> Result<(&SnpCertificate, &VekFacts), ChainError> {
    let veks = given
        .certificates
        .iter()
        .filter_map(|certificate| match &certificate.role {
            CertificateRole::Vek(facts) => Some((certificate, facts)),
            CertificateRole::Root | CertificateRole::Intermediate => None,
        });
    let veks = veks.collect::<Vec<_>>();
    let wanted = veks.iter().filter(|(_, facts)| Some(facts.kind) == signing_key);
    match wanted.collect::<Vec<_>>()[..] {
        [one] => return Ok(*one),
        [] => {}
        ref many => return Err(ChainError::ManyEndorsementKeys(many.len())),
    }
    // One of the other kind is judged all the same: it fails for what it is, not for being absent.
    match veks[..] {
        [one] => Ok(one),
        [] => Err(ChainError::NoEndorsementKey(signing_key)),
        ref many => Err(ChainError::ManyEndorsementKeys(many.len())),
    }
}

fn issuer(
    given: &Endorsements,
    trust: &SnpRoot,
    subject: &SnpCertificate,
    is_role: impl Fn(&CertificateRole) -> bool,
) -> Result<SnpCertificate, ChainError> {
    let of = |certificates: &[SnpCertificate]| {
        let issuers = certificates
            .iter()
            .filter(|candidate| is_role(&candidate.role) && candidate.subject() == subject.issuer());
        issuers.cloned().collect::<Vec<_>>()
    };
    let mut found = of(&given.certificates);
    if found.is_empty() {
        found = of(trust.known());
    }
    let issuer_name = || common_name(subject.issuer()).unwrap_or_else(|| subject.issuer().to_string());
    match (found.pop(), found.len()) {
        (Some(issuer), 0) => Ok(issuer),
        (Some(_), more) => Err(ChainError::ManyIssuers(more + 1, issuer_name())),
        (None, _) => Err(ChainError::NoIssuer(issuer_name(), subject.common_name())),
    }
}
