//! What shaping costs streams: how long a token waits for its cell, what is sent for a byte that was said, whether
//! tokens still come as fast as they are said, and what cells without text cost the agent.
//!
//! An agent always shapes, so nothing here switches it off. The engine says the time ([`CLOCK`]), so that each token
//! tells how long it took from there to here. The first one shows what that is without shaping: its cell leaves at
//! once. What would be sent without shaping is known from the bytes, because padding is comments of the event stream.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::{
    client::Client,
    node::{CLOCK, Child, Prompt},
    owners::Owners,
    tls,
};

/// Tokens in a second.
const PACES: [u64; 4] = [10, 50, 200, 1000];
/// The agent's launch document allows answers of 2048.
const PIECES_MAX: u64 = 2000;
/// That wait at the same time.
const WAITING: u32 = 256;

/// One row for each pace, then the streams that wait.
pub(crate) async fn measure(seconds: u64) -> Result<()> {
    let mut child = Child::start(WAITING as usize)?;
    child.look().await?;
    let tls = TlsConnector::from(tls::config()?);
    let mut client = Client::connect(child.socket(), &tls).await?;
    let owners = Owners::for_agent(client.agent_key().await?, WAITING as usize)?;
    bind(&mut client, &owners, 0).await?;
    println!("tokens/s    here  first token   median  95 of 100  bytes said     sent  sent/said");
    for pace in PACES {
        let prompt = Prompt {
            name: CLOCK.into(),
            pieces: (pace * seconds).clamp(1, PIECES_MAX),
            pause: Duration::from_secs(1) / u32::try_from(pace)?,
        };
        let cost = Cost::of(&client.follow(&prompt).await?);
        let all = cost.waits.len() as u64 == prompt.pieces;
        ensure!(all, "{} of {} tokens came", cost.waits.len(), prompt.pieces);
        cost.print();
    }
    let mut waiting = vec![];
    for number in 0..WAITING {
        let mut client = Client::connect(child.socket(), &tls).await?;
        bind(&mut client, &owners, number.into()).await?;
        waiting.push(client);
    }
    let before = child.look().await?;
    let span = Duration::from_secs(seconds);
    wait(waiting, span).await?;
    let taken_us = child.look().await?.processor_us - before.processor_us;
    let share = taken_us as f64 / span.as_micros() as f64 / f64::from(WAITING);
    println!(
        "a stream that waits takes {:.3} % of one processor",
        share * 100.0
    );
    Ok(())
}

async fn bind(client: &mut Client, owners: &Owners, number: u64) -> Result<()> {
    let (owner, grant) = owners.of(number);
    let refused = client.bind(owner, grant).await?;
    ensure!(refused.is_none(), "the agent refuses a grant");
    Ok(())
}

/// Each has one token in the middle of `span` and one at its end.
async fn wait(clients: Vec<Client>, span: Duration) -> Result<()> {
    let mut streams = JoinSet::new();
    for mut client in clients {
        let prompt = Prompt {
            name: CLOCK.into(),
            pieces: 2,
            pause: span / 2,
        };
        streams.spawn(async move { client.follow(&prompt).await });
    }
    while let Some(ended) = streams.join_next().await {
        ended.context("a stream's task")??;
    }
    Ok(())
}

/// Of one stream.
#[derive(Debug, Default, PartialEq)]
struct Cost {
    /// From the engine to here, for each token in order.
    waits: Vec<Duration>,
    /// When the first token was said, and the last.
    spoken: Option<(SystemTime, SystemTime)>,
    /// When they came.
    heard: Option<(SystemTime, SystemTime)>,
    /// Bytes of events.
    said: usize,
    /// All bytes.
    sent: usize,
}

impl Cost {
    fn of(came: &[(SystemTime, Bytes)]) -> Self {
        let mut cost = Self::default();
        let mut pending = vec![];
        for (at, part) in came {
            cost.sent += part.len();
            pending.extend_from_slice(part);
            while let Some(event) = take_event(&mut pending) {
                if event.starts_with(b":") {
                    continue;
                }
                cost.said += event.len();
                for stamp in stamps(&event) {
                    cost.spoken = Some((cost.spoken.map_or(stamp, |(first, _)| first), stamp));
                    cost.heard = Some((cost.heard.map_or(*at, |(first, _)| first), *at));
                    cost.waits.push(at.duration_since(stamp).unwrap_or_default());
                }
            }
        }
        cost
    }

    /// Tokens in a second, of all between the first and the last.
    fn pace(&self, span: Option<(SystemTime, SystemTime)>) -> f64 {
        let (first, last) = span.unwrap_or((UNIX_EPOCH, UNIX_EPOCH));
        let span_s = last.duration_since(first).unwrap_or_default().as_secs_f64();
        (self.waits.len() - 1) as f64 / span_s
    }

    fn print(&self) {
        let mut sorted = self.waits.clone();
        sorted.sort();
        let ms = |part: usize| sorted[(sorted.len() - 1) * part / 100].as_secs_f64() * 1e3;
        println!(
            "{:>8.0}  {:>6.0}  {:>8.1} ms  {:>3.1} ms  {:>6.1} ms  {:>10}  {:>7}  {:>9.2}",
            self.pace(self.spoken),
            self.pace(self.heard),
            self.waits[0].as_secs_f64() * 1e3,
            ms(50),
            ms(95),
            self.said,
            self.sent,
            self.sent as f64 / self.said as f64
        );
    }
}

/// The first event with the empty line that ends it, once that is there.
fn take_event(pending: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = pending.windows(2).position(|window| window == b"\n\n")?;
    Some(pending.drain(..end + 2).collect())
}

/// When the tokens of an event were said.
fn stamps(event: &[u8]) -> Vec<SystemTime> {
    let json = event.strip_prefix(b"data: ").unwrap_or_default();
    let event: Value = serde_json::from_slice(json).unwrap_or_default();
    let text = event["choices"][0]["delta"]["content"]
        .as_str()
        .unwrap_or_default();
    let nanoseconds = text.split_whitespace().filter_map(|word| word.parse().ok());
    nanoseconds
        .map(|ns| UNIX_EPOCH + Duration::from_nanos(ns))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(content: &str) -> String {
        format!(
            "data: {}\n\n",
            serde_json::json!({"choices": [{"delta": {"content": content}}]})
        )
    }

    fn at(ns: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(ns)
    }

    #[test]
    fn padding_is_sent_and_not_said_and_a_token_waits_for_the_end_of_its_event() {
        let (first, second) = (event("100 "), event("250 "));
        let (head, tail) = second.split_at(9);
        let came = [
            (at(110), Bytes::from(format!("{first}:    \n\n{head}"))),
            (at(300), Bytes::from(format!("{tail}data: [DONE]\n\n:  \n\n"))),
        ];
        let said = first.len() + second.len() + "data: [DONE]\n\n".len();
        let expected = Cost {
            waits: vec![Duration::from_nanos(10), Duration::from_nanos(50)],
            spoken: Some((at(100), at(250))),
            heard: Some((at(110), at(300))),
            said,
            sent: said + ":    \n\n:  \n\n".len(),
        };
        assert_eq!(Cost::of(&came), expected);
    }
}
