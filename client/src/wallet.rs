//! The key that owns a deposit, in a file of its own.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use cocoon_protocol::{AccountAddress, NetworkId};
use ed25519_dalek::SigningKey;
use zeroize::Zeroizing;

/// The seed in hexadecimal and a line feed.
const FILE_BYTES: usize = 65;

/// Why a wallet cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum WalletError {
    /// The file is there already; a key is never written over.
    #[error("{path} exists already and may hold a key with coins; choose another file")]
    Exists {
        /// Which file.
        path: PathBuf,
    },
    /// The file cannot be read or written.
    #[error("the wallet {path} cannot be {attempted}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Opened, read or written.
        attempted: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others on this machine could have copied the key.
    #[error(
        "the wallet {path} is accessible to others (mode {mode:o}): run chmod 600 {path}, and consider the key known"
    )]
    Permissions {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another kind of file.
    #[error(
        "{path} is not a wallet: it has to hold 64 hexadecimal digits, as `cocoon wallet new` writes them"
    )]
    Malformed {
        /// Which file.
        path: PathBuf,
    },
    /// This machine's random numbers.
    #[error("this machine gives no random numbers")]
    Random(#[source] io::Error),
}

/// An Ed25519 key that owns a deposit on each network.
pub struct Wallet(SigningKey);

impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wallet({})", hex::encode(self.public_key()))
    }
}

impl Wallet {
    /// Makes a key and writes it to a new file that only its owner can read.
    ///
    /// # Errors
    /// The file exists, or cannot be written.
    pub fn create(path: &Path) -> Result<Self, WalletError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).map_err(|error| WalletError::Random(error.into()))?;
        let opened = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(WalletError::Exists {
                    path: path.to_owned(),
                });
            }
            Err(source) => return Err(io_error(path, "created", source)),
        };
        let text = Zeroizing::new(format!("{}\n", &*Zeroizing::new(hex::encode(seed.as_ref()))));
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|source| io_error(path, "written", source))?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// Reads a wallet.
    ///
    /// # Errors
    /// See [`WalletError`]; a file that others can read or write is refused.
    pub fn load(path: &Path) -> Result<Self, WalletError> {
        let file = File::open(path).map_err(|source| io_error(path, "opened", source))?;
        // Of the open file, so that it cannot be swapped between the check and the reading.
        let metadata = file
            .metadata()
            .map_err(|source| io_error(path, "opened", source))?;
        let mode = metadata.mode() & 0o7777;
        let malformed = || WalletError::Malformed {
            path: path.to_owned(),
        };
        if !metadata.is_file() {
            return Err(malformed());
        }
        if mode & 0o077 != 0 {
            return Err(WalletError::Permissions {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = Zeroizing::new(Vec::with_capacity(FILE_BYTES + 1));
        file.take(FILE_BYTES as u64 + 1)
            .read_to_end(&mut text)
            .map_err(|source| io_error(path, "read", source))?;
        let mut seed = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim_ascii_end(), seed.as_mut()).map_err(|_| malformed())?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// The key that signs grants and withdrawals.
    pub fn key(&self) -> &SigningKey {
        &self.0
    }

    /// Its public half.
    pub fn public_key(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// Where this key's deposit is, with the contract code that is compiled in.
    pub fn deposit(&self, network: NetworkId) -> AccountAddress {
        cocoon_settlement::deposit_code().deposit_address(network, &self.public_key())
    }
}

fn io_error(path: &Path, attempted: &'static str, source: io::Error) -> WalletError {
    WalletError::Io {
        path: path.to_owned(),
        attempted,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn a_wallet_round_trips_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wallet");
        let made = Wallet::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Wallet::load(&path).unwrap().public_key(), made.public_key());
        assert!(!format!("{made:?}").contains(fs::read_to_string(&path).unwrap().trim()));
    }

    #[test]
    fn an_existing_file_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wallet");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Wallet::create(&path), Err(WalletError::Exists { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_wallet_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wallet");
        Wallet::create(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Wallet::load(&path).unwrap_err();
            assert!(matches!(error, WalletError::Permissions { .. }), "{mode:o}");
        }
    }

    #[test]
    fn other_files_are_no_wallets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wallet");
        let long = "0".repeat(66);
        for text in ["", "00", "not hexadecimal", &long] {
            let mut file = OpenOptions::new();
            let mut file = file
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)
                .unwrap();
            file.write_all(text.as_bytes()).unwrap();
            assert!(
                matches!(Wallet::load(&path), Err(WalletError::Malformed { .. })),
                "{text:?}"
            );
        }
        assert!(matches!(
            Wallet::load(dir.path()),
            Err(WalletError::Malformed { .. })
        ));
    }
}
