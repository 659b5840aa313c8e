//! One simulated machine: its keys and certificates, and the endorsements that Intel would publish for it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;
use serde_json::json;
use time::format_description::well_known::Rfc3339;

use crate::{
    certificates::{CertifiedKeys, FIRST_YEAR, LAST_YEAR, date},
    keys::{self, Key},
    quoting::{QE_ISV_PROD_ID, QE_ISV_SVN, QuotingEnclave, qe_mr_signer},
    td::{InitialRegisters, SIMULATED_TCB, SimulatedTd},
};

/// How long collateral is valid, like Intel's.
pub const COLLATERAL_LIFETIME_S: u64 = 30 * 24 * 3600;

/// Collateral is dated back by this much, so that a client whose clock is a little behind accepts it.
const CLOCK_SKEW_S: u64 = 3600;

/// `tcbEvaluationDataNumber` of the simulated collateral.
pub const SIMULATED_TCB_EVALUATION_NUMBER: u32 = 1;

/// Where [`SimulatedPlatform::open_or_create`] leaves the root certificate for `cocoon-measure predict --root`.
const ROOT_FILE: &str = "root.pem";

/// Why there is no simulated platform, or no endorsements for it.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// The state directory.
    #[error("cannot {attempted} {path} for the simulated platform; check that the directory can be written")]
    Io {
        /// What was tried.
        attempted: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A key file that holds no key. It is not replaced, because policies may name its root.
    #[error(
        "{path} does not hold a P-256 private key in PKCS #8; restore it, or remove the directory to get a new \
         simulated platform (policies that name the old root then accept nothing)"
    )]
    Key {
        /// Which file.
        path: PathBuf,
    },
    /// The clock is not set.
    #[error(
        "the clock says {now_s} s since 1970, outside the years {FIRST_YEAR} to {LAST_YEAR} in which simulated \
         certificates are valid; set the clock"
    )]
    Clock {
        /// What it says.
        now_s: u64,
    },
    /// Encoding a certificate or revocation list.
    #[error("cannot make the simulated platform's certificates")]
    Certificate(#[from] rcgen::Error),
}

/// A simulated machine. Cloning it is cheap.
#[derive(Debug, Clone)]
pub struct SimulatedPlatform {
    keys: CertifiedKeys,
    root_pem: String,
    pck_ca_chain: String,
    tcb_signing_chain: String,
    quoting: Arc<QuotingEnclave>,
}

impl SimulatedPlatform {
    /// Opens the machine whose keys are in `dir`, or makes one. `now_s`: seconds since 1970.
    ///
    /// # Errors
    /// `dir` cannot be written, holds something else, or the clock is not set.
    pub fn open_or_create(dir: &Path, now_s: u64) -> Result<Self, PlatformError> {
        check_clock(now_s)?;
        std::fs::create_dir_all(dir).map_err(|source| keys::io_error("create", dir, source))?;
        let keys = CertifiedKeys {
            root: Key::open_or_create(dir, "root.key")?,
            pck_ca: Key::open_or_create(dir, "pck-ca.key")?,
            pck: Key::open_or_create(dir, "pck.key")?,
            tcb_signing: Key::open_or_create(dir, "tcb-signing.key")?,
        };
        let certificates = keys.issue(&SIMULATED_TCB)?;
        keys::write_atomically(&dir.join(ROOT_FILE), certificates.root.as_bytes())?;
        let pck_ca_chain = certificates.pck_ca + &certificates.root;
        let quoting = QuotingEnclave::new(
            Key::open_or_create(dir, "attestation.key")?,
            &keys.pck,
            &(certificates.pck + &pck_ca_chain),
        );
        Ok(Self {
            keys,
            tcb_signing_chain: certificates.tcb_signing + &certificates.root,
            root_pem: certificates.root,
            pck_ca_chain,
            quoting: Arc::new(quoting),
        })
    }

    /// The test root, PEM: what a policy's `platform.root_pem` names, with `platform.simulated = true`.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The endorsements, as the JSON of dcap-qvl's `QuoteCollateralV3`: TCB info, QE identity and revocation
    /// lists under the test root, valid for [`COLLATERAL_LIFETIME_S`] from `now_s`.
    ///
    /// # Errors
    /// The clock is not set.
    pub fn collateral(&self, now_s: u64) -> Result<Vec<u8>, PlatformError> {
        check_clock(now_s)?;
        let (issued_s, next_update_s) = (now_s - CLOCK_SKEW_S, now_s + COLLATERAL_LIFETIME_S);
        let [root_ca_crl, pck_crl] = self.keys.revocation_lists(issued_s, next_update_s)?;
        let tcb_info = tcb_info(&rfc3339(issued_s), &rfc3339(next_update_s));
        let qe_identity = qe_identity(&rfc3339(issued_s), &rfc3339(next_update_s));
        let collateral = Collateral {
            pck_crl_issuer_chain: &self.pck_ca_chain,
            root_ca_crl,
            pck_crl,
            tcb_info_issuer_chain: &self.tcb_signing_chain,
            tcb_info_signature: self.keys.tcb_signing.sign_raw(tcb_info.as_bytes()),
            tcb_info,
            qe_identity_issuer_chain: &self.tcb_signing_chain,
            qe_identity_signature: self.keys.tcb_signing.sign_raw(qe_identity.as_bytes()),
            qe_identity,
        };
        Ok(serde_json::to_vec(&collateral).expect("strings and bytes have a JSON encoding"))
    }

