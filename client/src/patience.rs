//! How long an answer is waited for, part by part.
//!
//! Text is what counts, not bytes: a stream is padded all the time, and a node can send a byte a second for ever.

use std::future::Future;

use tokio::time::{Duration, Instant, timeout_at};

use crate::{Deadlines, ExchangeError, Step};

/// The time that is left for one answer.
#[derive(Debug)]
pub(crate) struct Patience {
    deadlines: Deadlines,
    started: Instant,
    waiting_for: Step,
    until: Instant,
    /// Since when nothing is waited for.
    paused: Option<Instant>,
}

impl Patience {
    /// For an answer that is streamed; the request leaves now.
    pub(crate) fn for_stream(deadlines: &Deadlines) -> Self {
        Self::new(deadlines, Step::FirstText)
    }

    /// For one in one piece: nothing of it comes before all of it.
    pub(crate) fn for_whole(deadlines: &Deadlines) -> Self {
        Self::new(deadlines, Step::Chat)
    }

    fn new(deadlines: &Deadlines, waiting_for: Step) -> Self {
        let started = Instant::now();
        let mut patience = Self {
            deadlines: *deadlines,
            started,
            waiting_for,
            until: started,
            paused: None,
        };
        patience.until = started + patience.limit();
        patience
    }

    /// When the request left.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Text came, and was handed on.
    pub(crate) fn text_came(&mut self) {
        self.waiting_for = Step::NextText;
        self.until = Instant::now() + self.limit();
    }

    /// Whoever reads the answer does not take more of it: that is not the node's time.
    pub(crate) fn pause(&mut self) {
        self.paused.get_or_insert_with(Instant::now);
    }

    /// Until when the node has time.
    pub(crate) fn resume(&mut self) -> Instant {
        if let Some(since) = self.paused.take() {
            self.until += since.elapsed();
        }
        self.until.min(self.end())
    }

    /// Part of an answer, or the error that it came too late.
    pub(crate) async fn wait<T>(&mut self, part: impl Future<Output = T>) -> Result<T, ExchangeError> {
        // Parts that are always there would never be interrupted.
        self.check()?;
        let until = self.resume();
        timeout_at(until, part).await.map_err(|_| self.stalled())
    }

    /// Whether there is time left.
    pub(crate) fn check(&mut self) -> Result<(), ExchangeError> {
        if Instant::now() < self.resume() {
            Ok(())
        } else {
            Err(self.stalled())
        }
    }

    /// The error that it took too long.
    pub(crate) fn stalled(&self) -> ExchangeError {
        let (step, limit) = if self.until < self.end() {
            (self.waiting_for, self.limit())
        } else {
            (Step::Chat, self.deadlines.answer)
        };
        ExchangeError::Stalled {
            step,
            after_ms: limit.as_millis(),
        }
    }

    fn limit(&self) -> Duration {
        match self.waiting_for {
            Step::FirstText => self.deadlines.first_text,
            Step::NextText => self.deadlines.next_text,
            _ => self.deadlines.answer,
        }
    }

    fn end(&self) -> Instant {
        self.started + self.deadlines.answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadlines(first_s: u64, next_s: u64, answer_s: u64) -> Deadlines {
        Deadlines {
            first_text: Duration::from_secs(first_s),
            next_text: Duration::from_secs(next_s),
            answer: Duration::from_secs(answer_s),
            ..Deadlines::default()
        }
    }

    fn step(checked: Result<(), ExchangeError>) -> Option<(Step, u128)> {
        match checked {
            Ok(()) => None,
            Err(ExchangeError::Stalled { step, after_ms }) => Some((step, after_ms)),
            Err(other) => panic!("{other}"),
        }
    }

    /// As if so much time had gone by.
    fn age(patience: &mut Patience, seconds: u64) {
        let age = Duration::from_secs(seconds);
        patience.started -= age;
        patience.until -= age;
        patience.paused = patience.paused.map(|since| since - age);
    }

    #[test]
    fn each_part_has_its_time_and_the_whole_has_one() {
        let mut patience = Patience::for_stream(&deadlines(30, 20, 100));
        age(&mut patience, 29);
        assert_eq!(step(patience.check()), None);
        age(&mut patience, 1);
        assert_eq!(step(patience.check()), Some((Step::FirstText, 30_000)));
        patience.text_came();
        age(&mut patience, 19);
        assert_eq!(step(patience.check()), None);
        age(&mut patience, 1);
        assert_eq!(step(patience.check()), Some((Step::NextText, 20_000)));
        for _ in 0..6 {
            patience.text_came();
            age(&mut patience, 10);
        }
        assert_eq!(step(patience.check()), Some((Step::Chat, 100_000)));
    }

    #[test]
    fn an_answer_in_one_piece_may_take_the_time_of_a_whole_one() {
        let mut patience = Patience::for_whole(&deadlines(30, 20, 100));
        age(&mut patience, 99);
        assert_eq!(step(patience.check()), None);
        age(&mut patience, 1);
        assert_eq!(step(patience.check()), Some((Step::Chat, 100_000)));
    }

    /// A node must not be blamed for a program that stopped reading; nor may that make an answer endless.
    #[test]
    fn a_reader_that_takes_nothing_uses_none_of_the_nodes_time() {
        let mut patience = Patience::for_stream(&deadlines(30, 20, 100));
        patience.text_came();
        age(&mut patience, 19);
        patience.pause();
        age(&mut patience, 50);
        assert_eq!(step(patience.check()), None);
        age(&mut patience, 1);
        assert_eq!(step(patience.check()), Some((Step::NextText, 20_000)));
        patience.text_came();
        patience.pause();
        age(&mut patience, 30);
        assert_eq!(step(patience.check()), Some((Step::Chat, 100_000)));
    }

    /// Such as padding, a chunk after the other.
    #[tokio::test]
    async fn parts_that_are_always_there_are_interrupted() {
        let mut patience = Patience::for_stream(&deadlines(30, 20, 100));
        assert!(patience.wait(async {}).await.is_ok());
        age(&mut patience, 30);
        assert!(patience.wait(async {}).await.is_err());
    }
}
