//! Signs an image's provenance, and checks an image against what was signed.
//!
//! The envelope lies beside the image as `provenance.dsse.json`. Whoever gave you the folder may have written all of it:
//! what is trusted is the public key. The chain is: key, envelope, statement, SHA-256 of `manifest.json`, length and
//! SHA-256 of each artifact. It says who vouches for the image; that the image is good, only rebuilding it says.

pub mod envelope;
pub mod key;

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;
use cocoon_measurements::{Artifact, MANIFEST_BYTES_MAX, Manifest, ManifestError};
use ed25519_dalek::{SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

use self::envelope::{ENVELOPE_BYTES_MAX, Envelope, EnvelopeError};
use crate::{
    provenance::{MANIFEST, Statement, StatementError},
    publish,
};

/// The envelope's name in the image's folder.
pub const ENVELOPE: &str = "provenance.dsse.json";

/// Why an image is not signed, or cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// A file that has to be there is not.
    #[error("{} is missing{remedy}", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
        /// What to do, after a semicolon.
        remedy: &'static str,
    },
    /// The file system refused.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The manifest.
    #[error("the image's manifest cannot be used")]
    Manifest(#[from] ManifestError),
    /// The envelope proves nothing.
    #[error("{} does not vouch for this image", path.display())]
    Envelope {
        /// Which.
        path: PathBuf,
        /// Why.
        source: EnvelopeError,
    },
    /// The right key signed something else.
    #[error("what was signed is not the provenance of an image")]
    Statement(#[from] StatementError),
    /// An image is not signed with files that its manifest does not describe.
    #[error("{file} is not the file of the manifest ({finding}); nothing was signed. Build the image again")]
    Unlike {
        /// Which.
        file: String,
        /// What it is instead.
        finding: String,
    },
    /// Signatures for another image are not thrown away.
    #[error(
        "{} holds signatures for another image or another manifest of it; remove it to sign this one",
        path.display()
    )]
    OtherPayload {
        /// Which.
        path: PathBuf,
    },
}

/// What a file of the image is, compared with what was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Length and SHA-256 are the signed ones.
    Matches,
    /// Another file, or none that can be compared.
    Differs(String),
    /// It is not there.
    Missing,
}

/// One row of a [`Report`].
#[derive(Debug, Clone)]
pub struct Row {
    /// The file.
    pub file: String,
    /// Its signed SHA-256.
    pub sha256: Digest32,
    /// What lies there.
    pub finding: Finding,
}

/// An envelope's statement, whose signature is good, compared with the folder that it lies in.
#[derive(Debug)]
pub struct Report {
    /// The manifest first. If that is not the signed one, the artifacts are not looked at.
    pub rows: Vec<Row>,
    /// The signed manifest, if that is what lies there.
    pub manifest: Option<Manifest>,
}

impl Report {
    /// Whether some file is another than the signed one.
    pub fn differs(&self) -> bool {
        let mut findings = self.rows.iter().map(|row| &row.finding);
        findings.any(|finding| matches!(finding, Finding::Differs(_)))
    }

    /// Whether some file is not there.
    pub fn is_incomplete(&self) -> bool {
        self.rows.iter().any(|row| row.finding == Finding::Missing)
    }
}

/// Signs the provenance of the image in `folder`, beside signatures of other keys for the same image. Returns how many
/// signatures there are.
///
/// # Errors
/// See [`SignatureError`]. The envelope that was there before is then still there.
pub fn sign(folder: &Path, key: &SigningKey) -> Result<(Manifest, usize), SignatureError> {
    let path = folder.join(MANIFEST);
    let bytes = read(&path, MANIFEST_BYTES_MAX, "; give the folder of an image")?;
    let manifest = parse_manifest(&path, &bytes)?;
    for (_, artifact) in manifest.artifacts.named() {
        match compare(folder, artifact)? {
            Finding::Matches => {}
            Finding::Differs(finding) => {
                let file = artifact.file.clone();
                return Err(SignatureError::Unlike { file, finding });
            }
            Finding::Missing => return Err(missing(&folder.join(&artifact.file), "")),
        }
    }
    let payload = Statement::of(&manifest, Digest32::of(&bytes)).to_json();
    let path = folder.join(ENVELOPE);
    let unusable = |source| SignatureError::Envelope {
        path: path.clone(),
        source,
    };
    let mut envelope = match read(&path, ENVELOPE_BYTES_MAX, "") {
        Ok(json) => Envelope::parse(&json).map_err(unusable)?,
        Err(SignatureError::Missing { .. }) => Envelope::new(&payload),
        Err(error) => return Err(error),
    };
    if !envelope.holds(&payload) {
        return Err(SignatureError::OtherPayload { path });
    }
    envelope.sign(key).map_err(unusable)?;
    let json = envelope.to_json().map_err(unusable)?;
    publish::file(&path, &json).map_err(|source| file_error(&path, source))?;
    Ok((manifest, envelope.signature_count()))
}

