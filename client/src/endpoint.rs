//! Where a guest is reached: `https://HOST:PORT`.

use std::{fmt, str::FromStr};

use hyper::Uri;
use rustls::pki_types::ServerName;

/// A guest's address. Who answers there is for the evidence to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

/// Text that is not `https://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a guest's URL: {reason}; write https://HOST:PORT")]
pub struct ParseEndpointError {
    text: String,
    reason: &'static str,
}

impl Endpoint {
    /// Name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn server_name(&self) -> ServerName<'static> {
        self.name.clone()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "https://{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri: Uri = text.parse().map_err(|_| error(text, "it is not a URL"))?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(error(text, "it must not name a path"));
        }
        Self::try_from(&uri)
    }
}

/// Of any `https` URL; its path plays no part.
impl TryFrom<&Uri> for Endpoint {
    type Error = ParseEndpointError;

    fn try_from(uri: &Uri) -> Result<Self, Self::Error> {
        let error = |reason| error(&uri.to_string(), reason);
        if uri.scheme_str() != Some("https") {
            return Err(error("only https is spoken"));
        }
        if uri
            .authority()
            .is_none_or(|authority| authority.as_str().contains('@'))
        {
            return Err(error("it has to name a host and no user"));
        }
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| error("the host is no name or address"))?;
        Ok(Self {
            port: uri.port_u16().unwrap_or(443),
            host,
            name,
        })
    }
}

fn error(text: &str, reason: &'static str) -> ParseEndpointError {
    ParseEndpointError {
        text: text.chars().take(200).collect(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_guests() {
        let check = |text: &str| text.parse::<Endpoint>().map(|endpoint| endpoint.to_string());
        assert_eq!(check("https://127.0.0.1:8443").unwrap(), "https://127.0.0.1:8443");
        assert_eq!(
            check("https://node.example/").unwrap(),
            "https://node.example:443"
        );
        assert_eq!(check("https://[::1]:7443").unwrap(), "https://[::1]:7443");
        for wrong in [
            "http://127.0.0.1:8443",
            "127.0.0.1:8443",
            "https://me@host:1",
            "https://host/v1",
            "https://host?x=1",
            "https://",
            "",
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }
}
