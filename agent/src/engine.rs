//! The engine as the agent sees it: a child that may crash, hang or lie.
//!
//! One task owns the child and its socket. It hands each message to the request it belongs to and checks it
//! against what was asked; a message that breaks the rules ends the child. When the child ends, every running
//! request fails (and is not charged, not even for text already delivered), and the child is started again
//! with growing pauses. The agent's keys and the other connections live on.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cocoon_protocol::{
    FrameError, Limits, TokenCounts,
    engine::{Fault, FinishReason, FromEngine, Message, Sampling, ToEngine},
    read_frame_async, write_frame_async,
};
use tokio::{
    net::UnixStream,
    sync::{Notify, mpsc, watch},
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::console::EXPORT;

/// From the engine's start to a loaded model; under emulation libtorch alone takes seconds.
const LOAD_DEADLINE: Duration = Duration::from_secs(300);

/// Pause before the first restart; doubled for each start in a row that did not get as far as a loaded model.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
const RESTART_DOUBLINGS_MAX: u32 = 6;

/// A request is at most one start and one cancellation, and this many requests can be admitted.
const COMMANDS_MAX: usize = 2 * 4096;

/// Text that one token may stand for, bytes. Longer than any entry of the vocabularies in use.
const TOKEN_BYTES_MAX: usize = 1024;

/// A started child and our end of its socket.
pub struct EngineProcess {
    /// Frames of `cocoon_protocol::engine`.
    pub socket: UnixStream,
    /// Ends the child when dropped.
    pub guard: Box<dyn Send>,
}

/// Starts children.
pub trait Spawn: Send + Sync {
    /// Starts one.
    ///
    /// # Errors
    /// The kernel's.
    fn spawn(&self) -> io::Result<EngineProcess>;
}

/// What becomes of a request. The last event is `Finished` or `Failed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Text to append to the answer.
    Text(String),
    /// The request ended, and these are its tokens, within what was asked for.
    Finished(FinishReason, TokenCounts),
    /// The request failed and is not charged.
    Failed(Fault, String),
}

/// Where the child is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Not loaded yet; the reason for which an earlier child ended, if any.
    Starting(Option<String>),
    /// Serving; how long it took from the child's `main` to here.
    Loaded {
        /// Milliseconds.
        elapsed_ms: u64,
    },
}

/// The engine has no loaded model at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine is being restarted")]
pub struct Unavailable;

/// A handle to the task that owns the child.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    load: watch::Sender<Option<ToEngine>>,
    status: watch::Sender<Status>,
    restart: Notify,
}

#[derive(Default)]
struct State {
    commands: Option<mpsc::Sender<ToEngine>>,
    requests: HashMap<u64, Request>,
    last_id: u64,
    context_tokens_max: u64,
}

struct Request {
    events: mpsc::Sender<Event>,
    output_tokens_max: u64,
    text_bytes_left: usize,
}

/// A request in the engine. Dropping it cancels.
pub struct Running {
    id: u64,
    events: mpsc::Receiver<Event>,
    engine: Arc<Shared>,
}

impl Engine {
    /// Starts the child at once, so that its libraries are linked while the agent still mounts the model.
    pub fn start(spawn: Arc<dyn Spawn>) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            load: watch::Sender::new(None),
            status: watch::Sender::new(Status::Starting(None)),
            restart: Notify::new(),
        });
        tokio::spawn(supervise(Arc::clone(&shared), spawn));
        Self(shared)
    }

    /// Has every child, from now on, load this model first.
    pub fn load(&self, model_dir: &str, profile: cocoon_protocol::NumericProfile, limits: Limits) {
        self.0.lock().context_tokens_max = u64::from(limits.context_tokens_max);
        self.0.load.send_replace(Some(ToEngine::Load {
            model_dir: model_dir.into(),
            numeric_profile: profile,
            context_tokens_max: limits.context_tokens_max,
            requests_max: limits.requests_max,
        }));
    }

    /// Kills the child, as a crash would: what runs fails and is not charged.
    pub fn kill_child(&self) {
        self.0.restart.notify_waiters();
    }

    /// Follows the child's life.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.0.status.subscribe()
    }

    /// Starts a request.
    ///
    /// # Errors
    /// No model is loaded.
    pub fn generate(&self, messages: Vec<Message>, sampling: Sampling) -> Result<Running, Unavailable> {
        let mut state = self.0.lock();
        let commands = state.commands.clone().ok_or(Unavailable)?;
        let output_tokens_max = u64::from(sampling.output_tokens_max);
        // One event for each token and a few for the ends: an engine that sends more breaks the rules, so a
        // full queue is never the client's slowness.
        let (sender, events) = mpsc::channel(sampling.output_tokens_max as usize + 4);
        state.last_id += 1;
        let id = state.last_id;
        let generate = ToEngine::Generate {
            id,
            messages,
            sampling,
        };
        commands.try_send(generate).map_err(|_| Unavailable)?;
        let request = Request {
            events: sender,
            output_tokens_max,
            text_bytes_left: (output_tokens_max as usize + 1) * TOKEN_BYTES_MAX,
        };
        state.requests.insert(id, request);
        drop(state);
        let engine = Arc::clone(&self.0);
        Ok(Running { id, events, engine })
    }
}

