//! Ed25519 keys in the files that openssl writes: PKCS#8 and SubjectPublicKeyInfo, in PEM.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;
use ed25519_dalek::{
    SigningKey, VerifyingKey,
    pkcs8::{DecodePrivateKey as _, DecodePublicKey as _},
};
use nix::libc::O_NONBLOCK;
use zeroize::Zeroizing;

/// openssl's files have about 120 bytes.
const KEY_BYTES_MAX: usize = 4096;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file system refused.
    #[error("cannot read the key {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Whoever can read it can sign.
    #[error("the key {} can be read or changed by others than its owner; chmod 600 it", path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
    },
    /// Not a signing key.
    #[error(
        "{} holds no unencrypted Ed25519 key in PKCS#8 PEM; make one with: openssl genpkey -algorithm ed25519 -out FILE",
        path.display()
    )]
    NotSecret {
        /// Which file.
        path: PathBuf,
    },
    /// Not a public key.
    #[error(
        "{} holds no Ed25519 public key in PEM; make it from the signing key with: openssl pkey -in FILE -pubout",
        path.display()
    )]
    NotPublic {
        /// Which file.
        path: PathBuf,
    },
}

/// Reads a signing key that only its owner can read.
///
/// # Errors
/// See [`KeyError`]. It never says what the file holds.
pub fn read_signing_key(path: &Path) -> Result<SigningKey, KeyError> {
    let file = open(path)?;
    let mode = file.metadata().map_err(|source| read_error(path, source))?.mode();
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed {
            path: path.to_owned(),
        });
    }
    let not_secret = || KeyError::NotSecret {
        path: path.to_owned(),
    };
    let pem = read(path, file)?.ok_or_else(not_secret)?;
    SigningKey::from_pkcs8_pem(&pem).map_err(|_| not_secret())
}

/// Reads a public key; one of low order, under which anybody can sign, is none.
///
/// # Errors
/// See [`KeyError`].
pub fn read_public_key(path: &Path) -> Result<VerifyingKey, KeyError> {
    let not_public = || KeyError::NotPublic {
        path: path.to_owned(),
    };
    let pem = read(path, open(path)?)?.ok_or_else(not_public)?;
    let key = VerifyingKey::from_public_key_pem(&pem).ok();
    key.filter(|key| !key.is_weak()).ok_or_else(not_public)
}

/// A key's name: SHA-256 of its 32 bytes.
pub fn key_id(key: &VerifyingKey) -> String {
    Digest32::of(key.as_bytes()).to_string()
}

/// Without waiting for the other end of a pipe.
fn open(path: &Path) -> Result<File, KeyError> {
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path);
    file.map_err(|source| read_error(path, source))
}

/// None for what is too long or no text. Nothing of it stays in memory.
fn read(path: &Path, file: File) -> Result<Option<Zeroizing<String>>, KeyError> {
    // Of the final size from the start: a buffer that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * KEY_BYTES_MAX));
    match file.take(KEY_BYTES_MAX as u64 + 1).read_to_string(&mut text) {
        Ok(length) if length <= KEY_BYTES_MAX => Ok(Some(text)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(source) => Err(read_error(path, source)),
    }
}

fn read_error(path: &Path, source: io::Error) -> KeyError {
    KeyError::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use ed25519_dalek::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, spki::der::pem::LineEnding};

    use super::*;

    fn write(folder: &Path, text: &str, mode: u32) -> PathBuf {
        let path = folder.join("key.pem");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn secret_pem() -> String {
        let key = SigningKey::from_bytes(&[7; 32]);
        key.to_pkcs8_pem(LineEnding::LF).unwrap().to_string()
    }

    fn public_pem(key: &VerifyingKey) -> String {
        key.to_public_key_pem(LineEnding::LF).unwrap()
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601, 0o644] {
            let error = read_signing_key(&write(folder.path(), &secret_pem(), mode)).unwrap_err();
            assert!(matches!(error, KeyError::Exposed { .. }), "{mode:o}: {error}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        for mode in [0o600, 0o400] {
            let key = read_signing_key(&write(folder.path(), &secret_pem(), mode)).unwrap();
            assert_eq!(key.to_bytes(), [7; 32]);
        }
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let public = public_pem(&SigningKey::from_bytes(&[7; 32]).verifying_key());
        let giant = secret_pem() + &" ".repeat(KEY_BYTES_MAX);
        for text in ["", "secret", &public, &giant] {
            let error = read_signing_key(&write(folder.path(), text, 0o600)).unwrap_err();
            assert!(matches!(error, KeyError::NotSecret { .. }), "{error}");
            assert!(text.is_empty() || !error.to_string().contains(text), "{error}");
        }
        for text in [
            "",
            "public",
            &secret_pem(),
            &(public + &" ".repeat(KEY_BYTES_MAX)),
        ] {
            let error = read_public_key(&write(folder.path(), text, 0o644)).unwrap_err();
            assert!(matches!(error, KeyError::NotPublic { .. }), "{error}");
        }
    }

    #[test]
    fn a_public_key_under_which_anybody_can_sign_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let weak = VerifyingKey::from_bytes(&neutral).unwrap();
        let path = write(folder.path(), &public_pem(&weak), 0o644);
        assert!(matches!(read_public_key(&path), Err(KeyError::NotPublic { .. })));
    }
}
