//! The clients: each streams one answer after the other on its own connection, leaves in the middle of some and comes
//! back, and believes nothing: the text has to be its own, the receipt true.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::AsyncReadExt as _,
    net::UnixStream,
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

use crate::{
    Arguments,
    client::{Client, Outcome},
    node::{PIECE_PAUSE, Prompt},
    owners::Owners,
    tally::{Tally, count},
    tls,
};

/// Connecting at the same time; more would meet the end of the kernel's queue, which is not what is tested.
const DIALS_MAX: usize = 64;
/// For one connection or one answer. The agent's own deadlines are shorter.
const DEADLINE: Duration = Duration::from_secs(120);
/// Before a client that only holds connections takes the next one.
const IDLE_PAUSE: Duration = Duration::from_secs(1);
/// Answers have this many pieces at least, and up to as many more.
const PIECES_MIN: u64 = 5;
const PIECES_MORE: u64 = 40;

/// All clients.
pub(crate) struct Crowd {
    socket: PathBuf,
    tls: TlsConnector,
    owners: Owners,
    disconnects: u64,
    tally: Arc<Tally>,
    dials: Semaphore,
    connected: watch::Sender<usize>,
    phase: watch::Sender<Phase>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Connecting,
    Running,
    Ended,
}

impl Crowd {
    /// Asks the agent for its key, makes grants for it, and has one answer, after which the agent is as it stays.
    pub(crate) async fn new(socket: &Path, arguments: &Arguments, tally: Arc<Tally>) -> Result<Self> {
        let tls = TlsConnector::from(tls::config()?);
        let connected = Client::connect(socket, &tls);
        let mut client = timeout(DEADLINE, connected).await.context("connecting")??;
        let owners = Owners::for_agent(client.agent_key().await?, arguments.streams)?;
        let (owner, grant) = owners.of(0);
        client.bind(owner, grant).await?;
        let prompt = Prompt {
            name: "first".into(),
            pieces: 1,
            pause: PIECE_PAUSE,
        };
        let asked = client.ask(&prompt, owners.agent_key(), None);
        timeout(DEADLINE, asked).await.context("the first answer")??;
        Ok(Self {
            socket: socket.to_owned(),
            tls,
            owners,
            disconnects: arguments.disconnects,
            tally,
            dials: Semaphore::new(DIALS_MAX),
            connected: watch::Sender::new(0),
            phase: watch::Sender::new(Phase::Connecting),
        })
    }

    /// False if one could not connect.
    pub(crate) async fn wait_until_connected(&self, streams: usize) -> bool {
        let mut connected = self.connected.subscribe();
        let done = |count: &usize| *count >= streams || self.tally.errors().0 > 0;
        connected.wait_for(done).await.is_ok() && self.tally.errors().0 == 0
    }

    pub(crate) fn begin(&self) {
        self.phase.send_replace(Phase::Running);
    }

    /// Whoever is in the middle of an answer reads it to its end.
    pub(crate) fn end(&self) {
        self.phase.send_replace(Phase::Ended);
    }

    fn is_over(&self) -> bool {
        *self.phase.borrow() == Phase::Ended
    }

    async fn reached(&self, phase: Phase) {
        let mut phases = self.phase.subscribe();
        let _ = phases.wait_for(|now| *now >= phase).await;
    }

    /// Streams answers until the end.
    pub(crate) async fn stream(self: Arc<Self>, number: u64) {
        let mut client = match self.connect(number).await {
            Ok(client) => Some(client),
            Err(error) => {
                self.tally.error(&error);
                return self.connected.send_modify(|_| ());
            }
        };
        self.connected.send_modify(|count| *count += 1);
        self.reached(Phase::Running).await;
        let mut turn = 0;
        while !self.is_over() {
            turn += 1;
            if let Err(error) = self.one(&mut client, number, turn).await {
                self.tally
                    .error(&error.context(format!("client {number}, answer {turn}")));
                client = None;
                sleep(IDLE_PAUSE).await;
            }
        }
    }

    async fn connect(&self, number: u64) -> Result<Client> {
        let _dial = self.dials.acquire().await?;
        let (owner, grant) = self.owners.of(number);
        let bound = async {
            let mut client = Client::connect(&self.socket, &self.tls).await?;
            while let Some(again) = client.bind(owner, grant).await? {
                count(&self.tally.refused);
                sleep(again).await;
            }
            Ok(client)
        };
        timeout(DEADLINE, bound)
            .await
            .context("connecting takes too long")?
    }

    /// One answer, whole, or left in the middle.
    async fn one(&self, kept: &mut Option<Client>, number: u64, turn: u64) -> Result<()> {
        let mut client = match kept.take() {
            Some(client) => client,
            None => self.connect(number).await?,
        };
        let chance = mix(number, turn);
        let prompt = Prompt {
            name: format!("c{number}t{turn}"),
            pieces: PIECES_MIN + chance % PIECES_MORE,
            pause: PIECE_PAUSE,
        };
        let leave_after = ((chance >> 32) % 100 < self.disconnects).then_some((chance >> 16) % 8);
        let asked = client.ask(&prompt, self.owners.agent_key(), leave_after);
        match timeout(DEADLINE, asked)
            .await
            .context("the answer takes too long")??
        {
            Outcome::Answered { bytes } => {
                count(&self.tally.answered);
                self.tally
                    .bytes
                    .fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
                *kept = Some(client);
            }
            // The connection goes with the client.
            Outcome::Left => count(&self.tally.left),
            Outcome::Closed => count(&self.tally.closed),
            Outcome::Refused(retry_after) => {
                count(&self.tally.refused);
                sleep(retry_after).await;
            }
        }
        Ok(())
    }

    /// Holds one connection after the other without a word, until the end.
    pub(crate) async fn idle(self: Arc<Self>) {
        while !self.is_over() {
            tokio::select! {
                () = self.reached(Phase::Ended) => return,
                held = self.hold_one() => if let Err(error) = held {
                    self.tally.error(&error.context("a connection that is only held"));
                },
            }
            sleep(IDLE_PAUSE).await;
        }
    }

    async fn hold_one(&self) -> Result<()> {
        let mut held = {
            let _dial = self.dials.acquire().await?;
            UnixStream::connect(&self.socket).await.context("connecting")?
        };
        match held.read(&mut [0]).await {
            // Ended by the agent, with or without a word of TLS.
            Ok(_) | Err(_) => count(&self.tally.idle_ended),
        }
        Ok(())
    }
}

/// A number that looks random and is the same in every run.
fn mix(number: u64, turn: u64) -> u64 {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ turn.wrapping_mul(0xd1b5_4a32_d192_ed03);
    for _ in 0..3 {
        state ^= state >> 33;
        state = state.wrapping_mul(0xff51_afd7_ed55_8ccd);
    }
    state ^ (state >> 33)
}
