//! From the engine's events to the client's answer.
//!
//! A task of its own drives each request to its end, whether the client stays or goes: what was generated is
//! charged and recorded even if nobody listens any more. The client's side only reads pieces from a queue.
//!
//! Streams go out in cells of few sizes on a fixed tick ([`crate::shape`]).
//!
//! No answer goes on for so long that its voucher could not be settled any more, or beyond the end of the guest: the
//! engine is told to end it in time, and a client that reads slowly is not waited for.
//!
//! If the engine fails in the middle, the stream carries an error in place of a receipt. Text that was already
//! delivered is then not charged.

use std::{
    io,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use cocoon_protocol::{
    ContentKey, SignedReceipt, TokenCounts,
    engine::{Fault, FinishReason},
};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{Interval, MissedTickBehavior, interval, timeout},
};

use crate::{
    body::Body,
    engine::{Event, Running},
    meter::{Finished, Reservation},
    openai::{Answer, ApiError, finish_reason},
    shape,
};

/// Pieces waiting for the client; a slower client holds up only itself.
const PIECES_MAX: usize = 16;
/// Encoded events that wait for their cell; more text than that stays in the queue of pieces.
const PENDING_BYTES_MAX: usize = 64 * 1024;
/// A client that takes nothing for this long has gone.
const CLIENT_DEADLINE: Duration = Duration::from_secs(30);
/// Between two events of one request, a cancelled one too: an engine looks at messages between two turns, and a
/// turn on a CPU is long. Shorter for cancellations, a client could end the engine for all by leaving.
const ENGINE_DEADLINE: Duration = Duration::from_secs(300);

/// A request on its way.
pub(crate) struct Job {
    pub(crate) running: Running,
    pub(crate) reservation: Reservation,
    pub(crate) request_id: String,
    pub(crate) request: Bytes,
}

/// The end of an answer.
pub(crate) struct End {
    reason: &'static str,
    tokens: TokenCounts,
    receipt: (SignedReceipt, ContentKey),
}

/// What the client's side reads. The last is `End` or `Failed`.
pub(crate) enum Piece {
    Text(String),
    End(Box<End>),
    Failed(ApiError),
}

/// Starts driving a request. `held` is given back when it is over.
pub(crate) fn start(job: Job, held: impl Send + 'static) -> mpsc::Receiver<Piece> {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    tokio::spawn(async move {
        drive(job, sender).await;
        drop(held);
    });
    receiver
}

async fn drive(mut job: Job, client: mpsc::Sender<Piece>) {
    let mut answer = String::new();
    let (mut cancelled, mut gone) = (false, false);
    let last = loop {
        let event = tokio::select! {
            event = timeout(ENGINE_DEADLINE, job.running.next()) => event,
            () = over(&client, &job.reservation), if !cancelled => {
                cancelled = true;
                job.running.cancel();
                continue;
            }
        };
        match event {
            Err(_) => {
                job.running.give_up();
                break failed(Fault::Engine, "the engine stopped answering");
            }
            Ok(Event::Text(text)) => {
                answer.push_str(&text);
                gone = gone
                    || tokio::select! {
                        biased;
                        taken = timeout(CLIENT_DEADLINE, client.send(Piece::Text(text))) => !matches!(taken, Ok(Ok(()))),
                        () = job.reservation.over() => true,
                    };
                if gone && !cancelled {
                    cancelled = true;
                    job.running.cancel();
                }
            }
            Ok(Event::Finished(reason, tokens)) => match settle(job, &answer, reason, tokens) {
                Some(end) => break Piece::End(Box::new(end)),
                None => return,
            },
            Ok(Event::Failed(fault, reason)) => break failed(fault, &reason),
        }
    };
    // Without all of its text an answer must not look complete: its receipt is over the whole.
    if !gone {
        let _ = timeout(CLIENT_DEADLINE, client.send(last)).await;
    }
}

/// Returns when there is no sense in generating any more.
async fn over(client: &mpsc::Sender<Piece>, reservation: &Reservation) {
    tokio::select! {
        () = client.closed() => {}
        () = reservation.over() => {}
    }
}

