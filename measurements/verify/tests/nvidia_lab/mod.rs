//! A GPU vendor for tests: keys, chains, reports, RIM files and OCSP responses of its own, in NVIDIA's form.

use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA384, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cocoon_verify::judgement::{FailureClass, Judgement, Status};
use cocoon_verify::nvidia::{
    Architecture, Demand, GpuMode, GuestFact, GuestReport, Hold, NvidiaInputs, NvidiaRoots, NvidiaTerms,
    judge_nvidia,
};
use der::asn1::{BitString, GeneralizedTime, Null, OctetString};
use der::oid::ObjectIdentifier;
use der::{Decode as _, Encode as _};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, SigningKey as _,
};
use x509_cert::Certificate;
use x509_ocsp::{
    BasicOcspResponse, CertId, CertStatus, OcspGeneralizedTime, OcspResponse, OcspResponseStatus,
    ResponderId, ResponseBytes, ResponseData, RevokedInfo, SingleResponse,
};

/// When everything is judged unless a test says otherwise.
pub(crate) const NOW_S: u64 = 1_780_272_000;
pub(crate) const NONCE: [u8; 32] = [0x5a; 32];
pub(crate) const FWID: [u8; 48] = [0xf1; 48];

/// A key and its certificate.
pub(crate) struct Signer {
    key: KeyPair,
    params: CertificateParams,
    pub(crate) der: Vec<u8>,
}

/// What a certificate is for.
pub(crate) enum Role {
    Authority,
    Leaf,
    Firmware([u8; 48]),
    Responder,
}

impl Signer {
    /// A certificate by `issuer`, or by itself.
    pub(crate) fn new(name: &str, role: &Role, issuer: Option<&Signer>) -> Self {
        Self::edited(name, role, issuer, |_| {})
    }

    pub(crate) fn edited(
        name: &str,
        role: &Role,
        issuer: Option<&Signer>,
        edit: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, name);
        match role {
            Role::Authority => {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            }
            _ => params.key_usages = vec![KeyUsagePurpose::DigitalSignature],
        }
        match role {
            Role::Firmware(fwid) => params.custom_extensions.push(composite_device_id(fwid)),
            Role::Responder => params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::OcspSigning),
            _ => {}
        }
        edit(&mut params);
        let certificate = match issuer {
            Some(issuer) => params
                .signed_by(&key, &Issuer::from_params(&issuer.params, &issuer.key))
                .unwrap(),
            None => params.self_signed(&key).unwrap(),
        };
        let der = certificate.der().to_vec();
        Self { key, params, der }
    }

    /// ECDSA P-384, SHA-384; r and s.
    fn sign(&self, message: &[u8]) -> Vec<u8> {
        p384::ecdsa::Signature::from_der(&self.key.sign(message).unwrap())
            .unwrap()
            .to_bytes()
            .to_vec()
    }
}

/// Version, a key, and the firmware's digest; the key is not looked at.
fn composite_device_id(fwid: &[u8; 48]) -> CustomExtension {
    let key = [0x30, 0x00];
    let algorithm = [0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
    let digest = [&[0x04, 48][..], fwid].concat();
    let identifier = [
        &[0x30, (algorithm.len() + digest.len()) as u8][..],
        &algorithm,
        &digest,
    ]
    .concat();
    let content = [&[0x02, 0x01, 0x01][..], &key, &identifier].concat();
    let extension = [&[0x30, content.len() as u8][..], &content].concat();
    CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], extension)
}

/// A device of the vendor, the vendor's authorities, and everything that evidence is judged with.
pub(crate) struct Lab {
    pub(crate) root: Signer,
    pub(crate) identity: Signer,
    pub(crate) provisioner: Signer,
    pub(crate) boot_rom: Signer,
    pub(crate) firmware: Signer,
    pub(crate) rim_root: Signer,
    pub(crate) rim_authority: Signer,
    pub(crate) rim_signer: Signer,
    pub(crate) opaque: Vec<(u16, Vec<u8>)>,
    pub(crate) rims: Vec<Vec<u8>>,
    pub(crate) ocsp: Vec<Vec<u8>>,
    pub(crate) policy: Option<NvidiaTerms>,
    pub(crate) guest: Option<GuestReport>,
    /// What the device was asked with.
    pub(crate) nonce: [u8; 32],
    pub(crate) now_s: u64,
}

