//! Sorts the files that came with a report: certificates and revocation lists, PEM or DER, several in a file or one
//! in each, in any order.

use der::pem;

use super::{
    certificate::{SnpCertificate, SnpCertificateError},
    crl::{Crl, CrlError},
};
use crate::snp::{CRL_BYTES_MAX, ENDORSEMENTS_MAX};

/// A PEM file of a revocation list is a third longer than the list.
const FILE_BYTES_MAX: usize = 2 * CRL_BYTES_MAX;

/// A file that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EndorsementError {
    #[error("file {file}: {found} bytes, more than {FILE_BYTES_MAX}")]
    Length { file: usize, found: usize },
    #[error("more than {ENDORSEMENTS_MAX} certificates and revocation lists")]
    TooMany,
    #[error("file {file}: neither DER nor PEM")]
    Form { file: usize },
    #[error("file {file}, offset {offset}: not PEM: {reason}")]
    Pem {
        file: usize,
        offset: usize,
        reason: String,
    },
    #[error("file {file}, offset {offset}: certificate: {error}")]
    Certificate {
        file: usize,
        offset: usize,
        error: SnpCertificateError,
    },
    #[error("file {file}, offset {offset}: revocation list: {error}")]
    Crl {
        file: usize,
        offset: usize,
        error: CrlError,
    },
}

/// What came with a report; nothing in here is verified yet.
#[derive(Debug, Default)]
pub(crate) struct Endorsements {
    pub(crate) certificates: Vec<SnpCertificate>,
    pub(crate) crls: Vec<Crl>,
}

impl Endorsements {
    /// Reads as much as can be read, and says what could not. Files are counted from one.
    pub(crate) fn read(files: &[&[u8]]) -> (Self, Vec<EndorsementError>) {
        let mut endorsements = Self::default();
        let mut errors = Vec::new();
        for (index, bytes) in files.iter().enumerate() {
            if let Err(error) = endorsements.read_file(index + 1, bytes) {
                errors.push(error);
            }
        }
        (endorsements, errors)
    }

    fn read_file(&mut self, file: usize, bytes: &[u8]) -> Result<(), EndorsementError> {
        if bytes.len() > FILE_BYTES_MAX {
            return Err(EndorsementError::Length {
                file,
                found: bytes.len(),
            });
        }
        // An ASN.1 SEQUENCE.
        if bytes.first() == Some(&0x30) {
            return self.read_der(file, 0, bytes, None);
        }
        let mut offset = 0;
        while let Some((start, block)) = next_pem(bytes, offset) {
            let (label, der) = pem::decode_vec(block).map_err(|error| EndorsementError::Pem {
                file,
                offset: start,
                reason: error.to_string(),
            })?;
            self.read_der(file, start, &der, Some(label))?;
            offset = start + block.len();
        }
        match offset {
            0 => Err(EndorsementError::Form { file }),
            _ => Ok(()),
        }
    }

    fn read_der(
        &mut self,
        file: usize,
        offset: usize,
        der: &[u8],
        label: Option<&str>,
    ) -> Result<(), EndorsementError> {
        if self.certificates.len() + self.crls.len() >= ENDORSEMENTS_MAX {
            return Err(EndorsementError::TooMany);
        }
        let crl_error = |error| EndorsementError::Crl { file, offset, error };
        let certificate_error = |error| EndorsementError::Certificate { file, offset, error };
        match label {
            Some("X509 CRL") => self.crls.push(Crl::from_der(der).map_err(crl_error)?),
            Some("CERTIFICATE") => self.add(SnpCertificate::from_der(der).map_err(certificate_error)?),
            Some(other) => {
                return Err(EndorsementError::Pem {
                    file,
                    offset,
                    reason: format!("a block of {other:?}"),
                });
            }
            // A list begins with an integer and an algorithm where a certificate has a tagged version.
            None => match (SnpCertificate::from_der(der), Crl::from_der(der)) {
                (Ok(certificate), _) => self.add(certificate),
                (Err(_), Ok(crl)) => self.crls.push(crl),
                (Err(SnpCertificateError::Der(_)), Err(error)) if !matches!(error, CrlError::Der(_)) => {
                    return Err(crl_error(error));
                }
                (Err(error), Err(_)) => return Err(certificate_error(error)),
            },
        }
        Ok(())
    }

    /// The same certificate twice is one.
    fn add(&mut self, certificate: SnpCertificate) {
        let known = self.certificates.iter().any(|known| known.der == certificate.der);
        if !known {
            self.certificates.push(certificate);
        }
    }
}

/// The next PEM block from `offset` on: where it starts, and the block. Text around blocks is for people.
fn next_pem(bytes: &[u8], offset: usize) -> Option<(usize, &[u8])> {
    let start = find(bytes, offset, b"-----BEGIN ")?;
    // Without an end, the rest is the block, for the decoder to refuse.
    let end = find(bytes, start, b"-----END ")
        .and_then(|end| find(bytes, end + b"-----END ".len(), b"-----"))
        .map_or(bytes.len(), |end| end + b"-----".len());
    Some((start, &bytes[start..end]))
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    let tail = bytes.get(from..)?;
    let at = tail.windows(what.len()).position(|window| window == what)?;
    Some(from + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_error(file: &[u8]) -> String {
        let (_, errors) = Endorsements::read(&[file]);
        errors.first().map(ToString::to_string).unwrap_or_default()
    }

    #[test]
    fn what_is_no_certificate_is_named_with_its_offset() {
        assert_eq!(first_error(b"hello"), "file 1: neither DER nor PEM");
        assert_eq!(first_error(b""), "file 1: neither DER nor PEM");
        assert!(
            first_error(&[0x30, 0x82, 0xff, 0xff]).starts_with("file 1, offset 0: certificate: not a DER")
        );
        assert!(
            first_error(b"a\n-----BEGIN CERTIFICATE-----\nAAAA").starts_with("file 1, offset 2: not PEM")
        );
        let key = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(first_error(key).contains("a block of \"PRIVATE KEY\""));
        assert!(first_error(&vec![b' '; FILE_BYTES_MAX + 1]).contains("more than"));
    }
}