/// `None` if the answer was ended before the engine began: there is nothing to charge.
fn settle(job: Job, answer: &str, reason: FinishReason, tokens: TokenCounts) -> Option<End> {
    if tokens == TokenCounts::default() {
        return None;
    }
    let reason = finish_reason(reason);
    let finished = Finished {
        request_id: &job.request_id,
        request: &job.request,
        answer,
        reason,
    };
    let receipt = job.reservation.settle(tokens, &finished);
    let tokens = receipt.0.receipt.tokens;
    Some(End {
        reason,
        tokens,
        receipt,
    })
}

fn failed(fault: Fault, reason: &str) -> Piece {
    Piece::Failed(match fault {
        Fault::Client => ApiError::new(400, "request_refused", reason),
        // OpenAI's name for it.
        Fault::Context => ApiError::new(400, "context_length_exceeded", reason),
        Fault::Engine => ApiError::new(500, "engine_failed", reason),
    })
}

fn cut_short() -> ApiError {
    ApiError::new(500, "engine_failed", "the request ended without an answer")
}

/// Waits for the whole answer.
pub(crate) async fn collect(answer: &Answer, mut pieces: mpsc::Receiver<Piece>) -> Result<Value, ApiError> {
    let mut text = String::new();
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Text(more) => text.push_str(&more),
            Piece::End(end) => return Ok(answer.whole(&text, end.reason, end.tokens, &end.receipt)),
            Piece::Failed(error) => return Err(error),
        }
    }
    Err(cut_short())
}

/// Waits for the first piece, so that a request that fails at once still gets an HTTP status, then streams.
pub(crate) async fn stream(
    answer: Answer,
    mut pieces: mpsc::Receiver<Piece>,
    include_usage: bool,
) -> Result<Body, ApiError> {
    let first = match pieces.recv().await {
        Some(Piece::Failed(error)) => return Err(error),
        None => return Err(cut_short()),
        Some(piece) => piece,
    };
    let mut stream = Stream {
        pending: sse(&answer.first()).into_bytes(),
        answer,
        include_usage,
        pieces,
        left: Left::Pieces,
        tick: interval(shape::TICK),
    };
    // A client that was slow gets its next cells at the same distance, not in a burst that shows its backlog.
    stream.tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    stream.encode(first);
    Ok(Body::stream(stream))
}

/// Turns pieces into server-sent events, and these into cells.
pub(crate) struct Stream {
    answer: Answer,
    include_usage: bool,
    pieces: mpsc::Receiver<Piece>,
    pending: Vec<u8>,
    left: Left,
    tick: Interval,
}

/// What may still come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Pieces,
    Nothing,
    /// The pieces ended without an end: the body must not look complete.
    Broken,
}

impl Stream {
    fn encode(&mut self, piece: Piece) {
        let answer = &self.answer;
        if !matches!(piece, Piece::Text(_)) {
            self.left = Left::Nothing;
        }
        let events = match piece {
            Piece::Text(text) => sse(&answer.text(&text)),
            Piece::Failed(error) => sse(&error.body()),
            Piece::End(end) => {
                let usage = if self.include_usage {
                    sse(&answer.usage(end.tokens))
                } else {
                    String::new()
                };
                let (finish, receipt) = (
                    sse(&answer.finish(end.reason)),
                    sse(&answer.receipt(&end.receipt)),
                );
                format!("{finish}{usage}{receipt}data: [DONE]\n\n")
            }
        };
        self.pending.extend(events.into_bytes());
    }

    /// Takes what has come since the last cell.
    fn collect(&mut self, cx: &mut Context<'_>) {
        while self.left == Left::Pieces && self.pending.len() < PENDING_BYTES_MAX {
            match self.pieces.poll_recv(cx) {
                Poll::Ready(Some(piece)) => self.encode(piece),
                Poll::Ready(None) => self.left = Left::Broken,
                Poll::Pending => return,
            }
        }
    }

    pub(crate) fn poll_cell(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        self.collect(cx);
        match self.left {
            Left::Nothing if self.pending.is_empty() => return Poll::Ready(None),
            Left::Broken => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
            _ => {}
        }
        ready!(self.tick.poll_tick(cx));
        Poll::Ready(Some(Ok(shape::cell(&mut self.pending))))
    }
}

fn sse(value: &Value) -> String {
    format!("data: {value}\n\n")
}
