//! What a verdict rests upon, byte for byte as it came, and the verdict itself. Judging is pure: it does no I/O and
//! reads no clock, so that a record that was saved is judged again by the same code ([`Record::judge`]).

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use cocoon_evidence::{
    BUNDLE_BYTES_MAX, CERTIFICATE_BYTES_MAX, Digest32, ENDORSEMENTS_BYTES_MAX, EventKind, EvidenceBundle,
    FRESH_BYTES_MAX, FreshBinding, FreshEvidence, NONCE_BYTES, Register, TlsBinding,
};
use cocoon_protocol::LaunchDocument;
use cocoon_verify::{Appraiser, Floors, PlatformId, Policy, Refusal, Report, TrustedGuest};
use serde::{Deserialize, Serialize};

use crate::{ConnectError, Leaf, Proof, proof::Moment, transport::Challenge};

const RECORD_VERSION: u32 = 1;
const SESSION_FILE: &str = "session.json";
const SESSION_BYTES_MAX: usize = 4096;
const CERTIFICATE_FILE: &str = "certificate.der";
/// Only where the certificate names its evidence by digest.
const NAMED_EVIDENCE_FILE: &str = "certificate-evidence.cbor";
const ENDORSEMENTS_FILE: &str = "endorsements.cbor";
const EVIDENCE_FILE: &str = "evidence.cbor";

/// One connection's evidence. What was not asked for any more, because the guest was refused before, is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    session: SessionFacts,
    certificate: Vec<u8>,
    /// The bundle that the certificate names, if it carries none.
    pub(crate) named_evidence: Option<Vec<u8>>,
    pub(crate) endorsements: Option<Vec<u8>>,
    pub(crate) evidence: Option<Vec<u8>>,
}

/// What the certificate and the evidence are held against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionFacts {
    version: u32,
    node: String,
    judged_s: u64,
    #[serde(with = "hex::serde")]
    nonce: [u8; NONCE_BYTES],
    #[serde(with = "hex::serde")]
    exporter: [u8; 32],
}

/// What was judged so far. On a refusal the last report holds the reason.
#[derive(Debug, Clone, Serialize)]
pub struct Verification {
    /// Evidence in the TLS certificate: binds its key, the usage key and the event log.
    pub certificate: Report,
    /// Evidence under this client's nonce, for this connection; `None` when it was not asked for any more.
    pub fresh: Option<Report>,
    /// What the evidence says beside the rows.
    pub facts: Facts,
}

/// What the evidence says. True only if every row holds.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// Of the certificate, DER.
    pub certificate_sha256: Digest32,
    /// First second at which it is valid, since 1970.
    pub not_before_s: i64,
    /// Last second at which it is valid, since 1970.
    pub not_after_s: i64,
    /// At which second the rows were judged.
    pub judged_s: u64,
    /// The policy's first second of not being valid any more.
    pub policy_expires_s: u64,
    /// Which machine it is, as the platform's vendor says; absent while that is not proven.
    pub platform: Option<String>,
    /// GPUs whose evidence is in the certificate.
    pub gpus: usize,
    /// What RTMR3 records.
    pub events: Vec<EventFact>,
}

/// One event of RTMR3.
#[derive(Debug, Clone, Serialize)]
pub struct EventFact {
    /// Its name.
    pub name: &'static str,
    /// Length of its payload.
    pub bytes: usize,
    /// The payload: text as it is (a launch document), else hexadecimal.
    pub payload: String,
    /// What RTMR3 was extended with.
    pub digest: String,
    /// RTMR3 after it.
    pub register: String,
}

/// Why a record cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system.
    #[error("the record's file {path} cannot be {attempted}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Written or read.
        attempted: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Longer than what such a file can be.
    #[error(
        "the record's file {path} is longer than {bytes_max} bytes: it is not one that `cocoon verify --save` wrote"
    )]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// The bound.
        bytes_max: usize,
    },
    /// Not what `--save` writes.
    #[error("{path} does not describe a saved verification")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Of another version of this program.
    #[error("{path} has version {found}, this program reads version {RECORD_VERSION}")]
    Version {
        /// Which file.
        path: PathBuf,
        /// As written.
        found: u32,
    },
}

/// What the certificate alone proved.
pub(crate) struct Certified<'a> {
    leaf: Leaf,
    /// Knows what it verified of the endorsements.
    appraiser: Appraiser<'a>,
    guest: TrustedGuest,
    verification: Verification,
}

