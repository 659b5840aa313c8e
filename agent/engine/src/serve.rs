//! The engine's side of its conversation with the agent. One thread reads frames into a bounded inbox; the
//! calling thread owns the model, takes turns and writes. An agent that does not read slows the engine down
//! and, after the stream's write deadline, ends it.
//!
//! Nothing is logged here: whatever goes through is content.

use std::{
    io::{Read, Write},
    path::Path,
    sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    thread,
    time::Instant,
};

use cocoon_protocol::{
    FrameError,
    engine::{FromEngine, ToEngine},
    read_frame, write_frame,
};

use crate::engine::{Engine, LoadError};

/// Messages that wait for the model's thread; the agent's writes wait behind them.
const INBOX_MESSAGES_MAX: usize = 64;

/// Why the engine ends otherwise than by the agent's wish.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The model cannot be loaded; the agent was told why.
    #[error("cannot load the model")]
    Load(#[source] LoadError),
    /// The agent sent what does not belong there.
    #[error("the agent broke the protocol: {0}")]
    Protocol(&'static str),
    /// The socket failed, or what came was no message.
    #[error("the connection to the agent failed")]
    Connection(#[source] FrameError),
}

type Incoming = Result<ToEngine, FrameError>;

/// Serves one agent until it closes its end. `started` is when the process started.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(
    reader: impl Read + Send + 'static,
    writer: &mut impl Write,
    started: Instant,
) -> Result<(), ServeError> {
    let (sender, inbox) = sync_channel(INBOX_MESSAGES_MAX);
    // It ends with the connection or, at its next message, with the inbox.
    thread::spawn(move || read_into(reader, &sender));
    wake_libtorch();
    match load(&inbox, writer, started)? {
        Some(engine) => run(engine, &inbox, writer),
        None => Ok(()),
    }
}

fn read_into(mut reader: impl Read, inbox: &SyncSender<Incoming>) {
    loop {
        let message = read_frame(&mut reader);
        let last = message.is_err();
        if inbox.send(message).is_err() || last {
            return;
        }
    }
}

/// libtorch sets itself up at the first matrix product; that is done while the agent still boots.
fn wake_libtorch() {
    let ones = || tch::Tensor::f_ones([16, 16], (tch::Kind::Float, tch::Device::Cpu));
    // If this fails, loading will, and will say so.
    let _ = ones().and_then(|a| a.f_matmul(&ones()?));
}

/// `None` if the agent closed before it asked for anything.
fn load(
    inbox: &Receiver<Incoming>,
    writer: &mut impl Write,
    started: Instant,
) -> Result<Option<Engine>, ServeError> {
    let Some(first) = received(inbox.recv().unwrap_or(Err(FrameError::Closed)))? else {
        return Ok(None);
    };
    let ToEngine::Load {
        model_dir,
        numeric_profile,
        context_tokens_max,
        requests_max,
    } = first
    else {
        return Err(ServeError::Protocol("its first message has to be load"));
    };
    match Engine::load(
        Path::new(&model_dir),
        numeric_profile,
        context_tokens_max,
        requests_max,
    ) {
        Ok(engine) => {
            let elapsed_ms = started.elapsed().as_millis() as u64;
            send(writer, &FromEngine::Loaded { elapsed_ms })?;
            Ok(Some(engine))
        }
        Err(error) => {
            send(
                writer,
                &FromEngine::LoadFailed {
                    reason: error.reason(),
                },
            )?;
            Err(ServeError::Load(error))
        }
    }
}

fn run(mut engine: Engine, inbox: &Receiver<Incoming>, writer: &mut impl Write) -> Result<(), ServeError> {
    loop {
        while let Some(message) = next(&engine, inbox) {
            let Some(message) = received(message)? else {
                return Ok(());
            };
            if let Some(event) = handle(&mut engine, message)? {
                send(writer, &event)?;
            }
        }
        for event in engine.step() {
            send(writer, &event)?;
        }
    }
}

/// The next message; waits for one only if there is nothing else to do.
fn next(engine: &Engine, inbox: &Receiver<Incoming>) -> Option<Incoming> {
    let closed = Err(FrameError::Closed);
    if engine.is_idle() {
        return Some(inbox.recv().unwrap_or(closed));
    }
    match inbox.try_recv() {
        Ok(message) => Some(message),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Disconnected) => Some(closed),
    }
}

fn handle(engine: &mut Engine, message: ToEngine) -> Result<Option<FromEngine>, ServeError> {
    match message {
        ToEngine::Load { .. } => Err(ServeError::Protocol("load was sent twice")),
        ToEngine::Generate { id, .. } if engine.is_running(id) => {
            Err(ServeError::Protocol("an id was used for two requests"))
        }
        ToEngine::Generate {
            id,
            messages,
            sampling,
        } => Ok(engine.start(id, &messages, sampling)),
        ToEngine::Cancel { id } => Ok(engine.cancel(id)),
    }
}

fn received(message: Incoming) -> Result<Option<ToEngine>, ServeError> {
    match message {
        Ok(message) => Ok(Some(message)),
        Err(FrameError::Closed) => Ok(None),
        Err(error) => Err(ServeError::Connection(error)),
    }
}

fn send(writer: &mut impl Write, event: &FromEngine) -> Result<(), ServeError> {
    write_frame(writer, event).map_err(ServeError::Connection)
}
