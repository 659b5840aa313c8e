//! The simulated platform's certificates: shaped like Intel's (Intel SGX PCK Certificate and Certificate
//! Revocation List Profile Specification, revision 1.5), with names that say SIMULATED.

use cocoon_evidence::Digest32;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, CustomExtension,
    DistinguishedName, DnType, IsCa, Issuer, KeyUsagePurpose, PublicKeyData as _, SerialNumber,
};
use time::OffsetDateTime;

use crate::{keys::Key, td::Tcb};

/// Validity of all certificates, fixed so that they follow from their keys; what has to stay fresh is the
/// collateral.
pub(crate) const FIRST_YEAR: i32 = 2025;
/// End of the validity, exclusive.
pub(crate) const LAST_YEAR: i32 = 2050;

/// id-ce-sgx: 1.2.840.113741.1.13.1.
const SGX_EXTENSION_OID: [u64; 7] = [1, 2, 840, 113_741, 1, 13, 1];
/// The same, DER contents.
const SGX_EXTENSION_OID_DER: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01];

/// Common name of the root; verifiers recognise simulated roots by its beginning.
pub(crate) const ROOT_NAME: &str = "Cocoon SIMULATED TDX Root CA";
const PCK_CA_NAME: &str = "Cocoon SIMULATED PCK Platform CA";
const PCK_NAME: &str = "Cocoon SIMULATED PCK Certificate";
const TCB_SIGNING_NAME: &str = "Cocoon SIMULATED TCB Signing";

/// The private keys behind the certificates.
#[derive(Debug, Clone)]
pub(crate) struct CertifiedKeys {
    pub(crate) root: Key,
    pub(crate) pck_ca: Key,
    pub(crate) pck: Key,
    pub(crate) tcb_signing: Key,
}

/// The certificates, PEM.
#[derive(Debug, Clone)]
pub(crate) struct Certificates {
    pub(crate) root: String,
    pub(crate) pck_ca: String,
    pub(crate) pck: String,
    pub(crate) tcb_signing: String,
}

impl CertifiedKeys {
    pub(crate) fn issue(&self, tcb: &Tcb) -> Result<Certificates, rcgen::Error> {
        let root = ca(ROOT_NAME, 1, &self.root);
        let root_issuer = Issuer::from_params(&root, &self.root);
        let pck_ca = ca(PCK_CA_NAME, 0, &self.pck_ca);
        let pck_ca_issuer = Issuer::from_params(&pck_ca, &self.pck_ca);
        let mut pck = leaf(PCK_NAME, &self.pck);
        let ppid = Digest32::of(self.pck.der_bytes());
        pck.custom_extensions = vec![CustomExtension::from_oid_content(
            &SGX_EXTENSION_OID,
            sgx_extension(&ppid.as_bytes()[..16], tcb),
        )];
        let tcb_signing = leaf(TCB_SIGNING_NAME, &self.tcb_signing);
        Ok(Certificates {
            root: pem(&root.self_signed(&self.root)?),
            pck_ca: pem(&pck_ca.signed_by(&self.pck_ca, &root_issuer)?),
            pck: pem(&pck.signed_by(&self.pck, &pck_ca_issuer)?),
            tcb_signing: pem(&tcb_signing.signed_by(&self.tcb_signing, &root_issuer)?),
        })
    }

    /// Revocation lists of the root and of the PCK CA, DER; both empty.
    pub(crate) fn revocation_lists(
        &self,
        issued_s: u64,
        next_update_s: u64,
    ) -> Result<[Vec<u8>; 2], rcgen::Error> {
        let list = |name, path_length, key: &Key| {
            let params = CertificateRevocationListParams {
                this_update: date(issued_s),
                next_update: date(next_update_s),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: vec![],
                key_identifier_method: rcgen::KeyIdMethod::Sha256,
            };
            let issuer = ca(name, path_length, key);
            let list = params.signed_by(&Issuer::from_params(&issuer, key))?;
            Ok(list.der().to_vec())
        };
        Ok([
            list(ROOT_NAME, 1, &self.root)?,
            list(PCK_CA_NAME, 0, &self.pck_ca)?,
        ])
    }
}

/// `seconds` since 1970 as a date.
pub(crate) fn date(seconds: u64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
}

fn ca(name: &str, path_length: u8, key: &Key) -> CertificateParams {
    let mut params = common(name, key);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf(name: &str, key: &Key) -> CertificateParams {
    let mut params = common(name, key);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn common(name: &str, key: &Key) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Cocoon SIMULATED platform, no security");
    params.not_before = rcgen::date_time_ymd(FIRST_YEAR, 1, 1);
    params.not_after = rcgen::date_time_ymd(LAST_YEAR, 1, 1);
    // Positive and at most 20 bytes (RFC 5280, 4.1.2.2).
    let mut serial = Digest32::of(key.der_bytes()).as_bytes()[..20].to_vec();
    serial[0] = serial[0] & 0x3f | 0x40;
    params.serial_number = Some(SerialNumber::from(serial));
    params
}

fn pem(certificate: &Certificate) -> String {
    certificate.pem().replace("\r\n", "\n")
}

/// The SGX extension of a PCK certificate (the profile's section 1.3.5): PPID, TCB, PCE-ID, FMSPC, SGX type
/// (0, "standard").
fn sgx_extension(ppid: &[u8], tcb: &Tcb) -> Vec<u8> {
    let mut components: Vec<u8> = (1..)
        .zip(tcb.cpu_svn)
        .flat_map(|(number, svn)| entry(&[2, number], &tlv(INTEGER, &[svn])))
        .collect();
    components.extend(entry(&[2, 17], &tlv(INTEGER, &[tcb.pce_svn])));
    components.extend(entry(&[2, 18], &tlv(OCTET_STRING, &tcb.cpu_svn)));
    tlv(
        SEQUENCE,
        &[
            entry(&[1], &tlv(OCTET_STRING, ppid)),
            entry(&[2], &tlv(SEQUENCE, &components)),
            entry(&[3], &tlv(OCTET_STRING, &tcb.pce_id)),
            entry(&[4], &tlv(OCTET_STRING, &tcb.fmspc)),
            entry(&[5], &tlv(ENUMERATED, &[0])),
        ]
        .concat(),
    )
}

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const SEQUENCE: u8 = 0x30;

/// SEQUENCE { OBJECT IDENTIFIER id-ce-sgx.`arcs`, `value` }; the arcs are below 128.
fn entry(arcs: &[u8], value: &[u8]) -> Vec<u8> {
    let oid = tlv(OBJECT_IDENTIFIER, &[&SGX_EXTENSION_OID_DER, arcs].concat());
    tlv(SEQUENCE, &[oid, value.to_vec()].concat())
}

/// A DER value (X.690, 8.1) of at most 65535 bytes. Integers here are below 128, so they need no sign byte.
fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(value.len())
        .expect("the extension is built here from short values")
        .to_be_bytes();
    let length: &[u8] = match (high, low) {
        (0, 0..=0x7f) => &[low],
        (0, _) => &[0x81, low],
        _ => &[0x82, high, low],
    };
    [&[tag], length, value].concat()
}