impl Lab {
    /// A GH100 with driver 570.1 and VBIOS 96.00.A5.00.01 in single-GPU mode.
    pub(crate) fn new() -> Self {
        let root = Signer::new("Lab Device Root", &Role::Authority, None);
        let identity = Signer::new("Lab Identity", &Role::Authority, Some(&root));
        let provisioner = Signer::new("Lab Provisioner", &Role::Authority, Some(&identity));
        let boot_rom = Signer::new("GH100 A01 GSP BROM", &Role::Authority, Some(&provisioner));
        let firmware = Signer::new("GH100 A01 GSP FMC LF", &Role::Firmware(FWID), Some(&boot_rom));
        let rim_root = Signer::new("Lab RIM Root", &Role::Authority, None);
        let rim_authority = Signer::new("Lab RIM L3", &Role::Authority, Some(&rim_root));
        let rim_signer = Signer::new("Lab RIM L4", &Role::Leaf, Some(&rim_authority));
        let opaque = vec![
            (3, b"570.1\0".to_vec()),
            (6, vec![0, 0xa5, 0, 0x96, 1, 0, 0, 0]),
            (11, vec![0x55]),
            (15, b"885\0".to_vec()),
            (17, b"G520\0".to_vec()),
            (18, b"0200\0".to_vec()),
            (20, FWID.to_vec()),
            (34, vec![1, 0]),
            (36, vec![1, 0]),
        ];
        Self {
            root,
            identity,
            provisioner,
            boot_rom,
            firmware,
            rim_root,
            rim_authority,
            rim_signer,
            opaque,
            rims: vec![],
            ocsp: vec![],
            policy: None,
            guest: None,
            nonce: NONCE,
            now_s: NOW_S,
        }
    }

    /// The same with both RIM files, which hold for it.
    pub(crate) fn with_rims() -> Self {
        let mut lab = Self::new();
        lab.rims = lab.rims();
        lab
    }

    /// The files of driver and firmware, by the signer as it is now.
    pub(crate) fn rims(&self) -> Vec<Vec<u8>> {
        vec![
            self.rim("570.1", &[(1, measurement(1)), (35, [9; 48])]),
            self.firmware_rim(),
        ]
    }

    pub(crate) fn firmware_rim(&self) -> Vec<u8> {
        self.rim("96.00.A5.00.01", &[(0, measurement(0)), (2, measurement(2))])
    }

    pub(crate) fn set_opaque(&mut self, number: u16, value: &[u8]) {
        self.opaque.retain(|(other, _)| *other != number);
        self.opaque.push((number, value.to_vec()));
    }

    pub(crate) fn chain(&self) -> Vec<Vec<u8>> {
        [
            &self.firmware,
            &self.boot_rom,
            &self.provisioner,
            &self.identity,
            &self.root,
        ]
        .map(|one| one.der.clone())
        .into()
    }

    /// Request and response, signed; 40 measurements.
    pub(crate) fn report(&self) -> Vec<u8> {
        self.sign_report(self.unsigned_report(40, &self.opaque))
    }

    pub(crate) fn unsigned_report(&self, blocks: u8, opaque: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut report = [&[0x11, 0xe0, 0x01, 0xff][..], &self.nonce, &[0x00]].concat();
        let record_bytes = u32::from(blocks) * 55;
        report.extend([0x11, 0x60, 0x00, 0x00, blocks]);
        report.extend(&record_bytes.to_le_bytes()[..3]);
        for index in 1..=blocks {
            report.extend([index, 0x01, 51, 0, 0x01, 48, 0]);
            report.extend(measurement(index - 1));
        }
        report.extend([0xde; 32]);
        let fields = opaque.iter().map(|(number, value)| {
            [
                &number.to_le_bytes()[..],
                &(value.len() as u16).to_le_bytes(),
                value,
            ]
            .concat()
        });
        let fields: Vec<u8> = fields.flatten().collect();
        report.extend((fields.len() as u16).to_le_bytes());
        report.extend(fields);
        report
    }

    pub(crate) fn sign_report(&self, mut report: Vec<u8>) -> Vec<u8> {
        report.extend(self.firmware.sign(&report));
        report
    }

    /// NVIDIA's JSON with one object for each pair of report and chain.
    pub(crate) fn json(devices: &[(Vec<u8>, Vec<Vec<u8>>)]) -> Vec<u8> {
        let objects = devices.iter().map(|(report, chain)| {
            serde_json::json!({
                "arch": "HOPPER",
                "nonce": hex::encode(NONCE),
                "evidence": STANDARD.encode(report),
                "certificate": STANDARD.encode(pem(chain)),
            })
        });
        serde_json::to_vec(&objects.collect::<Vec<_>>()).unwrap()
    }

    pub(crate) fn rim(&self, version: &str, values: &[(u8, [u8; 48])]) -> Vec<u8> {
        let chain =
            [&self.rim_signer, &self.rim_authority, &self.rim_root].map(|one| STANDARD.encode(&one.der));
        signed_rim(&rim_body(version, values), &self.rim_signer, &chain)
    }

