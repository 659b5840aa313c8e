//! The engine, which does as it is told.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use cocoon_agent::engine::{EngineProcess, Spawn};
use cocoon_protocol::{
    TokenCounts,
    engine::{Fault, FinishReason, FromEngine, ToEngine},
    read_frame_async, write_frame_async,
};
use tokio::{net::UnixStream, sync::Notify, task::JoinHandle, time::sleep};

/// An engine that does what the last message says: `count N`, `die`, `hang`, `refuse`, and `wait`, which ends once
/// `go` is told.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) starts: AtomicU64,
    /// The model is loaded only once `go` is told.
    pub(crate) loads_slowly: AtomicBool,
    pub(crate) go: Arc<Notify>,
}

pub(crate) const INPUT_TOKENS: u64 = 7;

impl Spawn for Script {
    fn spawn(&self) -> io::Result<EngineProcess> {
        self.starts.fetch_add(1, Ordering::SeqCst);
        let (socket, theirs) = UnixStream::pair()?;
        Ok(EngineProcess {
            socket,
            guard: Box::new(Abort(tokio::spawn(play(
                theirs,
                Arc::clone(&self.go),
                self.loads_slowly.load(Ordering::SeqCst),
            )))),
        })
    }
}

struct Abort(JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn play(mut socket: UnixStream, go: Arc<Notify>, loads_slowly: bool) {
    while let Ok(message) = read_frame_async(&mut socket).await {
        let replies = match message {
            ToEngine::Load { .. } => {
                if loads_slowly {
                    go.notified().await;
                }
                vec![FromEngine::Loaded { elapsed_ms: 5 }]
            }
            ToEngine::Cancel { id } => vec![finished(id, FinishReason::Cancelled, 1)],
            ToEngine::Generate { id, messages, .. } => {
                let line = &messages.last().unwrap().content;
                let text = |n: u64| FromEngine::Text {
                    id,
                    text: format!("t{n} "),
                    output_tokens: n,
                };
                let started = FromEngine::Started {
                    id,
                    input_tokens: INPUT_TOKENS,
                };
                match line.split_once(' ').unwrap_or((line, "")) {
                    ("count", n) => {
                        let n = n.parse().unwrap();
                        let texts = (1..=n).map(text);
                        let all = std::iter::once(started).chain(texts);
                        all.chain([finished(id, FinishReason::Stop, n)]).collect()
                    }
                    ("refuse", _) => vec![FromEngine::Failed {
                        id,
                        fault: Fault::Context,
                        reason: "too long".into(),
                    }],
                    ("hang", _) => vec![started, text(1)],
                    ("wait", _) => {
                        write_frame_async(&mut socket, &started).await.unwrap();
                        write_frame_async(&mut socket, &text(1)).await.unwrap();
                        go.notified().await;
                        vec![text(2), finished(id, FinishReason::Stop, 2)]
                    }
                    _ => {
                        write_frame_async(&mut socket, &started).await.unwrap();
                        write_frame_async(&mut socket, &text(1)).await.unwrap();
                        sleep(Duration::from_millis(100)).await;
                        return;
                    }
                }
            }
        };
        for reply in replies {
            write_frame_async(&mut socket, &reply).await.unwrap();
        }
    }
}

fn finished(id: u64, reason: FinishReason, output: u64) -> FromEngine {
    FromEngine::Finished {
        id,
        reason,
        tokens: TokenCounts {
            input: INPUT_TOKENS,
            output,
        },
    }
}