    /// Starts a TD whose build-time measurements are `registers`.
    pub fn start_td(&self, registers: InitialRegisters) -> SimulatedTd {
        SimulatedTd::new(registers, Arc::clone(&self.quoting))
    }
}

/// The fields of dcap-qvl's `QuoteCollateralV3`.
#[derive(Serialize)]
struct Collateral<'a> {
    pck_crl_issuer_chain: &'a str,
    #[serde(with = "hex::serde")]
    root_ca_crl: Vec<u8>,
    #[serde(with = "hex::serde")]
    pck_crl: Vec<u8>,
    tcb_info_issuer_chain: &'a str,
    tcb_info: String,
    #[serde(with = "hex::serde")]
    tcb_info_signature: [u8; 64],
    qe_identity_issuer_chain: &'a str,
    qe_identity: String,
    #[serde(with = "hex::serde")]
    qe_identity_signature: [u8; 64],
}

/// Intel PCS API version 4, "Get TDX TCB Info", version 3 of the structure: one level, which the simulated
/// machine meets.
fn tcb_info(issued: &str, next_update: &str) -> String {
    let tcb = &SIMULATED_TCB;
    let components = |svns: &[u8]| svns.iter().map(|svn| json!({ "svn": svn })).collect::<Vec<_>>();
    let module = json!({
        "mrsigner": hex::encode_upper([0; 48]),
        "attributes": hex::encode_upper([0; 8]),
        "attributesMask": hex::encode_upper([0xff; 8]),
    });
    let mut module_identity = module.clone();
    module_identity["id"] = json!(format!("TDX_{:02X}", tcb.tee_tcb_svn[1]));
    module_identity["tcbLevels"] = json!([{
        "tcb": { "isvsvn": tcb.tee_tcb_svn[0] },
        "tcbDate": issued,
        "tcbStatus": "UpToDate",
    }]);
    json!({
        "id": "TDX",
        "version": 3,
        "issueDate": issued,
        "nextUpdate": next_update,
        "fmspc": hex::encode_upper(tcb.fmspc),
        "pceId": hex::encode_upper(tcb.pce_id),
        "tcbType": 0,
        "tcbEvaluationDataNumber": SIMULATED_TCB_EVALUATION_NUMBER,
        "tdxModule": module,
        "tdxModuleIdentities": [module_identity],
        "tcbLevels": [{
            "tcb": {
                "sgxtcbcomponents": components(&tcb.cpu_svn),
                "pcesvn": tcb.pce_svn,
                "tdxtcbcomponents": components(&tcb.tee_tcb_svn),
            },
            "tcbDate": issued,
            "tcbStatus": "UpToDate",
        }],
    })
    .to_string()
}

/// Intel PCS API version 4, "Get TD Quoting Enclave Identity".
fn qe_identity(issued: &str, next_update: &str) -> String {
    json!({
        "id": "TD_QE",
        "version": 2,
        "issueDate": issued,
        "nextUpdate": next_update,
        "tcbEvaluationDataNumber": SIMULATED_TCB_EVALUATION_NUMBER,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": hex::encode_upper(qe_mr_signer()),
        "isvprodid": QE_ISV_PROD_ID,
        "tcbLevels": [{
            "tcb": { "isvsvn": QE_ISV_SVN },
            "tcbDate": issued,
            "tcbStatus": "UpToDate",
        }],
    })
    .to_string()
}

fn rfc3339(seconds: u64) -> String {
    date(seconds)
        .format(&Rfc3339)
        .expect("check_clock admits only years of four digits")
}

fn check_clock(now_s: u64) -> Result<(), PlatformError> {
    // Bounded before it becomes a date: far beyond any calendar the conversion would panic.
    const SECONDS_MAX: u64 = 100 * 366 * 24 * 3600;
    let in_range = now_s < SECONDS_MAX
        && (FIRST_YEAR..LAST_YEAR).contains(&date(now_s).year())
        && (FIRST_YEAR..LAST_YEAR).contains(&date(now_s - CLOCK_SKEW_S).year())
        && (FIRST_YEAR..LAST_YEAR).contains(&date(now_s + COLLATERAL_LIFETIME_S).year());
    if in_range {
        Ok(())
    } else {
        Err(PlatformError::Clock { now_s })
    }
}