    pub(crate) fn roots(&self) -> NvidiaRoots {
        let roots = NvidiaRoots::pinned().with_device_root(&self.root.der).unwrap();
        roots.with_rim_root(&self.rim_root.der).unwrap()
    }

    pub(crate) fn judge(&self) -> Judgement {
        self.judge_evidence(&self.report())
    }

    pub(crate) fn judge_evidence(&self, evidence: &[u8]) -> Judgement {
        let inputs = NvidiaInputs {
            certificates: &self.chain(),
            rims: &self.rims,
            ocsp: &self.ocsp,
            nonce: Some(&NONCE),
            roots: &self.roots(),
            policy: self.policy.as_ref(),
            guest: self.guest,
            now_s: self.now_s,
        };
        judge_nvidia(evidence, &inputs)
    }
}

/// Certificates as text, one after the other.
pub(crate) fn pem(chain: &[Vec<u8>]) -> String {
    let block = |der| {
        let text = STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    };
    chain.iter().map(block).collect()
}

/// The value of a RIM index in every report.
pub(crate) fn measurement(index: u8) -> [u8; 48] {
    [index.wrapping_mul(7); 48]
}

/// A policy that the lab's device meets.
pub(crate) fn terms() -> NvidiaTerms {
    NvidiaTerms {
        architectures: vec![Architecture::Hopper],
        count: 1,
        driver_versions: vec!["570.1".into()],
        firmware_versions: vec!["96.00.A5.00.01".into()],
        modes: vec![GpuMode::SingleGpu],
        rims: Demand::Required,
        revocation: Demand::IfGiven,
        certificate_hold: Hold::Refused,
        confidential_compute: GuestFact::EnforcedByGuest,
        dev_tools: GuestFact::EnforcedByGuest,
    }
}

const NAMESPACES: &str = "xmlns=\"http://standards.iso.org/iso/19770/-2/2015/schema.xsd\" \
                          xmlns:ns2=\"http://www.w3.org/2001/04/xmlenc#sha384\"";

/// A document in canonical form, up to the signature.
pub(crate) fn rim_body(version: &str, values: &[(u8, [u8; 48])]) -> String {
    let values = values.iter().map(|(index, value)| {
        let value = hex::encode(value);
        format!(
            "<Resource active=\"True\" alternatives=\"1\" index=\"{index}\" size=\"48\" type=\"Measurement\" \
             ns2:Hash0=\"{value}\"></Resource>"
        )
    });
    format!(
        "<SoftwareIdentity {NAMESPACES} name=\"GH100\"><Meta colloquialVersion=\"{version}\" edition=\"GPU\" \
         product=\"GH100\"></Meta><Payload>{}</Payload>",
        values.collect::<String>()
    )
}

/// The document with an enveloped signature.
pub(crate) fn signed_rim(body: &str, signer: &Signer, chain: &[String]) -> Vec<u8> {
    let canonical = format!("{body}</SoftwareIdentity>");
    let digest = STANDARD.encode(digest(&SHA384, canonical.as_bytes()));
    let c14n = "Algorithm=\"http://www.w3.org/2006/12/xml-c14n11\"";
    let info = |namespaces: &str| {
        format!(
            "<ds:SignedInfo{namespaces}><ds:CanonicalizationMethod {c14n}></ds:CanonicalizationMethod>\
             <ds:SignatureMethod Algorithm=\"http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384\">\
             </ds:SignatureMethod><ds:Reference URI=\"\"><ds:Transforms>\
             <ds:Transform Algorithm=\"http://www.w3.org/2000/09/xmldsig#enveloped-signature\"></ds:Transform>\
             <ds:Transform {c14n}></ds:Transform></ds:Transforms>\
             <ds:DigestMethod Algorithm=\"http://www.w3.org/2001/04/xmldsig-more#sha384\"></ds:DigestMethod>\
             <ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
        )
    };
    // As the apex of its own document, SignedInfo declares what it inherits.
    let inherited = " xmlns=\"http://standards.iso.org/iso/19770/-2/2015/schema.xsd\" \
                     xmlns:ds=\"http://www.w3.org/2000/09/xmldsig#\" \
                     xmlns:ns2=\"http://www.w3.org/2001/04/xmlenc#sha384\"";
    let signature = STANDARD.encode(signer.sign(info(inherited).as_bytes()));
    let certificates = chain
        .iter()
        .map(|one| format!("<ds:X509Certificate>{one}</ds:X509Certificate>"))
        .collect::<String>();
    format!(
        "{body}<ds:Signature xmlns:ds=\"http://www.w3.org/2000/09/xmldsig#\">{}<ds:SignatureValue>{signature}\
         </ds:SignatureValue><ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo></ds:Signature>\
         </SoftwareIdentity>",
        info("")
    )
    .into_bytes()
}

