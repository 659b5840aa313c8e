//! An engine that generates nothing: it says what the prompt asks for, a piece at a time, to all requests at once.
//! It is cancelled as an engine is.

use std::{
    collections::HashMap,
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cocoon_agent::engine::{EngineProcess, Spawn};
use cocoon_protocol::{
    TokenCounts,
    engine::{FinishReason, FromEngine, ToEngine},
    read_frame_async, write_frame_async,
};
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::sleep,
};

/// Between two pieces of one answer in a soak: ten tokens a second for each of all clients.
pub(crate) const PIECE_PAUSE: Duration = Duration::from_millis(100);
/// The name of prompts that are answered with the time: each piece is the nanosecond since 1970 at which it was said.
pub(crate) const CLOCK: &str = "clock";
/// Messages on their way to the agent; requests wait when it is slower.
const MESSAGES_MAX: usize = 1024;
pub(crate) const INPUT_TOKENS: u64 = 5;

/// A prompt: whose it is, of how many pieces its answer is, and how far apart these are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prompt {
    pub(crate) name: String,
    pub(crate) pieces: u64,
    pub(crate) pause: Duration,
}

impl Prompt {
    /// As it is sent.
    pub(crate) fn text(&self) -> String {
        format!("{} {} {}", self.name, self.pieces, self.pause.as_micros())
    }

    fn parse(text: &str) -> Option<Self> {
        let (rest, pause_us) = text.rsplit_once(' ')?;
        let (name, pieces) = rest.rsplit_once(' ')?;
        Some(Self {
            name: name.to_owned(),
            pieces: pieces.parse().ok()?,
            pause: Duration::from_micros(pause_us.parse().ok()?),
        })
    }

    fn piece(&self, number: u64) -> String {
        match self.name.as_str() {
            CLOCK => format!("{} ", now_ns()),
            name => format!("{name}:{number} "),
        }
    }

    /// The whole answer, where it is not the time.
    pub(crate) fn answer(&self) -> String {
        (1..=self.pieces).map(|number| self.piece(number)).collect()
    }
}

fn now_ns() -> u128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_nanos()
}

/// Starts talkers.
pub(crate) struct Talker;

impl Spawn for Talker {
    fn spawn(&self) -> io::Result<EngineProcess> {
        let (socket, theirs) = UnixStream::pair()?;
        Ok(EngineProcess {
            socket,
            guard: Box::new(Abort(tokio::spawn(talk(theirs)))),
        })
    }
}

struct Abort(JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn talk(socket: UnixStream) {
    let (mut reader, mut writer) = socket.into_split();
    let (sender, mut messages) = mpsc::channel::<FromEngine>(MESSAGES_MAX);
    let write = async {
        while let Some(message) = messages.recv().await {
            if write_frame_async(&mut writer, &message).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        let mut cancels = HashMap::new();
        while let Ok(message) = read_frame_async(&mut reader).await {
            match message {
                ToEngine::Load { .. } => drop(sender.send(FromEngine::Loaded { elapsed_ms: 0 }).await),
                ToEngine::Cancel { id } => drop(cancels.remove(&id)),
                ToEngine::Generate { id, messages, .. } => {
                    let prompt = messages.last().and_then(|last| Prompt::parse(&last.content));
                    let Some(prompt) = prompt else { return };
                    let (cancel, cancelled) = oneshot::channel::<()>();
                    cancels.retain(|_, cancel: &mut oneshot::Sender<()>| !cancel.is_closed());
                    cancels.insert(id, cancel);
                    tokio::spawn(generate(id, prompt, sender.clone(), cancelled));
                }
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
    }
}

async fn generate(
    id: u64,
    prompt: Prompt,
    agent: mpsc::Sender<FromEngine>,
    mut cancelled: oneshot::Receiver<()>,
) {
    let started = FromEngine::Started {
        id,
        input_tokens: INPUT_TOKENS,
    };
    let _ = agent.send(started).await;
    let mut said = 0;
    while said < prompt.pieces {
        tokio::select! {
            _ = &mut cancelled => break,
            () = sleep(prompt.pause) => {}
        }
        said += 1;
        let text = FromEngine::Text {
            id,
            text: prompt.piece(said),
            output_tokens: said,
        };
        let _ = agent.send(text).await;
    }
    let reason = if said == prompt.pieces {
        FinishReason::Stop
    } else {
        FinishReason::Cancelled
    };
    let tokens = TokenCounts {
        input: INPUT_TOKENS,
        output: said,
    };
    let _ = agent.send(FromEngine::Finished { id, reason, tokens }).await;
}
