//! The agent's side of `cocoon_protocol::host`: one request and one answer at a time, over a connection that
//! is made anew whenever it fails.
//!
//! Every request may be repeated without harm (records carry numbers), so a failed exchange is simply tried
//! again until its deadline. The host is not trusted: it can refuse, delay and lie about credit, no more.

use std::{sync::Arc, time::Duration};

use cocoon_protocol::{
    FrameError,
    host::{FromHost, HOST_PORT, ToHost},
    read_frame_async, write_frame_async,
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::transport::{BoxStream, Dial};

/// One connect, write and read. Longer than a slow disk takes to make a record durable.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(10);

/// Between attempts; the launcher may not be listening yet, or be restarting.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Why the host could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No answer until the deadline, however often it was tried.
    #[error("the host did not answer within {deadline_ms} ms; last attempt: {last}")]
    Deadline {
        /// How long was waited.
        deadline_ms: u128,
        /// What the last attempt met.
        last: String,
    },
    /// The host answered that it cannot.
    #[error("the host refused: {reason:?}")]
    Refused {
        /// The host's words.
        reason: String,
    },
    /// An answer to another question.
    #[error("the host answered something else than was asked")]
    Unexpected,
}

/// A connection to the host's service port.
pub struct HostClient {
    dial: Arc<dyn Dial>,
    connection: Mutex<Option<BoxStream>>,
}

impl HostClient {
    /// Connects on first use.
    pub fn new(dial: Arc<dyn Dial>) -> Self {
        Self {
            dial,
            connection: Mutex::new(None),
        }
    }

    /// Sends `request` and reads the answer, trying again until `deadline` has passed.
    ///
    /// # Errors
    /// See [`HostError`].
    pub async fn call(&self, request: &ToHost, deadline: Duration) -> Result<FromHost, HostError> {
        let end = Instant::now() + deadline;
        let mut last = String::from("none finished");
        loop {
            match timeout_at(end, self.attempt(request)).await {
                Ok(Ok(FromHost::Failed { reason })) => return Err(HostError::Refused { reason }),
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => last = error,
                Err(_) => {}
            }
            if Instant::now() + RETRY_PAUSE >= end {
                let deadline_ms = deadline.as_millis();
                return Err(HostError::Deadline { deadline_ms, last });
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// [`Self::call`] where only [`FromHost::Ok`] is expected.
    ///
    /// # Errors
    /// See [`HostError`].
    pub async fn tell(&self, request: &ToHost, deadline: Duration) -> Result<(), HostError> {
        match self.call(request, deadline).await? {
            FromHost::Ok => Ok(()),
            _ => Err(HostError::Unexpected),
        }
    }

    /// The connection is taken out while in use, so that a cancelled or failed exchange leaves none behind.
    async fn attempt(&self, request: &ToHost) -> Result<FromHost, String> {
        let mut slot = self.connection.lock().await;
        let held = slot.take();
        let exchange = async {
            let mut stream = match held {
                Some(stream) => stream,
                None => self
                    .dial
                    .dial(HOST_PORT)
                    .await
                    .map_err(|error| format!("connecting: {}", error.kind()))?,
            };
            let answer = exchange(&mut stream, request)
                .await
                .map_err(|error| error.to_string())?;
            Ok::<_, String>((stream, answer))
        };
        let (stream, answer) = timeout(ATTEMPT_DEADLINE, exchange)
            .await
            .unwrap_or_else(|_| Err("no answer in time".into()))?;
        *slot = Some(stream);
        Ok(answer)
    }
}

async fn exchange(stream: &mut BoxStream, request: &ToHost) -> Result<FromHost, FrameError> {
    write_frame_async(stream, request).await?;
    read_frame_async(stream).await
}
