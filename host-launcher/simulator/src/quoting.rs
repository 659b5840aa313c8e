//! The quoting enclave: turns a TD report into a quote (Intel TDX DCAP Quote Generation Library and Quote
//! Verification Library, revision 0.9, appendix A: "Quote format version 4").

use cocoon_evidence::Digest32;

use crate::{keys::Key, td::SIMULATED_TCB};

/// TD_REPORT10: what is quoted.
pub(crate) const TD_REPORT_BYTES: usize = 584;

/// Product id and security version that the QE identity names.
pub(crate) const QE_ISV_PROD_ID: u16 = 2;
pub(crate) const QE_ISV_SVN: u16 = 4;

const QUOTE_VERSION: u16 = 4;
const KEY_TYPE_ECDSA_P256: u16 = 2;
const TEE_TYPE_TDX: u32 = 0x81;
/// Intel's vendor id: verifiers of this quote format know no other.
const QE_VENDOR_ID: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];
/// INIT, MODE64BIT and PROVISION_KEY; XFRM x87 to AVX-512.
const QE_ATTRIBUTES: [u8; 16] = [0x15, 0, 0, 0, 0, 0, 0, 0, 0xe7, 0, 0, 0, 0, 0, 0, 0];
const CERT_DATA_PCK_CHAIN: u16 = 5;
const CERT_DATA_QE_REPORT: u16 = 6;

/// MRSIGNER of the simulated quoting enclave.
pub(crate) fn qe_mr_signer() -> [u8; 32] {
    *Digest32::of(b"Cocoon SIMULATED quoting enclave signer").as_bytes()
}

/// A quoting enclave whose attestation key the PCK has certified.
#[derive(Debug)]
pub(crate) struct QuotingEnclave {
    attestation: Key,
    qe_id: Digest32,
    /// QE report, its signature, QE authentication data and the PCK chain: the same in every quote.
    certification: Vec<u8>,
}

impl QuotingEnclave {
    /// `pck_chain`: PCK leaf, PCK CA and root, PEM.
    pub(crate) fn new(attestation: Key, pck: &Key, pck_chain: &str) -> Self {
        let authentication: [u8; 32] = *Digest32::of(b"Cocoon SIMULATED QE authentication data").as_bytes();
        let bound = Digest32::of_parts([attestation.public_xy(), &authentication]);
        let report = qe_report(&bound);
        let certification = [
            report.as_slice(),
            &pck.sign_raw(&report),
            &(authentication.len() as u16).to_le_bytes(),
            &authentication,
            &certification_data(CERT_DATA_PCK_CHAIN, pck_chain.as_bytes()),
        ]
        .concat();
        Self {
            qe_id: Digest32::of(pck.public_xy()),
            attestation,
            certification,
        }
    }

    pub(crate) fn quote(&self, td_report: &[u8; TD_REPORT_BYTES]) -> Vec<u8> {
        let mut quote = self.header();
        quote.extend(td_report);
        let signature = self.attestation.sign_raw(&quote);
        let authentication = [
            signature.as_slice(),
            self.attestation.public_xy(),
            &certification_data(CERT_DATA_QE_REPORT, &self.certification),
        ]
        .concat();
        quote.extend((authentication.len() as u32).to_le_bytes());
        quote.extend(authentication);
        quote
    }

    /// 48 bytes; the last 20 are user data that begin with the QE's id.
    fn header(&self) -> Vec<u8> {
        [
            QUOTE_VERSION.to_le_bytes().as_slice(),
            &KEY_TYPE_ECDSA_P256.to_le_bytes(),
            &TEE_TYPE_TDX.to_le_bytes(),
            &[0; 4],
            &QE_VENDOR_ID,
            &self.qe_id.as_bytes()[..16],
            &[0; 4],
        ]
        .concat()
    }
}

/// The report of the quoting enclave (Intel SDM volume 3D, "REPORT", 384 bytes).
fn qe_report(report_data: &Digest32) -> Vec<u8> {
    [
        SIMULATED_TCB.cpu_svn.as_slice(),
        &[0; 32], // MISCSELECT, reserved
        &QE_ATTRIBUTES,
        Digest32::of(b"Cocoon SIMULATED quoting enclave").as_bytes(),
        &[0; 32],
        &qe_mr_signer(),
        &[0; 96],
        &QE_ISV_PROD_ID.to_le_bytes(),
        &QE_ISV_SVN.to_le_bytes(),
        &[0; 60],
        report_data.as_bytes(),
        &[0; 32],
    ]
    .concat()
}

fn certification_data(kind: u16, data: &[u8]) -> Vec<u8> {
    [
        kind.to_le_bytes().as_slice(),
        &(data.len() as u32).to_le_bytes(),
        data,
    ]
    .concat()
}
