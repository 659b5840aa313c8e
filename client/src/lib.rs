//! Talks to a Cocoon guest, but only after it proved what it is.
//!
//! [`connect`] dials, finishes a TLS handshake that proves nothing but possession of a key, then asks for
//! evidence and judges it twice: what the certificate carries, and what the guest signs afresh for this
//! connection. Only then is there a [`Session`], and only a session can carry a grant ([`Session::open`]) and a
//! prompt ([`PaidSession::chat`]): the order is in the types, not in the caller's care.
//!
//! What it trusts: the policy, this machine's clock, and the deposit contract's code that is compiled in.
//! Everything that arrives over the network is bounded, has a deadline and may be hostile.

mod accepted;
mod api;
mod attested;
mod certificate;
mod clock;
mod connect;
mod connector;
mod endpoint;
mod exchange;
mod exit;
mod judged;
mod patience;
mod pay;
mod plain;
mod proof;
mod proxy;
mod receipt;
mod record;
mod seen;
mod session;
mod stream;
mod table;
mod transcript;
mod transport;
mod verifier;
mod wallet;

pub use accepted::Accepted;
pub use api::{ChatMessage, ChatRole};
pub use attested::AttestedStream;
pub use certificate::{CLOCK_SKEW_S, CertificateFault, Leaf, VALIDITY_S_MAX};
pub use clock::now_s;
pub use connect::{ConnectError, connect, connect_recorded};
pub use connector::{Connector, ConnectorError};
pub use endpoint::{Endpoint, ParseEndpointError};
pub use exchange::{ExchangeError, Step};
pub use exit::Exit;
pub use judged::verdict_json;
pub use pay::{Account, GRANT_LIFETIME_S, Locking, PayError, Purse, need_nano};
pub use plain::plain;
pub use proof::{FRESH_FOR, Proof};
pub use proxy::{Fleet, PageError, Proxy};
pub use receipt::ReceiptFault;
pub use record::{EventFact, Facts, Record, RecordError, Verification};
pub use seen::{Seen, SeenError};
pub use session::{
    Answer, BoundGrant, ChatError, ChatOptions, PROMPT_BYTES_MAX, PaidSession, Session, Standing,
};
pub use table::{Style, explain, refusal_lines, render};
pub use transport::Deadlines;
pub use verifier::{PROOFS_MAX, Verifier};
pub use wallet::{Wallet, WalletError};
