//! Files and the clock.

use std::{
    fs::File,
    io::Read as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use cocoon_evidence::{CertifiedEvidence, EVIDENCE_EXTENSION_OID, EvidenceBundle, Platform};
use cocoon_measurements::fields::EVIDENCE_BYTES_MAX;
use x509_parser::{certificate::X509Certificate, der_parser::oid::Oid, prelude::FromDer as _};

/// Reads a file of at most `bytes_max` bytes.
pub(crate) fn read_bounded(path: &Path, bytes_max: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let attempt = || format!("cannot read {}", path.display());
    File::open(path)
        .with_context(attempt)?
        .take(bytes_max as u64 + 1)
        .read_to_end(&mut bytes)
        .with_context(attempt)?;
    if bytes.len() > bytes_max {
        bail!("{} is longer than {bytes_max} bytes", path.display());
    }
    Ok(bytes)
}

/// Seconds since 1970 by this machine's clock.
pub(crate) fn now_s() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(now.context("the clock is before 1970; set it")?.as_secs())
}

/// Reads a piece of evidence: raw bytes, the same as hexadecimal text, an evidence bundle of the agent, its TLS
/// certificate with one inside, or a JSON object that has the bytes as hexadecimal text under `quote` (dstack's guest
/// agent answers so) or in base64 under `evidence` (NVIDIA's SDK does).
pub(crate) fn read_evidence(path: &Path) -> Result<Vec<u8>> {
    let bytes = read_bounded(path, 2 * EVIDENCE_BYTES_MAX)?;
    unwrap_evidence(bytes).with_context(|| format!("{} is not evidence", path.display()))
}

/// Evidence out of the forms that [`read_evidence`] takes.
pub(crate) fn unwrap_evidence(bytes: Vec<u8>) -> Result<Vec<u8>> {
    if matches!(bytes.trim_ascii_start().first(), Some(b'{' | b'[')) {
        let mut document: serde_json::Value = serde_json::from_slice(&bytes)?;
        if let Some(items) = document.as_array_mut() {
            ensure!(
                items.len() == 1,
                "the JSON has {} pieces of evidence, one is expected",
                items.len()
            );
            document = items.remove(0);
        }
        if let Some(evidence) = document["evidence"].as_str() {
            return BASE64_STANDARD
                .decode(evidence)
                .context("`evidence` is not base64");
        }
        let quote = document["quote"]
            .as_str()
            .context("the JSON has no text under `quote` or `evidence`")?;
        return hex::decode(quote.trim()).context("`quote` is not hexadecimal");
    }
    if let Ok(bundle) = EvidenceBundle::decode(&bytes) {
        return Ok(platform_evidence(bundle));
    }
    if let Ok((_, certificate)) = X509Certificate::from_der(&bytes) {
        return certified(&certificate);
    }
    let text: Vec<u8> = bytes
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    if !text.is_empty() && text.iter().all(u8::is_ascii_hexdigit) {
        return hex::decode(&text).context("the hexadecimal text has an odd number of digits");
    }
    Ok(bytes)
}

fn platform_evidence(bundle: EvidenceBundle) -> Vec<u8> {
    let (Platform::Tdx { quote: evidence } | Platform::Snp { report: evidence }) = bundle.platform;
    evidence
}

fn certified(certificate: &X509Certificate<'_>) -> Result<Vec<u8>> {
    let oid = Oid::from(&EVIDENCE_EXTENSION_OID).expect("its arcs are small");
    let extension = certificate.get_extension_unique(&oid)?;
    let value = extension.context("the certificate carries no evidence")?.value;
    match CertifiedEvidence::decode(value)? {
        CertifiedEvidence::Carried(bundle) => Ok(platform_evidence(bundle)),
        CertifiedEvidence::ByDigest(_) => {
            bail!("the certificate only names its evidence: give certificate-evidence.cbor beside it instead")
        }
    }
}

#[cfg(test)]
mod tests {
    use cocoon_evidence::EventLog;
    use rcgen::{CertificateParams, CustomExtension, KeyPair};

    use super::*;

    fn certificate(extensions: Vec<CustomExtension>) -> Vec<u8> {
        let mut parameters = CertificateParams::default();
        parameters.custom_extensions = extensions;
        let key = KeyPair::generate().unwrap();
        parameters.self_signed(&key).unwrap().der().to_vec()
    }

    fn with_evidence(quote_bytes: usize) -> Vec<u8> {
        let bundle = EvidenceBundle {
            platform: Platform::Tdx {
                quote: vec![7; quote_bytes],
            },
            events: EventLog::default(),
            gpu: vec![],
        };
        let value = CertifiedEvidence::of(bundle).encode();
        certificate(vec![CustomExtension::from_oid_content(
            &EVIDENCE_EXTENSION_OID,
            value,
        )])
    }

    #[test]
    fn evidence_is_taken_out_of_a_guests_certificate() {
        assert_eq!(unwrap_evidence(with_evidence(5000)).unwrap(), vec![7; 5000]);
        let refused = |bytes| unwrap_evidence(bytes).unwrap_err().to_string();
        assert!(refused(certificate(vec![])).contains("no evidence"));
        assert!(refused(with_evidence(60_000)).contains("certificate-evidence.cbor"));
    }
}
