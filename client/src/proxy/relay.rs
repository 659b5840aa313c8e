//! An answer on its way through: every line of the stream is passed on as it comes and read along, so that the
//! receipt at its end can be checked. The line that holds the receipt stays here, because programs written for
//! OpenAI's API take every event for one with choices; `[DONE]` is passed on only if the receipt is true.

use std::{
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::{
    StatusCode,
    body::{Body as _, Incoming},
};
use tokio::time::{Sleep, sleep_until};

use super::{Shared, node::Lease, reply::error_object};
use crate::{
    ChatError, PaidSession,
    patience::Patience,
    stream::LINE_BYTES_MAX,
    transcript::{Transcript, TranscriptError},
};

/// A request that a node has taken.
pub(crate) struct Taken {
    pub(crate) shared: Arc<Shared>,
    pub(crate) lease: Lease,
    pub(crate) session: PaidSession,
    pub(crate) request: Bytes,
    pub(crate) output_tokens_max: u32,
    pub(crate) patience: Patience,
}

/// The answer to it, as server-sent events.
pub(crate) struct RelayedStream {
    taken: Option<Taken>,
    incoming: Incoming,
    /// Read already, to know that there is an answer.
    first: Option<Bytes>,
    line: Vec<u8>,
    /// The line before was kept back, and the empty one that ends its event is too.
    skip_blank: bool,
    transcript: Transcript,
    /// Goes off when the node's time is up.
    alarm: Pin<Box<Sleep>>,
    /// `[DONE]` was passed on.
    done: bool,
}

impl RelayedStream {
    pub(crate) fn new(mut taken: Taken, incoming: Incoming, first: Bytes) -> Self {
        Self {
            alarm: Box::pin(sleep_until(taken.patience.resume())),
            taken: Some(taken),
            incoming,
            first: Some(first),
            line: vec![],
            skip_blank: false,
            transcript: Transcript::default(),
            done: false,
        }
    }

    /// The next bytes for whoever asked.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if self.taken.is_none() {
                return Poll::Ready(None);
            }
            let data = match self.first.take() {
                Some(first) => first,
                None => match self.poll_data(cx) {
                    Poll::Ready(Ok(Some(data))) => data,
                    Poll::Ready(Ok(None)) if self.done => {
                        self.end();
                        return Poll::Ready(None);
                    }
                    Poll::Ready(Ok(None)) => return self.fail("the answer ended before its receipt"),
                    Poll::Ready(Err(_)) if self.done => {
                        self.taken = None;
                        return Poll::Ready(None);
                    }
                    Poll::Ready(Err(reason)) => return self.fail(&reason),
                    Poll::Pending => return Poll::Pending,
                },
            };
            let passed = self.take(&data);
            if !passed.is_empty() {
                if let Some(taken) = &mut self.taken {
                    taken.patience.pause();
                }
                return Poll::Ready(Some(passed.into()));
            }
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, String>> {
        let Some(taken) = &mut self.taken else {
            return Poll::Ready(Ok(None));
        };
        // Bytes that bring no text give the node no more time, however fast they come.
        if let Err(error) = taken.patience.check() {
            return Poll::Ready(Err(error.to_string()));
        }
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Ok(Some(frame.into_data().unwrap_or_default()))),
            Poll::Ready(Some(Err(_))) => Poll::Ready(Err("the connection to the node broke".into())),
            Poll::Ready(None) => Poll::Ready(Ok(None)),
            Poll::Pending => {
                self.alarm.as_mut().reset(taken.patience.resume());
                ready!(self.alarm.as_mut().poll(cx));
                Poll::Ready(Err(taken.patience.stalled().to_string()))
            }
        }
    }

    /// Takes bytes of the node, returns what is passed on.
    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut passed = Vec::with_capacity(bytes.len());
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.done || self.taken.is_none() {
                break;
            }
            self.line.extend_from_slice(piece);
            if self.line.len() > LINE_BYTES_MAX {
                passed.extend(self.break_off("a line of the answer is too long"));
            } else if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                passed.extend(self.take_line(line));
            }
        }
        passed
    }

    fn take_line(&mut self, line: Vec<u8>) -> Vec<u8> {
        let content = line.trim_ascii_end();
        if content.is_empty() && std::mem::take(&mut self.skip_blank) {
            return vec![];
        }
        let Some(data) = content.strip_prefix(b"data:") else {
            return line;
        };
        let data = data.trim_ascii_start();
        if data == b"[DONE]" {
            return self.conclude();
        }
        match self.transcript.take_chunk(data) {
            Ok(piece) if piece.only_receipt => {
                self.skip_blank = true;
                vec![]
            }
            Ok(piece) => {
                if let Some(taken) = self.taken.as_mut().filter(|_| !piece.text.is_empty()) {
                    taken.patience.text_came();
                }
                line
            }
            // The node's own words, in OpenAI's form already.
            Err(TranscriptError::Guest(reason)) => {
                self.give_up(&reason);
                [line.as_slice(), b"\n"].concat()
            }
            Err(TranscriptError::Malformed(reason)) => self.break_off(&reason),
        }
    }

    fn conclude(&mut self) -> Vec<u8> {
        let Some(taken) = &mut self.taken else {
            return vec![];
        };
        match taken.conclude(&self.transcript) {
            Ok(()) => {
                self.done = true;
                b"data: [DONE]\n\n".to_vec()
            }
            Err(reason) => self.break_off(&reason),
        }
    }

    fn fail(&mut self, reason: &str) -> Poll<Option<Bytes>> {
        Poll::Ready(Some(self.break_off(reason).into()))
    }

    /// Ends the stream with an error that OpenAI's clients raise.
    fn break_off(&mut self, reason: &str) -> Vec<u8> {
        self.give_up(reason);
        let error = error_object(StatusCode::BAD_GATEWAY, "answer_broken", reason);
        // The line feed first ends an event that may be open.
        format!("\ndata: {error}\n\n").into_bytes()
    }

    fn give_up(&mut self, reason: &str) {
        if let Some(taken) = self.taken.take() {
            taken.shared.metrics.failed.add(1);
            taken.lease.node().failed(crate::plain(reason, 400));
        }
    }

    /// The node's answer is over: its connection can be used again.
    fn end(&mut self) {
        if let Some(taken) = self.taken.take() {
            taken.lease.node().give_back(taken.session);
        }
    }
}

impl Drop for RelayedStream {
    fn drop(&mut self) {
        // Whoever asked went away; the node notices by its connection's end.
        if let Some(taken) = self.taken.take().filter(|_| !self.done) {
            taken.shared.metrics.cancelled.add(1);
        }
    }
}

impl Taken {
    /// Checks the receipt and keeps it.
    pub(crate) fn conclude(&mut self, transcript: &Transcript) -> Result<(), String> {
        let concluded = self
            .session
            .conclude(transcript, &self.request, self.output_tokens_max);
        let node = self.lease.node();
        match concluded {
            Ok(paid) => {
                let metrics = &self.shared.metrics;
                let tokens = paid.receipt.receipt.tokens;
                metrics.answered.add(1);
                metrics.tokens_in.add(tokens.input);
                metrics.tokens_out.add(tokens.output);
                metrics.spent_nano.add(paid.amount_nano);
                node.served(&self.session);
                self.shared.receipts.keep(node.endpoint(), paid);
                Ok(())
            }
            Err(error) => {
                let reason = error.to_string();
                if let ChatError::Receipt(fault) = &error {
                    self.shared.metrics.false_receipts.add(1);
                    node.distrust(format!("{reason}: {fault}"));
                }
                Err(reason)
            }
        }
    }
}