impl Record {
    pub(crate) fn new(node: String, challenge: &Challenge, judged_s: u64) -> Self {
        Self {
            session: SessionFacts {
                version: RECORD_VERSION,
                node,
                judged_s,
                nonce: challenge.nonce,
                exporter: challenge.exporter,
            },
            certificate: challenge.leaf_der.clone(),
            named_evidence: None,
            endorsements: None,
            evidence: None,
        }
    }

    /// The node that it is of.
    pub fn node(&self) -> &str {
        &self.session.node
    }

    /// When it was made and judged, seconds since 1970.
    pub fn judged_s(&self) -> u64 {
        self.session.judged_s
    }

    /// Judges everything again, as of the second at which it was made: certificates live a day.
    ///
    /// # Errors
    /// As [`crate::connect`]; a record that breaks off is refused where it does.
    pub fn judge(&self, policy: &Policy, floors: Floors) -> Result<Proof, ConnectError> {
        let now_s = self.session.judged_s;
        let leaf = Leaf::parse(&self.certificate, i64::try_from(now_s).unwrap_or(i64::MAX))?;
        let certified = self.judge_certificate(leaf, policy, floors)?;
        self.judge_fresh(certified, policy, Moment::at(now_s))
    }

    /// The evidence in the certificate, which is `leaf`.
    pub(crate) fn judge_certificate<'a>(
        &self,
        leaf: Leaf,
        policy: &'a Policy,
        floors: Floors,
    ) -> Result<Certified<'a>, ConnectError> {
        let now_s = self.session.judged_s;
        let bundle = leaf.bundle(self.named_evidence.as_deref())?;
        let bundle = bundle.ok_or(ConnectError::Incomplete)?;
        let events = &bundle.events;
        let usage_key = events.payload(EventKind::UsageKey).unwrap_or_default();
        let binding = TlsBinding {
            spki: &leaf.spki,
            // A key of another length is refused by the appraisal of the event; it only has to be bound to nothing.
            usage_key: usage_key.try_into().unwrap_or(&[0; 32]),
            not_before_s: leaf.not_before_s,
            not_after_s: leaf.not_after_s,
            role: policy.role(),
            log: events.replay(),
        };
        let endorsements = self.endorsements.as_deref().ok_or(ConnectError::Incomplete)?;
        let data = binding.report_data();
        let mut appraiser = Appraiser::new(policy, floors, endorsements, now_s);
        let appraisal = appraiser.appraise(&bundle, &data);
        let mut verification = Verification {
            certificate: appraisal.report.clone(),
            fresh: None,
            facts: Facts::new(&leaf, &bundle, policy, now_s),
        };
        match appraisal.into_trusted() {
            Ok(guest) => {
                verification.facts.platform = Some(platform_text(guest.platform()));
                Ok(Certified {
                    leaf,
                    appraiser,
                    guest,
                    verification,
                })
            }
            Err(refusal) => Err(refused(refusal, verification)),
        }
    }

    /// The evidence under this client's nonce. `made`: before it was asked for.
    pub(crate) fn judge_fresh(
        &self,
        certified: Certified<'_>,
        policy: &Policy,
        made: Moment,
    ) -> Result<Proof, ConnectError> {
        let Certified {
            leaf,
            mut appraiser,
            guest: certified,
            mut verification,
        } = certified;
        let evidence = self.evidence.as_ref().ok_or(ConnectError::Incomplete)?;
        let fresh = FreshEvidence::decode(evidence).map_err(ConnectError::Evidence)?;
        let binding = FreshBinding {
            nonce: &self.session.nonce,
            exporter: &self.session.exporter,
            certificate: leaf.digest,
            role: policy.role(),
            log: fresh.bundle.events.replay(),
        };
        let data = fresh.report_data(&binding.leaf());
        let appraisal = appraiser.appraise(&fresh.bundle, &data);
        verification.fresh = Some(appraisal.report.clone());
        let guest = match appraisal.into_trusted() {
            Ok(guest) => guest,
            Err(refusal) => return Err(refused(refusal, verification)),
        };
        if guest.events() != certified.events() || guest.usage_key() != certified.usage_key() {
            return Err(ConnectError::AnotherGuest {
                verification: Box::new(verification),
            });
        }
        let launch = LaunchDocument::parse(guest.launch_document()).map_err(ConnectError::LaunchDocument)?;
        Ok(Proof::new(guest, launch, verification, &leaf, made))
    }

    /// Writes it into a new folder.
    ///
    /// # Errors
    /// See [`RecordError`]; a folder that is there already is not written over.
    pub fn save(&self, folder: &Path) -> Result<(), RecordError> {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(folder)
            .map_err(|source| io_error(folder, "made", source))?;
        let session = serde_json::to_vec_pretty(&self.session).expect("plain values are JSON");
        let files = [
            (CERTIFICATE_FILE, Some(&self.certificate)),
            (NAMED_EVIDENCE_FILE, self.named_evidence.as_ref()),
            (ENDORSEMENTS_FILE, self.endorsements.as_ref()),
            (EVIDENCE_FILE, self.evidence.as_ref()),
            // Last: a record without it is one that was not finished.
            (SESSION_FILE, Some(&session)),
        ];
        for (name, bytes) in files {
            let Some(bytes) = bytes else { continue };
            let path = folder.join(name);
            let mut options = File::options();
            let opened = options.write(true).create_new(true).mode(0o600).open(&path);
            opened
                .and_then(|mut file| file.write_all(bytes))
                .map_err(|source| io_error(&path, "written", source))?;
        }
        Ok(())
    }

    /// Reads what [`Self::save`] wrote.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn load(folder: &Path) -> Result<Self, RecordError> {
        let path = folder.join(SESSION_FILE);
        let text = read(&path, SESSION_BYTES_MAX)?;
        let session: SessionFacts =
            serde_json::from_slice(&text).map_err(|source| RecordError::Malformed {
                path: path.clone(),
                source,
            })?;
        if session.version != RECORD_VERSION {
            return Err(RecordError::Version {
                path,
                found: session.version,
            });
        }
        let optional = |name, bytes_max| match read(&folder.join(name), bytes_max) {
            Err(RecordError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        };
        Ok(Self {
            session,
            certificate: read(&folder.join(CERTIFICATE_FILE), CERTIFICATE_BYTES_MAX)?,
            named_evidence: optional(NAMED_EVIDENCE_FILE, BUNDLE_BYTES_MAX)?,
            endorsements: optional(ENDORSEMENTS_FILE, ENDORSEMENTS_BYTES_MAX)?,
            evidence: optional(EVIDENCE_FILE, FRESH_BYTES_MAX)?,
        })
    }
}

