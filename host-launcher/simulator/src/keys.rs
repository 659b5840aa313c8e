//! The simulated platform's keys: P-256, one file each, made once for a state directory.
//!
//! Signatures are deterministic (RFC 6979), so that the certificates follow from the keys and are not stored.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use p256::{
    ecdsa::{Signature, SigningKey, signature::Signer as _},
    elliptic_curve::rand_core::OsRng,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, LineEnding},
};

use crate::platform::PlatformError;

/// A private key and what it is called in errors.
#[derive(Clone)]
pub(crate) struct Key {
    secret: SigningKey,
    public: [u8; 65],
}

impl Key {
    /// Reads `name` in `dir`, or makes it. Whoever creates the file first wins, everybody reads it.
    pub(crate) fn open_or_create(dir: &Path, name: &str) -> Result<Self, PlatformError> {
        let path = dir.join(name);
        if !path
            .try_exists()
            .map_err(|source| io_error("look for", &path, source))?
        {
            create(&path)?;
        }
        let pem = fs::read_to_string(&path).map_err(|source| io_error("read", &path, source))?;
        let secret =
            SigningKey::from_pkcs8_pem(&pem).map_err(|_| PlatformError::Key { path: path.clone() })?;
        Ok(Self::new(secret))
    }

    fn new(secret: SigningKey) -> Self {
        let point = secret.verifying_key().to_encoded_point(false);
        let public = point
            .as_bytes()
            .try_into()
            .expect("an uncompressed P-256 point has 65 bytes");
        Self { secret, public }
    }

    /// `x || y`, big-endian.
    pub(crate) fn public_xy(&self) -> &[u8] {
        &self.public[1..]
    }

    /// ECDSA with SHA-256 as `r || s`.
    pub(crate) fn sign_raw(&self, message: &[u8]) -> [u8; 64] {
        let signature: Signature = self.secret.sign(message);
        signature.to_bytes().into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key(public {})", hex::encode(self.public_xy()))
    }
}

impl rcgen::PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature: Signature = self.secret.sign(message);
        Ok(signature.to_der().as_bytes().to_vec())
    }
}

fn create(path: &Path) -> Result<(), PlatformError> {
    let pem = SigningKey::random(&mut OsRng)
        .to_pkcs8_pem(LineEnding::LF)
        .expect("a P-256 key has a PKCS #8 encoding");
    let temporary = write_temporary(path, pem.as_bytes())?;
    // A link, not a rename: it fails instead of replacing a key that somebody else has just made.
    let linked = fs::hard_link(&temporary, path);
    remove_temporary(&temporary)?;
    match linked {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(io_error("create", path, source)),
        _ => Ok(()),
    }
}

/// Replaces `path` in one step, so that a reader never sees half a file.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), PlatformError> {
    let temporary = write_temporary(path, bytes)?;
    fs::rename(&temporary, path).map_err(|source| io_error("create", path, source))
}

/// A file next to `path`, readable by its owner only and on disk when this returns.
fn write_temporary(path: &Path, bytes: &[u8]) -> Result<PathBuf, PlatformError> {
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| io_error("write", &temporary, source))?;
    Ok(temporary)
}

fn remove_temporary(path: &Path) -> Result<(), PlatformError> {
    fs::remove_file(path).map_err(|source| io_error("remove", path, source))
}

pub(crate) fn io_error(attempted: &'static str, path: &Path, source: io::Error) -> PlatformError {
    PlatformError::Io {
        attempted,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Key::open_or_create(dir.path(), "a.key").unwrap();
        let second = Key::open_or_create(dir.path(), "a.key").unwrap();
        assert_eq!(first.public_xy(), second.public_xy());
        let mode = fs::metadata(dir.path().join("a.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing temporary is left"
        );
    }

    #[test]
    fn a_damaged_key_is_named_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        fs::write(&path, "not a key").unwrap();
        let error = Key::open_or_create(dir.path(), "a.key").unwrap_err();
        assert!(error.to_string().contains("a.key"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "not a key");
    }

    #[test]
    fn debug_output_does_not_hold_the_secret() {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::open_or_create(dir.path(), "a.key").unwrap();
        let secret = hex::encode(key.secret.to_bytes());
        assert!(!format!("{key:?}").contains(&secret));
    }
}