/// An OCSP response about one certificate.
pub(crate) struct Answer<'a> {
    pub(crate) subject: &'a Signer,
    pub(crate) issuer: &'a Signer,
    pub(crate) signer: &'a Signer,
    /// Carried along if the signer is not the issuer.
    pub(crate) responder: Option<&'a Signer>,
    /// `None` is good, a number is the reason of a revocation.
    pub(crate) reason: Option<u8>,
    pub(crate) this_update_s: u64,
    pub(crate) next_update_s: Option<u64>,
}

impl<'a> Answer<'a> {
    /// Good, signed by the issuer, fresh.
    pub(crate) fn good(subject: &'a Signer, issuer: &'a Signer) -> Self {
        Self {
            subject,
            issuer,
            signer: issuer,
            responder: None,
            reason: None,
            this_update_s: NOW_S - 60,
            next_update_s: Some(NOW_S + 60),
        }
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        let decoded = |signer: &Signer| Certificate::from_der(&signer.der).unwrap();
        let issuer = decoded(self.issuer).tbs_certificate;
        let key = issuer.subject_public_key_info.subject_public_key;
        let sha1 =
            |bytes: &[u8]| OctetString::new(digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref()).unwrap();
        let single = SingleResponse {
            cert_id: CertId {
                hash_algorithm: algorithm("1.3.14.3.2.26"),
                issuer_name_hash: sha1(&issuer.subject.to_der().unwrap()),
                issuer_key_hash: sha1(key.raw_bytes()),
                serial_number: decoded(self.subject).tbs_certificate.serial_number,
            },
            cert_status: self.reason.map_or(CertStatus::Good(Null), |reason| {
                CertStatus::Revoked(RevokedInfo {
                    revocation_time: time(NOW_S - 3600),
                    revocation_reason: Some(der::Decode::from_der(&[0x0a, 1, reason]).unwrap()),
                })
            }),
            this_update: time(self.this_update_s),
            next_update: self.next_update_s.map(time),
            single_extensions: None,
        };
        let tbs_response_data = ResponseData {
            version: Default::default(),
            responder_id: ResponderId::ByName(decoded(self.signer).tbs_certificate.subject),
            produced_at: time(self.this_update_s),
            responses: vec![single],
            response_extensions: None,
        };
        let signature = self
            .signer
            .key
            .sign(&tbs_response_data.to_der().unwrap())
            .unwrap();
        let basic = BasicOcspResponse {
            tbs_response_data,
            signature_algorithm: algorithm("1.2.840.10045.4.3.3"),
            signature: BitString::from_bytes(&signature).unwrap(),
            certs: self.responder.map(|responder| vec![decoded(responder)]),
        };
        let response = OcspResponse {
            response_status: OcspResponseStatus::Successful,
            response_bytes: Some(ResponseBytes {
                response_type: ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1"),
                response: OctetString::new(basic.to_der().unwrap()).unwrap(),
            }),
        };
        response.to_der().unwrap()
    }
}

fn algorithm(oid: &str) -> x509_cert::spki::AlgorithmIdentifierOwned {
    let oid = ObjectIdentifier::new(oid).unwrap();
    x509_cert::spki::AlgorithmIdentifierOwned {
        oid,
        parameters: None,
    }
}

fn time(seconds: u64) -> OcspGeneralizedTime {
    OcspGeneralizedTime(GeneralizedTime::from_unix_duration(Duration::from_secs(seconds)).unwrap())
}

/// The names of the rows that fail.
pub(crate) fn failed(judgement: &Judgement) -> Vec<&str> {
    let failed = judgement
        .checks()
        .iter()
        .filter(|check| check.status == Status::Fail);
    failed.map(|check| check.id.as_str()).collect()
}

#[track_caller]
pub(crate) fn assert_fails(judgement: &Judgement, class: FailureClass, ids: &[&str]) {
    assert_eq!(failed(judgement), ids, "{judgement:#?}");
    assert_eq!(judgement.failure(), Some(class));
}

#[track_caller]
pub(crate) fn assert_passes(judgement: &Judgement) {
    assert_eq!(judgement.failure(), None, "{judgement:#?}");
}

#[track_caller]
pub(crate) fn status(judgement: &Judgement, id: &str) -> Status {
    judgement
        .checks()
        .iter()
        .find(|check| check.id == id)
        .unwrap_or_else(|| panic!("no row {id}"))
        .status
}