/// Checks the signature first, then the folder's files against what was signed.
///
/// # Errors
/// See [`SignatureError`]. Files that differ or are missing are in the report.
pub fn verify(folder: &Path, key: &VerifyingKey) -> Result<Report, SignatureError> {
    let path = folder.join(ENVELOPE);
    let json = read(&path, ENVELOPE_BYTES_MAX, "; this image is not signed")?;
    let payload = Envelope::parse(&json).and_then(|envelope| envelope.verified(key));
    let payload = payload.map_err(|source| SignatureError::Envelope { path, source })?;
    let statement = Statement::parse(&payload)?;
    let signed = statement.manifest_sha256()?;

    // Read once: what is hashed is what is parsed.
    let path = folder.join(MANIFEST);
    let (finding, bytes) = match read(&path, MANIFEST_BYTES_MAX, "") {
        Ok(bytes) if Digest32::of(&bytes) == signed => (Finding::Matches, Some(bytes)),
        Ok(bytes) => (differs(bytes.len() as u64, Digest32::of(&bytes)), None),
        Err(SignatureError::Missing { .. }) => (Finding::Missing, None),
        Err(error) => return Err(error),
    };
    let mut rows = vec![Row {
        file: MANIFEST.into(),
        sha256: signed,
        finding,
    }];
    let Some(bytes) = bytes else {
        return Ok(Report { rows, manifest: None });
    };
    let manifest = parse_manifest(&path, &bytes)?;
    if Statement::of(&manifest, signed) != statement {
        let contradicts = "the signed provenance says something else than the signed manifest";
        rows[0].finding = Finding::Differs(contradicts.into());
    }
    for (_, artifact) in manifest.artifacts.named() {
        rows.push(Row {
            file: artifact.file.clone(),
            sha256: artifact.sha256,
            finding: compare(folder, artifact)?,
        });
    }
    Ok(Report {
        rows,
        manifest: Some(manifest),
    })
}

fn parse_manifest(path: &Path, bytes: &[u8]) -> Result<Manifest, ManifestError> {
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|source| ManifestError::Malformed {
        path: path.to_owned(),
        source,
    })?;
    manifest.check()?;
    Ok(manifest)
}

fn compare(folder: &Path, artifact: &Artifact) -> Result<Finding, SignatureError> {
    let path = folder.join(&artifact.file);
    let file = match open(&path, "") {
        Ok(file) => file,
        Err(SignatureError::Missing { .. }) => return Ok(Finding::Missing),
        Err(error) => return Err(error),
    };
    let mut hash = Sha256::new();
    // A file that never ends is not read to its end.
    let bytes = io::copy(&mut file.take(artifact.bytes.saturating_add(1)), &mut hash)
        .map_err(|source| file_error(&path, source))?;
    let found = Digest32(hash.finalize().into());
    if bytes > artifact.bytes {
        let longer = format!("has more than the {} bytes that were signed", artifact.bytes);
        return Ok(Finding::Differs(longer));
    }
    if (bytes, found) == (artifact.bytes, artifact.sha256) {
        return Ok(Finding::Matches);
    }
    Ok(differs(bytes, found))
}

fn differs(bytes: u64, sha256: Digest32) -> Finding {
    Finding::Differs(format!("has {bytes} bytes with {sha256}"))
}

fn read(path: &Path, bytes_max: u64, remedy: &'static str) -> Result<Vec<u8>, SignatureError> {
    let mut bytes = Vec::new();
    let file = open(path, remedy)?;
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| file_error(path, source))?;
    if bytes.len() as u64 > bytes_max {
        let limit = format!("longer than {bytes_max} bytes");
        return Err(file_error(
            path,
            io::Error::new(io::ErrorKind::FileTooLarge, limit),
        ));
    }
    Ok(bytes)
}

/// Regular files only: a pipe in a folder from somebody else would be waited for.
fn open(path: &Path, remedy: &'static str) -> Result<File, SignatureError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => missing(path, remedy),
        _ => file_error(path, source),
    };
    if !fs::metadata(path).map_err(failed)?.is_file() {
        let problem = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(file_error(path, problem));
    }
    File::open(path).map_err(failed)
}

fn missing(path: &Path, remedy: &'static str) -> SignatureError {
    SignatureError::Missing {
        path: path.to_owned(),
        remedy,
    }
}

