//! Who may speak to the proxy. It listens on loopback, where every web page that is open in a browser can send
//! requests too, and a request costs coins. A page's own requests carry its Origin; a page whose name was
//! rebound to 127.0.0.1 carries that name as Host. The proxy's own page shows a token: whatever else was ever
//! loaded from this address and port has its Origin too. Pure.

use std::net::IpAddr;

use hyper::{
    HeaderMap, Uri,
    header::{HOST, ORIGIN},
    http::uri::Authority,
};

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trespass {
    #[error("the Host header has to name this machine: 127.0.0.1, [::1] or localhost")]
    Host,
    #[error("requests of web pages are refused, other than of the proxy's own")]
    Origin,
    #[error(
        "requests of a page need the token of `--ui`: open the URL that cocoon proxy printed when it started"
    )]
    Token,
}

/// Refuses what a web page of somebody else's could have sent.
pub(crate) fn check(headers: &HeaderMap, uri: &Uri) -> Result<(), Trespass> {
    let host = only(headers, HOST.as_str()).ok_or(Trespass::Host)?;
    let target = uri.authority().map_or(host, Authority::as_str);
    if !is_loopback(host) || !is_loopback(target) {
        return Err(Trespass::Host);
    }
    if headers.contains_key(ORIGIN) {
        let own = |origin: &str| origin.strip_prefix("http://") == Some(host);
        if !only(headers, ORIGIN.as_str()).is_some_and(own) {
            return Err(Trespass::Origin);
        }
    }
    // Sent by browsers also where they send no Origin, as with images.
    if headers.contains_key("sec-fetch-site") {
        let own = |site: &str| matches!(site, "same-origin" | "none");
        if !only(headers, "sec-fetch-site").is_some_and(own) {
            return Err(Trespass::Origin);
        }
    }
    Ok(())
}

/// Whether a page sent it. Programs that are no browsers do not say these words; when a user types an address,
/// `Sec-Fetch-Site` is `none`.
pub(crate) fn is_of_page(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN)
        || headers
            .get_all("sec-fetch-site")
            .iter()
            .any(|site| site != "none")
}

/// The header's value, if there is exactly one.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn is_loopback(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else {
        return false;
    };
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || literal
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(headers: &[(&'static str, &str)], uri: &str) -> Result<(), Trespass> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        check(&map, &uri.parse().unwrap())
    }

    #[test]
    fn programs_on_this_machine_may() {
        for host in [
            "127.0.0.1:8080",
            "localhost:8080",
            "LOCALHOST",
            "[::1]:8080",
            "127.0.0.2",
        ] {
            assert_eq!(judge(&[("host", host)], "/v1/models"), Ok(()), "{host}");
        }
        let own_page = [
            ("host", "127.0.0.1:8080"),
            ("origin", "http://127.0.0.1:8080"),
            ("sec-fetch-site", "same-origin"),
        ];
        assert_eq!(judge(&own_page, "/v1/models"), Ok(()));
    }

    #[test]
    fn pages_are_told_from_programs_and_from_what_a_user_types() {
        for (name, value, page) in [
            ("accept", "text/html", false),
            ("sec-fetch-site", "none", false),
            ("sec-fetch-site", "same-origin", true),
            ("origin", "http://127.0.0.1:8080", true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            assert_eq!(is_of_page(&headers), page, "{name}: {value}");
        }
    }

    #[test]
    fn a_name_that_was_rebound_to_loopback_is_refused() {
        for host in [
            "attacker.example:8080",
            "localhost.attacker.example",
            "127.0.0.1.attacker.example",
            "me@127.0.0.1",
            "192.168.0.1",
            "",
        ] {
            assert_eq!(judge(&[("host", host)], "/"), Err(Trespass::Host), "{host}");
        }
        assert_eq!(judge(&[], "/"), Err(Trespass::Host));
        let two = [("host", "127.0.0.1"), ("host", "attacker.example")];
        assert_eq!(judge(&two, "/"), Err(Trespass::Host));
        let absolute = "http://attacker.example/v1/models";
        assert_eq!(judge(&[("host", "127.0.0.1")], absolute), Err(Trespass::Host));
    }

    #[test]
    fn a_web_page_cannot_spend() {
        for (name, value) in [
            ("origin", "https://attacker.example"),
            ("origin", "null"),
            ("origin", "http://127.0.0.1:9999"),
            ("origin", "https://127.0.0.1:8080"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            let headers = [("host", "127.0.0.1:8080"), (name, value)];
            assert_eq!(judge(&headers, "/"), Err(Trespass::Origin), "{value}");
        }
        let two = [
            ("host", "127.0.0.1:8080"),
            ("origin", "http://127.0.0.1:8080"),
            ("origin", "https://attacker.example"),
        ];
        assert_eq!(judge(&two, "/"), Err(Trespass::Origin));
    }
}
