//! A manufacturer of its own: root, intermediate and endorsement keys that are not AMD's, and reports that they
//! sign, so that tests can make valid evidence of anything.

use std::{
    collections::BTreeMap,
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cocoon_evidence::{Digest32, Digest48};
use cocoon_verify::{
    Bits64,
    judgement::{Judgement, Status},
    snp::{
        SNP_REPORT_BYTES, SnpInputs, SnpOwnerId, SnpPlatformInfoTerms, SnpProduct, SnpRoot,
        SnpSigningKeyTerm, SnpTcb, SnpTerms, judge_snp,
    },
};
use der::{
    Encode,
    asn1::{BitString, Ia5StringRef, ObjectIdentifier, OctetString},
};
use p384::elliptic_curve::rand_core::OsRng;
use rsa::{
    RsaPrivateKey, pss,
    signature::{RandomizedSigner, SignatureEncoding, Signer},
};
use sha2::Sha384;
use x509_cert::{
    Certificate, TbsCertificate, Version,
    crl::{CertificateList, RevokedCert, TbsCertList},
    ext::{
        Extension,
        pkix::{BasicConstraints, KeyUsage, KeyUsages},
    },
    name::Name,
    serial_number::SerialNumber,
    spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned},
    time::{Time, Validity},
};

/// When everything here is valid, unless a test says otherwise.
pub(crate) const NOW_S: u64 = 1_750_000_000;
pub(crate) const ASK_SERIAL: u8 = 7;
pub(crate) const CHIP: [u8; 64] = [0xc5; 64];
/// Version of each part: boot loader 4, TEE 0, SNP 24, microcode 219.
pub(crate) const TCB: [u8; 8] = [4, 0, 0, 0, 0, 0, 24, 219];
pub(crate) const TURIN_TCB: [u8; 8] = [1, 2, 3, 4, 0, 0, 0, 9];

type RsaKey = pss::SigningKey<Sha384>;

static ARK: LazyLock<RsaKey> = LazyLock::new(rsa_key);
static ASK: LazyLock<RsaKey> = LazyLock::new(rsa_key);
static VEK: LazyLock<p384::ecdsa::SigningKey> = LazyLock::new(|| p384::ecdsa::SigningKey::random(&mut OsRng));

/// Half of AMD's length, for speed.
fn rsa_key() -> RsaKey {
    RsaKey::new(RsaPrivateKey::new(&mut OsRng, 2048).unwrap())
}

/// One endorsement key's certificate.
#[derive(Clone)]
pub(crate) struct Vek {
    pub(crate) product: &'static str,
    pub(crate) tcb: [u8; 8],
    pub(crate) chip: Option<Vec<u8>>,
    pub(crate) provider: Option<&'static str>,
    pub(crate) validity_s: (u64, u64),
    pub(crate) is_authority: bool,
    pub(crate) more: Vec<Extension>,
}

impl Vek {
    pub(crate) fn milan() -> Self {
        Self {
            product: "Milan-B0",
            tcb: TCB,
            chip: Some(CHIP.to_vec()),
            provider: None,
            validity_s: (NOW_S - 1000, NOW_S + 1000),
            is_authority: false,
            more: Vec::new(),
        }
    }

    pub(crate) fn turin() -> Self {
        Self {
            product: "Turin",
            tcb: TURIN_TCB,
            chip: Some(CHIP[..8].to_vec()),
            ..Self::milan()
        }
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        let spl = |arc: &str, at: usize| amd(arc, self.tcb[at].to_der().unwrap());
        let mut extensions = vec![amd(
            "2",
            Ia5StringRef::new(self.product).unwrap().to_der().unwrap(),
        )];
        extensions.extend(match self.product {
            "Turin" => vec![
                spl("3.9", 0),
                spl("3.1", 1),
                spl("3.2", 2),
                spl("3.3", 3),
                spl("3.8", 7),
            ],
            _ => vec![spl("3.1", 0), spl("3.2", 1), spl("3.3", 6), spl("3.8", 7)],
        });
        extensions.extend(self.chip.clone().map(|chip| amd("4", chip)));
        let provider = self
            .provider
            .map(|name| Ia5StringRef::new(name).unwrap().to_der().unwrap());
        extensions.extend(provider.map(|provider| amd("5", provider)));
        extensions.extend(self.more.clone());
        if self.is_authority {
            extensions.extend(authority());
        }
        let key = p384::PublicKey::from(VEK.verifying_key());
        Issued {
            subject: "SEV-VCEK",
            issuer: "SEV-Milan",
            serial: 0,
            validity_s: self.validity_s,
            spki: SubjectPublicKeyInfoOwned::from_key(key).unwrap(),
            extensions,
            signer: &ASK,
        }
        .der()
    }
}

/// RSASSA-PSS with SHA-384, as AMD's certificates name it.
fn pss_sha384() -> AlgorithmIdentifierOwned {
    let amd = Certificate::from(sev::certs::snp::builtin::milan::ark().unwrap());
    amd.signature_algorithm
}

