//! TON's `global.config.json`: where the liteservers are.
//!
//! The format is the one that <https://ton.org/global.config.json> has; of it only `liteservers` is read.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// A longer file is refused; the public ones are about 20 KiB.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// One liteserver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liteserver {
    /// Where it listens, TCP.
    pub address: SocketAddrV4,
    /// Its Ed25519 key; the connection is encrypted to it.
    pub key: [u8; 32],
}

/// The liteservers of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalConfig {
    /// At least one.
    liteservers: Vec<Liteserver>,
}

/// Why a `global.config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the TON config {path} cannot be read; give the path of a global.config.json")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is far larger than such a file is.
    #[error("the TON config has {bytes} bytes, at most {CONFIG_BYTES_MAX} are read")]
    TooLarge {
        /// Its length.
        bytes: u64,
    },
    /// It is not JSON.
    #[error("the TON config is not JSON")]
    Json(#[source] serde_json::Error),
    /// It is JSON of another kind.
    #[error("the TON config's {what}; it needs liteservers with ip, port and a pub.ed25519 key")]
    Format {
        /// What is wrong where.
        what: String,
    },
}

impl GlobalConfig {
    /// A configuration of one server.
    pub fn single(server: Liteserver) -> Self {
        Self {
            liteservers: vec![server],
        }
    }

    /// Reads a `global.config.json`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let read = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let bytes = fs::metadata(path).map_err(read)?.len();
        if bytes > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLarge { bytes });
        }
        Self::parse(&fs::read(path).map_err(read)?)
    }

    /// Parses the content of a `global.config.json`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let config: Value = serde_json::from_slice(bytes).map_err(ConfigError::Json)?;
        let format = |what: &str| ConfigError::Format {
            what: what.to_owned(),
        };
        let servers = config
            .get("liteservers")
            .and_then(Value::as_array)
            .ok_or_else(|| format("list of liteservers is missing"))?;
        if servers.is_empty() {
            return Err(format("list of liteservers is empty"));
        }
        let liteservers = servers
            .iter()
            .enumerate()
            .map(|(index, server)| {
                parse_server(server).ok_or_else(|| format(&format!("liteserver number {index} is malformed")))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { liteservers })
    }

    /// The same in TON's format, for other tools too.
    pub fn to_json(&self) -> String {
        let servers: Vec<_> = self
            .liteservers
            .iter()
            .map(|server| {
                json!({
                    // TON writes an IPv4 address as a signed 32-bit integer.
                    "ip": server.address.ip().to_bits().cast_signed(),
                    "port": server.address.port(),
                    "id": {"@type": "pub.ed25519", "key": STANDARD.encode(server.key)},
                })
            })
            .collect();
        format!(
            "{:#}\n",
            json!({"@type": "config.global", "liteservers": servers})
        )
    }

    /// The servers, in the order of the file.
    pub fn liteservers(&self) -> &[Liteserver] {
        &self.liteservers
    }
}

fn parse_server(server: &Value) -> Option<Liteserver> {
    let ip = server.get("ip")?.as_i64()?;
    // Both the signed and the unsigned form are in use.
    let ip = i32::try_from(ip)
        .map(i32::cast_unsigned)
        .or_else(|_| u32::try_from(ip))
        .ok()?;
    let port = u16::try_from(server.get("port")?.as_u64()?).ok()?;
    let id = server.get("id")?;
    if id.get("@type")?.as_str()? != "pub.ed25519" {
        return None;
    }
    let key = STANDARD.decode(id.get("key")?.as_str()?).ok()?;
    Some(Liteserver {
        address: SocketAddrV4::new(Ipv4Addr::from_bits(ip), port),
        key: key.try_into().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of TON's public mainnet configuration.
    const PUBLIC: &str = r#"{"@type": "config.global", "dht": {}, "liteservers": [{"ip": 84478511, "port": 19949,
        "id": {"@type": "pub.ed25519", "key": "n4VDnSCUuSpjnCyUk9e3QOOd6o0ItSWYbTnW3Wnn8wk="}}]}"#;

    #[test]
    fn a_public_entry_is_read() {
        let config = GlobalConfig::parse(PUBLIC.as_bytes()).unwrap();
        assert_eq!(config.liteservers()[0].address.to_string(), "5.9.10.47:19949");
        assert_eq!(config.liteservers()[0].key[0], 0x9f);
    }

    #[test]
    fn round_trips_with_addresses_above_the_sign_bit() {
        let config = GlobalConfig::single(Liteserver {
            address: "203.0.113.7:65535".parse().unwrap(),
            key: [7; 32],
        });
        assert!(config.to_json().contains("\"ip\": -"), "TON's form is signed");
        assert_eq!(GlobalConfig::parse(config.to_json().as_bytes()).unwrap(), config);
    }

    #[test]
    fn what_is_missing_is_named() {
        let refused = |text: &str| GlobalConfig::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(refused("[").contains("not JSON"));
        assert!(refused("{}").contains("missing"));
        assert!(refused(r#"{"liteservers": []}"#).contains("empty"));
        assert!(refused(&PUBLIC.replace("19949", "70000")).contains("number 0"));
        assert!(refused(&PUBLIC.replace("ed25519", "aes")).contains("number 0"));
        assert!(refused(&PUBLIC.replace("n4VD", "")).contains("number 0"));
    }
}
