//! One request and its answer, on an encrypted connection to one of several liteservers.

use std::{fmt, time::Duration};

use adnl::AdnlPeer;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{net::TcpStream, time::timeout};
use ton_liteapi::tl::{
    adnl::Message,
    common::Int256,
    request::{LiteQuery, Request, WrappedRequest},
    response::{self, Response},
};

use crate::{ChainError, GlobalConfig, Liteserver};

/// Public liteservers come and go: the next one is tried after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Reading an account takes a liteserver well under a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Pings and answers to abandoned requests that are skipped while waiting for an answer.
const SKIPPED_MAX: usize = 16;

/// At most so many servers are tried for one answer.
const SERVERS_MAX: usize = 8;

/// A connection that is made when first needed and made anew, to the next server, when it fails.
pub(crate) struct Connection {
    config: GlobalConfig,
    /// Which server is in use, or is next.
    server: usize,
    peer: Option<AdnlPeer<TcpStream>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("config", &self.config)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(crate) fn new(config: GlobalConfig) -> Self {
        Self {
            config,
            server: 0,
            peer: None,
        }
    }

    /// Asks, trying one server after the other. Sending a request twice does no harm: messages are signed and
    /// replay-proof.
    pub(crate) async fn ask(&mut self, request: Request) -> Result<Response, ChainError> {
        let servers = self.config.liteservers().len();
        // A kept connection may have been closed meanwhile, so even a single server is asked twice.
        let tries = (servers + 1).min(SERVERS_MAX);
        let mut last = String::new();
        for _ in 0..tries {
            let current = self.server % servers;
            let server = self.config.liteservers()[current];
            // Set before it is asked: if the caller gives up waiting for this one, its next call asks another.
            self.server = (current + 1) % servers;
            // Taken out: a request that fails or is cancelled leaves no half-read connection behind.
            let answer = match self.peer.take() {
                Some(peer) => exchange(peer, request.clone()).await,
                None => match connect(&server).await {
                    Ok(peer) => exchange(peer, request.clone()).await,
                    Err(reason) => Err(reason),
                },
            };
            match answer {
                Ok((peer, response)) => {
                    self.peer = Some(peer);
                    self.server = current;
                    return Ok(response);
                }
                Err(reason) => last = format!("{} {reason}", server.address),
            }
        }
        Err(ChainError::Unreachable {
            tried: servers.min(tries),
            last,
        })
    }

    /// How many servers are tried for one answer.
    pub(crate) fn servers(&self) -> usize {
        self.config.liteservers().len().min(SERVERS_MAX)
    }

    /// The server that gave the last answer.
    pub(crate) fn server(&self) -> usize {
        self.server
    }

    /// Leaves a server whose answer is of no use; the next request goes to the next one. If several callers find
    /// that of the same server, it is left once.
    pub(crate) fn leave_server(&mut self, server: usize) {
        if self.server == server {
            self.peer = None;
            self.server = (server + 1) % self.config.liteservers().len();
        }
    }
}

async fn connect(server: &Liteserver) -> Result<AdnlPeer<TcpStream>, &'static str> {
    timeout(CONNECT_TIMEOUT, AdnlPeer::connect(server.key, server.address))
        .await
        .map_err(|_| "does not answer in time")?
        .map_err(|_| "refuses the connection, or has another key than the config says")
}

async fn exchange(
    mut peer: AdnlPeer<TcpStream>,
    request: Request,
) -> Result<(AdnlPeer<TcpStream>, Response), &'static str> {
    let mut id = [0; 32];
    getrandom::fill(&mut id).map_err(|_| "cannot be asked: the system gives no random numbers")?;
    let query = Message::Query {
        query_id: Int256(id),
        query: LiteQuery {
            wrapped_request: WrappedRequest {
                wait_masterchain_seqno: None,
                request,
            },
        },
    };
    let answer = async {
        peer.send(tl_proto::serialize(query).into())
            .await
            .map_err(|_| "closed the connection")?;
        for _ in 0..SKIPPED_MAX {
            let packet = peer.next().await.ok_or("closed the connection")?;
            let packet = packet.map_err(|_| "broke the connection")?;
            match tl_proto::deserialize::<Message>(&packet) {
                Ok(Message::Answer { query_id, answer }) if query_id.0 == id => return Ok(answer),
                Ok(_) => {}
                Err(_) => return Err("answers in a way that is not understood"),
            }
        }
        Err("does not answer the question")
    };
    let answer = timeout(ANSWER_TIMEOUT, answer)
        .await
        .map_err(|_| "does not answer in time")??;
    Ok((peer, answer))
}

/// The text of a server's error. The TL crate's own formatting panics on text that is not UTF-8.
pub(crate) fn error_text(error: &response::Error) -> String {
    /// Enough for an exit code; servers append whole VM logs.
    const CHARS_MAX: usize = 500;
    let tl = tl_proto::serialize(&error.message);
    let bytes = <&[u8] as tl_proto::TlRead>::read_from(&tl, &mut 0).unwrap_or_default();
    String::from_utf8_lossy(bytes)
        .chars()
        .filter(|c| !c.is_control())
        .take(CHARS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_fails_several_callers_is_left_once() {
        let config = r#"{"liteservers": [SERVER, SERVER]}"#.replace(
            "SERVER",
            r#"{"ip": 1, "port": 1, "id": {"@type": "pub.ed25519", "key": "n4VDnSCUuSpjnCyUk9e3QOOd6o0ItSWYbTnW3Wnn8wk="}}"#,
        );
        let mut connection = Connection::new(GlobalConfig::parse(config.as_bytes()).unwrap());
        assert_eq!(connection.servers(), 2);
        connection.leave_server(0);
        connection.leave_server(0);
        assert_eq!(connection.server(), 1);
        connection.leave_server(1);
        assert_eq!(connection.server(), 0);
    }

    #[test]
    fn hostile_error_texts_do_not_panic_and_are_cut() {
        let tl = tl_proto::serialize([[0xff_u8; 1000].as_slice(), b"\x1b[2J"].concat());
        let message = tl_proto::deserialize::<ton_liteapi::tl::common::String>(&tl).unwrap();
        let text = error_text(&response::Error { code: 0, message });
        assert_eq!(text.chars().count(), 500);
        assert!(!text.contains('\x1b'));
        let plain = response::Error {
            code: 0,
            message: "exitcode=1".into(),
        };
        assert_eq!(error_text(&plain), "exitcode=1");
    }
}