struct Issued {
    subject: &'static str,
    issuer: &'static str,
    serial: u8,
    validity_s: (u64, u64),
    spki: SubjectPublicKeyInfoOwned,
    extensions: Vec<Extension>,
    signer: &'static RsaKey,
}

impl Issued {
    fn der(self) -> Vec<u8> {
        let algorithm = pss_sha384();
        let (from, until) = self.validity_s;
        let tbs = TbsCertificate {
            version: Version::V3,
            serial_number: SerialNumber::new(&[self.serial]).unwrap(),
            signature: algorithm.clone(),
            issuer: name(self.issuer),
            validity: Validity {
                not_before: time(from),
                not_after: time(until),
            },
            subject: name(self.subject),
            subject_public_key_info: self.spki,
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(self.extensions),
        };
        let signature = sign(self.signer, &tbs.to_der().unwrap());
        let certificate = Certificate {
            tbs_certificate: tbs,
            signature_algorithm: algorithm,
            signature,
        };
        certificate.to_der().unwrap()
    }
}

pub(crate) fn ark() -> Vec<u8> {
    authority_certificate("ARK-Milan", "ARK-Milan", 1, &ARK, &ARK)
}

pub(crate) fn ask() -> Vec<u8> {
    authority_certificate("SEV-Milan", "ARK-Milan", ASK_SERIAL, &ASK, &ARK)
}

/// An intermediate with the right names that the root never signed.
pub(crate) fn ask_signed_by_itself() -> Vec<u8> {
    authority_certificate("SEV-Milan", "ARK-Milan", ASK_SERIAL, &ASK, &ASK)
}

/// An intermediate that may not sign.
pub(crate) fn ask_without_authority() -> Vec<u8> {
    issue_authority("SEV-Milan", "ARK-Milan", ASK_SERIAL, &ASK, &ARK, Vec::new())
}

fn authority_certificate(
    subject: &'static str,
    issuer: &'static str,
    serial: u8,
    key: &RsaKey,
    signer: &'static RsaKey,
) -> Vec<u8> {
    issue_authority(subject, issuer, serial, key, signer, authority())
}

fn issue_authority(
    subject: &'static str,
    issuer: &'static str,
    serial: u8,
    key: &RsaKey,
    signer: &'static RsaKey,
    extensions: Vec<Extension>,
) -> Vec<u8> {
    let private: &RsaPrivateKey = key.as_ref();
    Issued {
        subject,
        issuer,
        serial,
        validity_s: (NOW_S - 100_000, NOW_S + 100_000),
        spki: SubjectPublicKeyInfoOwned::from_key(private.to_public_key()).unwrap(),
        extensions,
        signer,
    }
    .der()
}

fn authority() -> Vec<Extension> {
    let extension = |oid: &str, value: Vec<u8>| Extension {
        extn_id: ObjectIdentifier::new(oid).unwrap(),
        critical: true,
        extn_value: OctetString::new(value).unwrap(),
    };
    let constraints = BasicConstraints {
        ca: true,
        path_len_constraint: None,
    };
    let usage = KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign);
    vec![
        extension("2.5.29.19", constraints.to_der().unwrap()),
        extension("2.5.29.15", usage.to_der().unwrap()),
    ]
}

/// One of AMD's extensions.
pub(crate) fn amd(arc: &str, value: Vec<u8>) -> Extension {
    Extension {
        extn_id: ObjectIdentifier::new(&format!("1.3.6.1.4.1.3704.1.{arc}")).unwrap(),
        critical: false,
        extn_value: OctetString::new(value).unwrap(),
    }
}

/// A revocation list of the root, or of another key under the root's name.
pub(crate) fn crl(serials: &[u8], next_update_s: Option<u64>, forged: bool) -> Vec<u8> {
    let algorithm = pss_sha384();
    let revoked = serials.iter().map(|serial| RevokedCert {
        serial_number: SerialNumber::new(&[*serial]).unwrap(),
        revocation_date: time(NOW_S - 10),
        crl_entry_extensions: None,
    });
    let tbs = TbsCertList {
        version: Version::V2,
        signature: algorithm.clone(),
        issuer: name("ARK-Milan"),
        this_update: time(NOW_S - 10),
        next_update: next_update_s.map(time),
        revoked_certificates: (!serials.is_empty()).then(|| revoked.collect()),
        crl_extensions: None,
    };
    let signer = if forged { &ASK } else { &ARK };
    let signature = sign(signer, &tbs.to_der().unwrap());
    let list = CertificateList {
        tbs_cert_list: tbs,
        signature_algorithm: algorithm,
        signature,
    };
    list.to_der().unwrap()
}

fn sign(key: &RsaKey, bytes: &[u8]) -> BitString {
    let signature = key.sign_with_rng(&mut OsRng, bytes).to_vec();
    BitString::from_bytes(&signature).unwrap()
}