impl Facts {
    fn new(leaf: &Leaf, bundle: &EvidenceBundle, policy: &Policy, judged_s: u64) -> Self {
        Self {
            certificate_sha256: leaf.digest,
            not_before_s: leaf.not_before_s,
            not_after_s: leaf.not_after_s,
            judged_s,
            policy_expires_s: policy.terms().expires_s,
            platform: None,
            gpus: bundle.gpu.len(),
            events: events(bundle),
        }
    }
}

fn events(bundle: &EvidenceBundle) -> Vec<EventFact> {
    let mut register = Register::RESET;
    let fact = |event: &cocoon_evidence::RuntimeEvent| {
        let digest = event.digest();
        register.extend(&digest);
        let text = std::str::from_utf8(&event.payload).ok();
        let printable = text.filter(|text| !text.chars().any(|char| char.is_control() && char != '\n'));
        EventFact {
            name: event.kind.name(),
            bytes: event.payload.len(),
            payload: printable.map_or_else(|| hex::encode(&event.payload), str::to_owned),
            digest: digest.to_string(),
            register: register.value().to_string(),
        }
    };
    bundle.events.events().iter().map(fact).collect()
}

fn platform_text(id: &PlatformId) -> String {
    match id {
        PlatformId::Tdx { fmspc, ppid } => {
            format!("TDX, FMSPC {}, PPID {}", hex::encode(fmspc), hex::encode(ppid))
        }
        PlatformId::Snp { chip_id } => format!("SEV-SNP, chip {}", hex::encode(chip_id)),
    }
}

fn refused(refusal: Refusal, verification: Verification) -> ConnectError {
    ConnectError::Refused {
        refusal,
        verification: Box::new(verification),
    }
}

fn read(path: &Path, bytes_max: usize) -> Result<Vec<u8>, RecordError> {
    let mut bytes = vec![];
    File::open(path)
        .and_then(|file| file.take(bytes_max as u64 + 1).read_to_end(&mut bytes))
        .map_err(|source| io_error(path, "read", source))?;
    if bytes.len() > bytes_max {
        return Err(RecordError::TooLarge {
            path: path.to_owned(),
            bytes_max,
        });
    }
    Ok(bytes)
}

fn io_error(path: &Path, attempted: &'static str, source: io::Error) -> RecordError {
    RecordError::Io {
        path: path.to_owned(),
        attempted,
        source,
    }
}
