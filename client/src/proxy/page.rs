//! The page of `cocoon proxy --ui`: one document without any other resource, which shows the verification and
//! chats. It holds nothing secret; what it asks of the proxy is answered for its token only.
//!
//! The token stands in the URL's fragment, which browsers send to nobody, and comes back in a header of its own. It
//! is no cookie: those go to every port of a host, so to other users' servers on this machine too.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use cocoon_evidence::Digest32;
use hyper::{
    HeaderMap, Response,
    header::{
        CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, InvalidHeaderValue, REFERRER_POLICY,
        X_FRAME_OPTIONS,
    },
};
use zeroize::Zeroizing;

use super::reply::{Body, respond};

/// Where the page is.
pub(super) const PATH: &str = "/ui";
/// What its requests carry the token in.
const TOKEN_HEADER: &str = "x-cocoon-token";
/// Nobody guesses 128 bits.
const TOKEN_BYTES: usize = 16;

const HTML: &str = include_str!("ui/page.html");
const STYLE: &str = include_str!("ui/page.css");
const SCRIPT: &str = include_str!("ui/page.js");

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The operating system gives no random numbers.
    #[error("no random token for the page; is getrandom(2) allowed here?")]
    Random(#[from] getrandom::Error),
    /// The page's own headers are not of HTTP.
    #[error("the page's content security policy is no header")]
    Header(#[from] InvalidHeaderValue),
}

/// The page and who may use it.
pub(super) struct Page {
    token: Token,
    html: String,
    policy: HeaderValue,
}

/// What the URL that was printed holds.
struct Token(Zeroizing<String>);

impl Page {
    pub(super) fn new() -> Result<Self, PageError> {
        let mut random = Zeroizing::new([0; TOKEN_BYTES]);
        getrandom::fill(random.as_mut())?;
        Ok(Self {
            token: Token(Zeroizing::new(hex::encode(random.as_ref()))),
            html: HTML.replace("{style}", STYLE).replace("{script}", SCRIPT),
            policy: content_security_policy().parse()?,
        })
    }

    /// Path and fragment, to be told to the user only.
    pub(super) fn path(&self) -> String {
        format!("{PATH}#{}", *self.token.0)
    }

    /// Whether a request was made by the page that was opened with the URL that was printed.
    pub(super) fn sent(&self, headers: &HeaderMap) -> bool {
        let mut given = headers.get_all(TOKEN_HEADER).iter();
        match (given.next(), given.next()) {
            // Hashes, so that how long comparing takes says nothing of the token.
            (Some(given), None) => Digest32::of(given.as_bytes()) == Digest32::of(self.token.0.as_bytes()),
            _ => false,
        }
    }

    pub(super) fn response(&self) -> Response<Body> {
        let body = Body::Whole(Some(self.html.clone().into()));
        let mut response = respond("text/html; charset=utf-8", body);
        let fixed = |value| HeaderValue::from_static(value);
        response.headers_mut().extend([
            (CONTENT_SECURITY_POLICY, self.policy.clone()),
            (REFERRER_POLICY, fixed("no-referrer")),
            (X_FRAME_OPTIONS, fixed("DENY")),
            (
                HeaderName::from_static("cross-origin-opener-policy"),
                fixed("same-origin"),
            ),
            (
                HeaderName::from_static("cross-origin-resource-policy"),
                fixed("same-origin"),
            ),
        ]);
        response
    }
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Page").finish_non_exhaustive()
    }
}

/// Only this style and this script, by their hashes, and only this proxy to talk to. Trusted types make the browser
/// refuse to take any string for HTML or code, whatever a node answers.
fn content_security_policy() -> String {
    let hash = |text: &str| BASE64_STANDARD.encode(Digest32::of(text.as_bytes()).0);
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
         trusted-types 'none'",
        hash(SCRIPT),
        hash(STYLE)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(tokens: &[&str]) -> HeaderMap {
        let header = |token: &&str| (HeaderName::from_static(TOKEN_HEADER), token.parse().unwrap());
        tokens.iter().map(header).collect()
    }

    #[test]
    fn only_the_url_that_was_printed_opens_the_page() {
        let (page, other) = (Page::new().unwrap(), Page::new().unwrap());
        let token = page.path().split_once('#').unwrap().1.to_owned();
        assert_eq!(token.len(), 2 * TOKEN_BYTES);
        assert!(page.sent(&headers(&[&token])));
        let (longer, shorter) = (format!("{token}0"), &token[1..]);
        for given in [
            vec![],
            vec![""],
            vec!["0"],
            vec![&longer],
            vec![shorter],
            vec![&token, "0"],
        ] {
            assert!(!page.sent(&headers(&given)), "{given:?}");
        }
        assert!(!other.sent(&headers(&[&token])), "each process has its own");
    }

    #[test]
    fn neither_the_document_nor_logs_hold_the_token() {
        let page = Page::new().unwrap();
        let token = page.path().split_once('#').unwrap().1.to_owned();
        assert!(!page.html.contains(&token) && !format!("{page:?}").contains(&token));
    }

    #[test]
    fn the_page_needs_nothing_from_anywhere() {
        let html = Page::new().unwrap().html;
        for outside in [
            "http:",
            "https:",
            "//",
            "ws:",
            "wss:",
            "url(",
            "@import",
            "src=",
            "@font-face",
            "import ",
        ] {
            let found = html.lines().find(|line| line.to_lowercase().contains(outside));
            assert_eq!(found, None, "{outside}");
        }
    }

    #[test]
    fn answers_cannot_become_html_or_code() {
        // The browser refuses these too, by trusted types; here the page is kept from trying.
        let html = Page::new().unwrap().html;
        for sink in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "setAttribute",
            "javascript:",
            "srcdoc",
            "style=",
        ] {
            assert!(!html.contains(sink), "{sink}");
        }
        let handler = |line: &&str| {
            line.split_whitespace()
                .any(|word| word.starts_with("on") && word.contains("=\""))
        };
        assert_eq!(html.lines().find(handler), None, "an inline event handler");
    }

    #[test]
    fn only_the_script_that_was_built_in_runs() {
        let policy = content_security_policy();
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        for rule in [
            "default-src 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(policy.contains(rule), "{policy}");
        }
        // The hashes are of what stands between the tags, byte for byte.
        let html = Page::new().unwrap().html;
        for (tag, text) in [("style", STYLE), ("script", SCRIPT)] {
            assert_eq!(html.matches(&format!("<{tag}")).count(), 1);
            assert!(html.contains(&format!("<{tag}>{text}</{tag}>")), "{tag}");
        }
    }
}