fn name(common_name: &str) -> Name {
    format!("CN={common_name},O=Forged").parse().unwrap()
}

fn time(seconds: u64) -> Time {
    let time: SystemTime = UNIX_EPOCH + Duration::from_secs(seconds);
    Time::try_from(time).unwrap()
}

/// A report that passes, not signed yet.
pub(crate) fn report() -> [u8; SNP_REPORT_BYTES] {
    let mut report = [0; SNP_REPORT_BYTES];
    report[0] = 3;
    report[0x8..0x10].copy_from_slice(&0x3_0000u64.to_le_bytes());
    report[0x34] = 1;
    report[0x40] = 0x25;
    report[0x50..0x90].fill(0x11);
    report[0x90..0xc0].fill(0x22);
    report[0xc0..0xe0].fill(0x33);
    report[0x160..0x180].fill(0xff);
    report[0x188..0x18b].copy_from_slice(&[0x19, 0x01, 0x01]);
    report[0x1a0..0x1e0].copy_from_slice(&CHIP);
    for at in [0x38, 0x180, 0x1e0, 0x1f0] {
        report[at..at + 8].copy_from_slice(&TCB);
    }
    report
}

pub(crate) fn turin_report() -> [u8; SNP_REPORT_BYTES] {
    let mut report = report();
    report[0] = 5;
    report[0x188..0x18b].copy_from_slice(&[0x1a, 0x02, 0x01]);
    report[0x1a8..0x1e0].fill(0);
    for at in [0x38, 0x180, 0x1e0, 0x1f0] {
        report[at..at + 8].copy_from_slice(&TURIN_TCB);
    }
    report
}

/// Writes R and S, little-endian.
pub(crate) fn signed(mut report: [u8; SNP_REPORT_BYTES]) -> [u8; SNP_REPORT_BYTES] {
    let signature: p384::ecdsa::Signature = VEK.sign(&report[..0x2a0]);
    let (r, s) = signature.split_bytes();
    for (at, scalar) in [(0x2a0, r), (0x2a0 + 72, s)] {
        for (index, byte) in scalar.iter().rev().enumerate() {
            report[at + index] = *byte;
        }
    }
    report
}

/// What a test changes of a valid case.
pub(crate) struct Case {
    pub(crate) report: [u8; SNP_REPORT_BYTES],
    pub(crate) files: Vec<Vec<u8>>,
    pub(crate) root: SnpRoot,
    pub(crate) terms: Option<SnpTerms>,
    pub(crate) nonce: Option<Vec<u8>>,
    pub(crate) now_s: u64,
}

impl Case {
    pub(crate) fn milan() -> Self {
        Self {
            report: report(),
            files: vec![Vek::milan().der(), ask()],
            root: SnpRoot::from_file(&ark()).unwrap(),
            terms: None,
            nonce: None,
            now_s: NOW_S,
        }
    }

    pub(crate) fn turin() -> Self {
        Self {
            report: turin_report(),
            files: vec![Vek::turin().der(), ask()],
            ..Self::milan()
        }
    }

    /// Signs the report as it is now and judges it.
    pub(crate) fn judge(&self) -> Judgement {
        self.judge_bytes(&signed(self.report))
    }

    pub(crate) fn judge_bytes(&self, report: &[u8]) -> Judgement {
        let files = self.files.iter().map(Vec::as_slice).collect::<Vec<_>>();
        judge_snp(&SnpInputs {
            report,
            endorsements: &files,
            root: &self.root,
            terms: self.terms.as_ref(),
            nonce: self.nonce.as_deref(),
            now_s: self.now_s,
        })
    }
}

/// The rows that failed.
pub(crate) fn failed(judgement: &Judgement) -> Vec<&str> {
    let failed = judgement
        .checks()
        .iter()
        .filter(|check| check.status == Status::Fail);
    failed.map(|check| check.id.as_str()).collect()
}

/// What the forged Milan report states.
pub(crate) fn terms() -> SnpTerms {
    let floor = SnpTcb {
        fmc: None,
        bootloader: 4,
        tee: 0,
        snp: 24,
        microcode: 219,
    };
    SnpTerms {
        measurement: vec![Digest48([0x22; 48])],
        host_data: vec![Digest32([0x33; 32])],
        guest_policy: vec![Bits64(0x3_0000)],
        vmpl: vec![0],
        family_id: vec![SnpOwnerId([0; 16])],
        image_id: vec![SnpOwnerId([0; 16])],
        guest_svn_min: 0,
        id_key_digest: vec![Digest48::ZERO],
        author_key_digest: vec![Digest48::ZERO],
        signing_key: vec![SnpSigningKeyTerm::Vcek],
        platform_info: SnpPlatformInfoTerms {
            required: Bits64(0x20),
            allowed: Bits64(0xbf),
        },
        tcb_min: BTreeMap::from([(SnpProduct::Milan, floor)]),
    }
}
