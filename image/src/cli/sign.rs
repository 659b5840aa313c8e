//! `cocoon-image sign` and `cocoon-image verify-signature`.

use std::{io, path::PathBuf, process::ExitCode};

use cocoon_image::signature::{
    self, ENVELOPE, Finding, Report, SignatureError,
    key::{KeyError, key_id, read_public_key, read_signing_key},
};
use cocoon_measurements::{Commit, Manifest};

use super::{DIFFERS, print_line};

const NOT_SIGNED: u8 = 11;
const USAGE: u8 = 2;
const MISSING: u8 = 3;

#[derive(Debug, clap::Args)]
pub(crate) struct SignArguments {
    /// The signing key: Ed25519 in PKCS#8 PEM (`openssl genpkey -algorithm ed25519`), in a file that only its owner
    /// can read.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The image's folder.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VerifySignatureArguments {
    /// The public key to trust, in PEM (`openssl pkey -pubout`).
    #[arg(long, value_name = "FILE")]
    public_key: PathBuf,
    /// The image's folder.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(crate) fn sign(arguments: &SignArguments) -> anyhow::Result<()> {
    let key = read_signing_key(&arguments.key)?;
    let (manifest, signatures) = signature::sign(&arguments.folder, &key)?;
    let source = source(&manifest);
    print_line(format_args!("signed by  {}", key_id(&key.verifying_key())))?;
    print_line(format_args!("source     {source}"))?;
    print_line(format_args!(
        "envelope   {}, signatures: {signatures}",
        arguments.folder.join(ENVELOPE).display()
    ))
}

pub(crate) fn verify_signature(arguments: &VerifySignatureArguments) -> anyhow::Result<ExitCode> {
    let key = read_public_key(&arguments.public_key)?;
    let report = signature::verify(&arguments.folder, &key)?;
    print_line(format_args!(
        "{:<16} PASS     signed by {}",
        "provenance",
        key_id(&key)
    ))?;
    print_rows(&report)?;
    if let Some(manifest) = &report.manifest {
        print_line(format_args!("{:<16} {}", "source", source(manifest)))?;
    }
    Ok(match (report.differs(), report.is_incomplete()) {
        (true, _) => ExitCode::from(DIFFERS),
        (false, true) => ExitCode::from(MISSING),
        (false, false) => ExitCode::SUCCESS,
    })
}

fn print_rows(report: &Report) -> anyhow::Result<()> {
    for row in &report.rows {
        let (file, sha256) = (&row.file, row.sha256);
        match &row.finding {
            Finding::Matches => print_line(format_args!("{file:<16} PASS     {sha256}"))?,
            Finding::Differs(finding) => {
                print_line(format_args!("{file:<16} FAIL     signed was {sha256}; {finding}"))?;
            }
            Finding::Missing => print_line(format_args!("{file:<16} MISSING  signed was {sha256}"))?,
        }
    }
    if report.manifest.is_none() {
        print_line("The other files were not looked at: only the signed manifest says what they should be.")?;
    }
    Ok(())
}

/// The commit that an image was built from, and whether it is only that.
pub(super) fn source(manifest: &Manifest) -> String {
    let commit = manifest.origin.as_ref().and_then(|origin| origin.commit.as_ref());
    match commit {
        Some(Commit { id, clean: true }) => format!("commit {id}"),
        Some(Commit { id, clean: false }) => format!("commit {id} with CHANGES that it does not hold"),
        None => "UNKNOWN: the manifest names no commit".to_owned(),
    }
}

/// The exit code of an error of these two, if it has one of its own.
pub(crate) fn signature_code(error: &anyhow::Error) -> Option<u8> {
    if let Some(error) = error.downcast_ref::<KeyError>() {
        return Some(match error {
            KeyError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => MISSING,
            _ => USAGE,
        });
    }
    match error.downcast_ref::<SignatureError>()? {
        SignatureError::Missing { .. } => Some(MISSING),
        SignatureError::Unlike { .. } | SignatureError::OtherPayload { .. } => Some(DIFFERS),
        SignatureError::Envelope { .. } | SignatureError::Statement(_) => Some(NOT_SIGNED),
        SignatureError::File { .. } | SignatureError::Manifest(_) => None,
    }
}