impl Running {
    /// The next event. After the child's death: `Failed`.
    pub async fn next(&mut self) -> Event {
        let ended = || Event::Failed(Fault::Engine, "the engine ended during the request".into());
        self.events.recv().await.unwrap_or_else(ended)
    }

    /// Asks the engine to stop; it still sends its last event.
    pub fn cancel(&self) {
        let state = self.engine.lock();
        let wanted = state.requests.contains_key(&self.id);
        if let Some(commands) = state.commands.as_ref().filter(|_| wanted) {
            let _ = commands.try_send(ToEngine::Cancel { id: self.id });
        }
    }

    /// Ends the child, because it does not answer any more.
    pub fn give_up(&self) {
        // Only for the child that runs now: several requests give up at once, and the second must not end the
        // next child.
        self.engine.restart.notify_waiters();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn supervise(shared: Arc<Shared>, spawn: Arc<dyn Spawn>) {
    let mut failures = 0;
    loop {
        let reason = run_child(&shared, &*spawn).await;
        let served = {
            let mut state = shared.lock();
            // Dropping the senders fails the requests.
            state.requests.clear();
            state.commands.take().is_some()
        };
        failures = if served { 0 } else { failures + 1 };
        warn!(target: EXPORT, "the engine has to be restarted: {reason}");
        shared.status.send_replace(Status::Starting(Some(reason)));
        sleep(RESTART_PAUSE * 2u32.pow(failures.min(RESTART_DOUBLINGS_MAX))).await;
    }
}

/// One child's life; returns why it ended.
async fn run_child(shared: &Arc<Shared>, spawn: &dyn Spawn) -> String {
    let EngineProcess { socket, guard } = match spawn.spawn() {
        Ok(process) => process,
        Err(error) => return format!("it cannot be started ({})", error.kind()),
    };
    let (mut reader, mut writer) = socket.into_split();
    let load = {
        let mut load = shared.load.subscribe();
        let known = load.wait_for(Option::is_some).await;
        known.map_or(None, |load| load.clone())
    };
    let Some(load) = load else {
        return "nothing to load".into();
    };
    let loaded = async {
        write_frame_async(&mut writer, &load).await?;
        read_frame_async::<FromEngine>(&mut reader).await
    };
    let elapsed_ms = match timeout(LOAD_DEADLINE, loaded).await {
        Ok(Ok(FromEngine::Loaded { elapsed_ms })) => elapsed_ms,
        Ok(Ok(FromEngine::LoadFailed { reason })) => return format!("the model cannot be loaded: {reason}"),
        Ok(Ok(_)) => return "it did not begin with a loaded model".into(),
        Ok(Err(error)) => return format!("while loading the model: {error}"),
        Err(_) => return format!("the model was not loaded within {} s", LOAD_DEADLINE.as_secs()),
    };
    info!(target: EXPORT, "the engine loaded the model in {elapsed_ms} ms");
    let (sender, mut commands) = mpsc::channel(COMMANDS_MAX);
    // Made before the first request can give up, so that none is missed.
    let restart = shared.restart.notified();
    shared.lock().commands = Some(sender);
    shared.status.send_replace(Status::Loaded { elapsed_ms });
    let write = async {
        while let Some(command) = commands.recv().await {
            write_frame_async(&mut writer, &command).await?;
        }
        Ok::<_, FrameError>(())
    };
    let read = async {
        loop {
            match read_frame_async(&mut reader).await {
                Ok(message) => shared.lock().deliver(message)?,
                Err(error) => return Err::<(), _>(error.to_string()),
            }
        }
    };
    let reason = tokio::select! {
        result = read => result.err().unwrap_or_default(),
        result = write => format!("writing to it: {result:?}"),
        () = restart => "it stopped answering".into(),
    };
    drop(guard);
    reason
}

impl State {
    /// Passes a message on, or says which rule it breaks.
    fn deliver(&mut self, message: FromEngine) -> Result<(), String> {
        let (id, event) = match message {
            FromEngine::Loaded { .. } | FromEngine::LoadFailed { .. } => return Err("it loaded twice".into()),
            FromEngine::Started { id, input_tokens } => {
                let known = self.requests.contains_key(&id);
                let within = input_tokens <= self.context_tokens_max;
                return if known && within {
                    Ok(())
                } else {
                    Err(rule("starts"))
                };
            }
            FromEngine::Text {
                id,
                text,
                output_tokens,
            } => {
                let request = self
                    .requests
                    .get_mut(&id)
                    .ok_or_else(|| rule("unknown requests"))?;
                request.text_bytes_left = request
                    .text_bytes_left
                    .checked_sub(text.len())
                    .filter(|_| output_tokens <= request.output_tokens_max)
                    .ok_or_else(|| rule("text"))?;
                (id, Event::Text(text))
            }
            FromEngine::Finished { id, reason, tokens } => {
                let request = self.requests.get(&id).ok_or_else(|| rule("unknown requests"))?;
                let within =
                    tokens.input <= self.context_tokens_max && tokens.output <= request.output_tokens_max;
                if !within {
                    return Err(rule("token counts"));
                }
                (id, Event::Finished(reason, tokens))
            }
            FromEngine::Failed { id, fault, reason } => (id, Event::Failed(fault, reason)),
        };
        let last = !matches!(event, Event::Text(_));
        let request = self.requests.get(&id).ok_or_else(|| rule("unknown requests"))?;
        if let Err(mpsc::error::TrySendError::Full(_)) = request.events.try_send(event) {
            return Err(rule("the number of messages"));
        }
        if last {
            self.requests.remove(&id);
        }
        Ok(())
    }
}

fn rule(about: &str) -> String {
    format!("it broke the rule about {about}")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn state() -> (State, mpsc::Receiver<Event>) {
        let (events, receiver) = mpsc::channel(4);
        let request = Request {
            events,
            output_tokens_max: 2,
            text_bytes_left: 8,
        };
        let state = State {
            requests: HashMap::from([(1, request)]),
            context_tokens_max: 16,
            ..State::default()
        };
        (state, receiver)
    }

    fn finished(input: u64, output: u64) -> FromEngine {
        FromEngine::Finished {
            id: 1,
            reason: FinishReason::Stop,
            tokens: TokenCounts { input, output },
        }
    }

    fn text(id: u64, text: &str, output_tokens: u64) -> FromEngine {
        FromEngine::Text {
            id,
            text: text.into(),
            output_tokens,
        }
    }

    #[test]
    fn counts_beyond_what_was_asked_are_refused() {
        for lie in [
            finished(17, 1),
            finished(1, 3),
            text(1, "x", 3),
            text(1, "too long a text", 1),
        ] {
            let (mut state, _events) = state();
            assert!(state.deliver(lie.clone()).is_err(), "{lie:?}");
        }
        let (mut state, mut events) = state();
        state.deliver(finished(16, 2)).unwrap();
        assert!(matches!(events.try_recv(), Ok(Event::Finished(..))));
    }

    #[test]
    fn unknown_and_finished_requests_are_refused() {
        let (mut state, _events) = state();
        assert!(state.deliver(text(2, "x", 1)).is_err());
        state.deliver(finished(1, 1)).unwrap();
        assert!(state.deliver(finished(1, 1)).is_err());
    }

    /// Loads, then answers `Finished` to whoever asks for one token and nothing to the others.
    #[derive(Default)]
    struct Mute {
        starts: AtomicU32,
    }

    impl Spawn for Mute {
        fn spawn(&self) -> io::Result<EngineProcess> {
            self.starts.fetch_add(1, Ordering::SeqCst);
            let (socket, mut theirs) = UnixStream::pair()?;
            tokio::spawn(async move {
                while let Ok(message) = read_frame_async(&mut theirs).await {
                    let reply = match message {
                        ToEngine::Load { .. } => FromEngine::Loaded { elapsed_ms: 1 },
                        ToEngine::Generate { id, sampling, .. } if sampling.output_tokens_max == 1 => {
                            FromEngine::Finished {
                                id,
                                reason: FinishReason::Stop,
                                tokens: TokenCounts { input: 1, output: 1 },
                            }
                        }
                        _ => continue,
                    };
                    write_frame_async(&mut theirs, &reply).await.unwrap();
                }
            });
            Ok(EngineProcess {
                socket,
                guard: Box::new(()),
            })
        }
    }

    #[tokio::test]
    async fn two_requests_that_give_up_at_once_end_one_child_and_not_the_next() {
        let mute = Arc::new(Mute::default());
        let engine = Engine::start(Arc::clone(&mute) as Arc<dyn Spawn>);
        let limits = Limits {
            context_tokens_max: 16,
            output_tokens_max: 4,
            requests_max: 4,
        };
        engine.load("/model", cocoon_protocol::NumericProfile::F32, limits);
        let mut status = engine.status();
        let ask = |output_tokens_max| {
            let sampling = Sampling {
                output_tokens_max,
                temperature: 0.0,
                top_p: 1.0,
                seed: 0,
                stop: vec![],
            };
            engine.generate(vec![], sampling)
        };
        let loaded = |status: &Status| matches!(status, Status::Loaded { .. });
        status.wait_for(loaded).await.unwrap();
        let (mut one, mut two) = (ask(2).unwrap(), ask(2).unwrap());
        one.give_up();
        two.give_up();
        assert!(matches!(one.next().await, Event::Failed(Fault::Engine, _)));
        assert!(matches!(two.next().await, Event::Failed(Fault::Engine, _)));

        status.wait_for(|status| !loaded(status)).await.unwrap();
        status.wait_for(loaded).await.unwrap();
        assert!(matches!(ask(1).unwrap().next().await, Event::Finished(..)));
        assert_eq!(mute.starts.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_flood_of_messages_is_refused_and_never_waited_for() {
        let (mut state, _events) = state();
        let flood = (0..5).map(|_| state.deliver(text(1, "", 1))).collect::<Vec<_>>();
        assert!(flood[..4].iter().all(Result::is_ok));
        assert!(flood[4].is_err());
    }
}