fn file_error(path: &Path, source: io::Error) -> SignatureError {
    SignatureError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{origin, provenance::tests::manifest};

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn write_manifest(folder: &Path, manifest: &Manifest) {
        fs::write(folder.join(MANIFEST), origin::to_json(manifest)).unwrap();
    }

    fn image() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (file, content) in [
            ("firmware.fd", "code"),
            ("kernel", "linux"),
            ("root.img", "files"),
        ] {
            fs::write(folder.path().join(file), content).unwrap();
        }
        write_manifest(folder.path(), &manifest(b"code", b"linux", b"files"));
        folder
    }

    fn signed() -> tempfile::TempDir {
        let image = image();
        assert_eq!(sign(image.path(), &key(1)).unwrap().1, 1);
        image
    }

    fn report(image: &tempfile::TempDir) -> Report {
        verify(image.path(), &key(1).verifying_key()).unwrap()
    }

    #[test]
    fn an_altered_artifact_is_named_and_the_others_match() {
        for file in ["firmware.fd", "kernel", "root.img"] {
            for content in ["", "altered", "linuy", "files and more"] {
                let image = signed();
                fs::write(image.path().join(file), content).unwrap();
                let report = report(&image);
                assert!(report.differs() && !report.is_incomplete());
                let differing = report.rows.iter().filter(|row| row.finding != Finding::Matches);
                let differing: Vec<_> = differing.map(|row| row.file.as_str()).collect();
                assert_eq!(differing, [file], "{content}");
            }
        }
        let report = report(&signed());
        assert_eq!(report.rows.len(), 4);
        assert!(!report.differs() && !report.is_incomplete() && report.manifest.is_some());
    }

    #[test]
    fn an_altered_manifest_is_told_and_not_followed() {
        let image = signed();
        // It describes the files that lie there, so it would be believed if it were asked.
        fs::write(image.path().join("kernel"), "evil").unwrap();
        write_manifest(image.path(), &manifest(b"code", b"evil", b"files"));
        let report = report(&image);
        assert!(report.differs());
        assert_eq!((report.rows.len(), report.manifest), (1, None));
    }

    #[test]
    fn a_missing_file_is_told() {
        for file in [MANIFEST, "firmware.fd", "kernel", "root.img"] {
            let image = signed();
            fs::remove_file(image.path().join(file)).unwrap();
            let report = report(&image);
            assert!(report.is_incomplete() && !report.differs(), "{file}");
        }
        let error = verify(image().path(), &key(1).verifying_key()).unwrap_err();
        assert!(error.to_string().contains("is not signed"), "{error}");
    }

    #[test]
    fn another_key_or_another_images_envelope_does_not_vouch() {
        let image = signed();
        let error = verify(image.path(), &key(2).verifying_key()).unwrap_err();
        assert!(matches!(error, SignatureError::Envelope { .. }), "{error}");
        let other = self::image();
        fs::write(other.path().join("kernel"), "other").unwrap();
        write_manifest(other.path(), &manifest(b"code", b"other", b"files"));
        fs::copy(image.path().join(ENVELOPE), other.path().join(ENVELOPE)).unwrap();
        assert!(report(&other).differs());
    }

    #[test]
    fn a_second_signer_joins_and_signatures_for_another_image_are_kept() {
        let image = signed();
        let path = image.path().join(ENVELOPE);
        let once = fs::read(&path).unwrap();
        assert_eq!(sign(image.path(), &key(1)).unwrap().1, 1, "once for each key");
        assert_eq!(fs::read(&path).unwrap(), once, "the same bytes every time");
        assert_eq!(sign(image.path(), &key(2)).unwrap().1, 2);
        for signer in [1, 2] {
            verify(image.path(), &key(signer).verifying_key()).unwrap();
        }
        let both = fs::read(&path).unwrap();
        fs::write(image.path().join("kernel"), "newer").unwrap();
        write_manifest(image.path(), &manifest(b"code", b"newer", b"files"));
        let error = sign(image.path(), &key(1)).unwrap_err();
        assert!(matches!(error, SignatureError::OtherPayload { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), both);
    }

    #[test]
    fn an_image_unlike_its_manifest_is_not_signed() {
        let image = image();
        fs::write(image.path().join("kernel"), "evil!").unwrap();
        let error = sign(image.path(), &key(1)).unwrap_err();
        assert!(matches!(error, SignatureError::Unlike { .. }), "{error}");
        assert!(!image.path().join(ENVELOPE).exists());
    }

    #[test]
    fn a_signed_statement_that_contradicts_its_manifest_is_told() {
        let image = image();
        let bytes = fs::read(image.path().join(MANIFEST)).unwrap();
        // The honest files, said to come from another commit.
        let honest = Statement::of(&manifest(b"code", b"linux", b"files"), Digest32::of(&bytes));
        let text = String::from_utf8(honest.to_json()).unwrap();
        let forged = text.replace(&"c".repeat(40), &"d".repeat(40));
        let mut envelope = Envelope::new(forged.as_bytes());
        envelope.sign(&key(1)).unwrap();
        fs::write(image.path().join(ENVELOPE), envelope.to_json().unwrap()).unwrap();
        assert!(report(&image).differs());
    }

    #[test]
    fn pipes_and_giants_in_the_folder_are_refused_without_waiting() {
        let image = signed();
        let kernel = image.path().join("kernel");
        fs::remove_file(&kernel).unwrap();
        nix::unistd::mkfifo(&kernel, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = verify(image.path(), &key(1).verifying_key()).unwrap_err();
        assert!(matches!(error, SignatureError::File { .. }), "{error}");
        let envelope = File::create(image.path().join(ENVELOPE)).unwrap();
        envelope.set_len(ENVELOPE_BYTES_MAX + 1).unwrap();
        let error = verify(image.path(), &key(1).verifying_key()).unwrap_err();
        assert!(matches!(error, SignatureError::File { .. }), "{error}");
    }
}
