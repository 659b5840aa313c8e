//! The PCK certificate chain inside a quote. No signature covers the bytes in which the certificates are written
//! down, so there is exactly one way to write each of the forms that quoting libraries use, and any other is refused.

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::{
    certificate::{Certificate, CertificateError},
    der,
};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----\n";
const END: &str = "-----END CERTIFICATE-----\n";
/// RFC 7468, section 2.
const LINE_CHARACTERS: usize = 64;

/// Leaf, CA and root.
const CERTIFICATES: usize = 3;

/// Why bytes are not a PCK certificate chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Neither PEM nor DER.
    #[error("byte {offset}: neither \"{begin}\" nor a DER certificate begins here", begin = BEGIN.trim_end())]
    Begin {
        /// Counted from the start of the chain.
        offset: usize,
    },
    /// PEM without end, or with something else than base64 inside.
    #[error("byte {offset}: the PEM block that begins here is not base64 up to its end line")]
    Pem {
        /// Counted from the start of the chain.
        offset: usize,
    },
    /// The certificates are there, but written in another way than the one that is accepted.
    #[error("byte {offset}: differs from the exact encoding of its certificates")]
    Inexact {
        /// Counted from the start of the chain.
        offset: usize,
    },
    /// More or fewer than leaf, CA and root.
    #[error("{0} certificates, expected {CERTIFICATES}: PCK, PCK CA and root")]
    Count(usize),
    /// One of them is not usable.
    #[error("certificate {number} of the chain: {source}")]
    Certificate {
        /// From 1.
        number: usize,
        /// Why.
        source: CertificateError,
    },
}

/// The three certificates; nothing says yet who signed them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PckChain {
    pub(crate) leaf: Certificate,
    pub(crate) ca: Certificate,
    pub(crate) root: Certificate,
}

impl PckChain {
    /// Certification data of type 5: PEM from leaf to root, with or without one NUL after it (quoting libraries
    /// differ in that), or, as Intel's quote verification library's own sample has it, DER from root to leaf.
    ///
    /// `known`: certificates that were read before, so that equal ones are not read again.
    pub(crate) fn parse(bytes: &[u8], known: &[&Certificate]) -> Result<Self, ChainError> {
        let ders = match bytes.first() {
            Some(&der::SEQUENCE) => {
                let mut ders = split_der(bytes)?;
                // Sample: root, CA, leaf.
                ders.reverse();
                ders
            }
            _ => split_pem(bytes)?,
        };
        let [leaf, ca, root]: [Vec<u8>; CERTIFICATES] = ders
            .try_into()
            .map_err(|ders: Vec<_>| ChainError::Count(ders.len()))?;
        let parse = |number, der: &[u8]| match known.iter().find(|certificate| certificate.der() == der) {
            Some(&certificate) => Ok(certificate.clone()),
            None => Certificate::parse(der).map_err(|source| ChainError::Certificate { number, source }),
        };
        Ok(Self {
            leaf: parse(1, &leaf)?,
            ca: parse(2, &ca)?,
            root: parse(3, &root)?,
        })
    }
}

fn split_der(bytes: &[u8]) -> Result<Vec<Vec<u8>>, ChainError> {
    let mut rest = bytes;
    let mut ders = Vec::with_capacity(CERTIFICATES);
    while !rest.is_empty() && ders.len() <= CERTIFICATES {
        let offset = bytes.len() - rest.len();
        let before = rest;
        let found = der::take(&mut rest).filter(|tlv| tlv.tag == der::SEQUENCE);
        found.ok_or(ChainError::Begin { offset })?;
        ders.push(before[..before.len() - rest.len()].to_vec());
    }
    Ok(ders)
}

fn split_pem(bytes: &[u8]) -> Result<Vec<Vec<u8>>, ChainError> {
    let text = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let mut ders = Vec::with_capacity(CERTIFICATES);
    let mut offset = 0;
    while offset < text.len() && ders.len() <= CERTIFICATES {
        let block = text[offset..]
            .strip_prefix(BEGIN.as_bytes())
            .ok_or(ChainError::Begin { offset })?;
        // No character of base64 is a hyphen.
        let end = block.iter().position(|byte| *byte == b'-');
        let end = end.filter(|end| block[*end..].starts_with(END.as_bytes()));
        let body = &block[..end.ok_or(ChainError::Pem { offset })?];
        let base64: Vec<u8> = body.iter().copied().filter(|byte| *byte != b'\n').collect();
        let der = BASE64_STANDARD
            .decode(base64)
            .map_err(|_| ChainError::Pem { offset })?;
        let exact = encode(&der);
        let written = &text[offset..];
        if !written.starts_with(exact.as_bytes()) {
            let same = written
                .iter()
                .zip(exact.as_bytes())
                .take_while(|(a, b)| a == b)
                .count();
            return Err(ChainError::Inexact {
                offset: offset + same,
            });
        }
        offset += exact.len();
        ders.push(der);
    }
    Ok(ders)
}

fn encode(der: &[u8]) -> String {
    let base64 = BASE64_STANDARD.encode(der);
    let lines = base64.len().div_ceil(LINE_CHARACTERS);
    let mut pem = String::with_capacity(BEGIN.len() + base64.len() + lines + END.len());
    pem.push_str(BEGIN);
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE_CHARACTERS));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str(END);
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::INTEL_SGX_ROOT_CA_PEM;

    fn split(text: &str) -> Result<usize, ChainError> {
        split_pem(text.as_bytes()).map(|ders| ders.len())
    }

    #[test]
    fn pem_has_one_spelling() {
        let pem = INTEL_SGX_ROOT_CA_PEM;
        assert_eq!(split(pem), Ok(1));
        assert_eq!(split(&pem.repeat(3)), Ok(3));
        assert_eq!(split(&(pem.to_owned() + "\0")), Ok(1));
        for other in [
            pem.replace('\n', "\r\n"),
            pem.to_owned() + "\n",
            pem.to_owned() + "\0\0",
            format!(" {pem}"),
            pem.trim_end().to_owned(),
            pem.replacen("=\n", "\n", 1),
            pem.replacen("MII", "MII\n", 1),
            pem.replacen("-----BEGIN", "text\n-----BEGIN", 1),
            pem.replace("CERTIFICATE", "certificate"),
        ] {
            assert!(split(&other).is_err(), "{other}");
        }
    }

    #[test]
    fn unused_bits_of_base64_are_not_free() {
        let pem = encode(&[1, 2, 3, 4]);
        assert!(pem.contains("AQIDBA==\n"));
        assert_eq!(split(&pem), Ok(1));
        assert!(split(&pem.replace("BA==", "BB==")).is_err());
    }

    #[test]
    fn any_number_of_blocks_but_three_is_refused() {
        for count in [0, 1, 2, 4, 5] {
            let chain = PckChain::parse(INTEL_SGX_ROOT_CA_PEM.repeat(count).as_bytes(), &[]);
            assert!(matches!(chain, Err(ChainError::Count(_))), "{count}");
        }
    }
}
