//! Fresh evidence for whoever asks: requests that come while a quote is being made share the next one.
//!
//! Strangers may ask, so everything is bounded: how many wait, how long, and how many quotes are made in a
//! second. The quote is made off the event loop (by the kernel, the quoting enclave, or the host), so that
//! answers in flight go on; see [`cocoon_evidence::FreshTree`] for how one quote answers many.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cocoon_evidence::{FRESH_REQUESTS_MAX, FreshLeaf, FreshTree};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use crate::attest::{AttestError, Attestor};

/// Requests that wait for the next quote, as many as it can answer; one beyond is told to come again.
const WAITING_MAX: usize = FRESH_REQUESTS_MAX;

/// From a request to its answer. A platform that is slower is of no use to clients, who give up as well.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// For one quote; what is left of it is waited for by nobody.
const QUOTE_DEADLINE: Duration = Duration::from_secs(8);

/// Quotes are made this far apart, but for [`QUOTES_AT_ONCE`]: the quoting enclave serves all guests of the
/// machine.
const QUOTE_INTERVAL: Duration = Duration::from_millis(100);
const QUOTES_AT_ONCE: u32 = 16;

/// Makes fresh evidence.
pub struct FreshQuotes {
    attestor: Arc<Attestor>,
    places: mpsc::Sender<Request>,
    waiting: Mutex<mpsc::Receiver<Request>>,
}

/// A [`cocoon_evidence::FreshEvidence`], encoded, one part after the other. The one in the middle, the bundle, is the
/// same memory for all who share a quote.
pub type FreshParts = [Bytes; 3];

struct Request {
    leaf: FreshLeaf,
    answer: oneshot::Sender<Result<FreshParts, AttestError>>,
}

impl FreshQuotes {
    /// Asks `attestor` for the quotes.
    pub fn new(attestor: Arc<Attestor>) -> Self {
        let (places, waiting) = mpsc::channel(WAITING_MAX);
        Self {
            attestor,
            places,
            waiting: Mutex::new(waiting),
        }
    }

    /// The answer to one request, once [`Self::make`] has made it.
    ///
    /// # Errors
    /// Too many wait, the platform failed, or it took too long.
    pub async fn answer(&self, leaf: FreshLeaf) -> Result<FreshParts, AttestError> {
        let (answer, made) = oneshot::channel();
        self.places
            .try_send(Request { leaf, answer })
            .map_err(|_| AttestError::Busy)?;
        match timeout(REQUEST_DEADLINE, made).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(AttestError::Late),
        }
    }

    /// Answers requests, for ever.
    pub async fn make(&self) {
        let mut waiting = self.waiting.lock().await;
        let mut rate = Rate::default();
        loop {
            // Those who come before it is time for the next quote share it.
            let Some(first) = waiting.recv().await else {
                return;
            };
            sleep_until(rate.next()).await;
            let mut batch = vec![first];
            while batch.len() < FRESH_REQUESTS_MAX
                && let Ok(request) = waiting.try_recv()
            {
                batch.push(request);
            }
            // Who has gone needs no quote.
            batch.retain(|request| !request.answer.is_closed());
            self.answer_all(batch, &mut rate).await;
        }
    }

    async fn answer_all(&self, batch: Vec<Request>, rate: &mut Rate) {
        let leaves: Vec<_> = batch.iter().map(|request| request.leaf).collect();
        let Ok(tree) = FreshTree::new(&leaves) else {
            return;
        };
        rate.take();
        let deadline = Instant::now() + QUOTE_DEADLINE;
        let made = timeout_at(deadline, self.attestor.evidence(tree.report_data())).await;
        let made = made.unwrap_or(Err(AttestError::Late));
        let made = made.map(|bundle| Bytes::from(bundle.encode()));
        for (position, request) in batch.into_iter().enumerate() {
            let answer = made.clone().map(|bundle| {
                let (before, behind) = tree.encode_around(position);
                [Bytes::copy_from_slice(&before), bundle, behind.into()]
            });
            // Who has gone meanwhile takes none.
            let _ = request.answer.send(answer);
        }
    }
}

/// A virtual clock that each quote sets forward by an interval, and that may run ahead by a few.
#[derive(Default)]
struct Rate {
    booked: Option<Instant>,
}

impl Rate {
    /// When the next quote may be made.
    fn next(&self) -> Instant {
        let ahead = QUOTE_INTERVAL * (QUOTES_AT_ONCE - 1);
        self.booked
            .and_then(|booked| booked.checked_sub(ahead))
            .unwrap_or_else(Instant::now)
    }

    fn take(&mut self) {
        let now = Instant::now();
        let from = self.booked.map_or(now, |booked| booked.max(now));
        self.booked = Some(from + QUOTE_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use cocoon_evidence::{
        Digest32, Digest48, EventKind, FreshBinding, FreshEvidence, Platform as Evidence, ReportData, Role,
    };
    use tokio::{sync::Semaphore, task::JoinSet, time::advance};

    use super::*;
    use crate::{
        attest::Measurer,
        platform::{Platform, PlatformError},
        transport::BoxFuture,
    };

    /// A platform that counts quotes, and makes each only when it is let to; `broken` ones fail.
    struct Gated {
        quotes: AtomicU64,
        gate: Semaphore,
        broken: bool,
    }

    impl Platform for Gated {
        fn extend(&self, _: Digest48) -> BoxFuture<'_, Result<(), PlatformError>> {
            Box::pin(async { Ok(()) })
        }

        fn quote(&self, data: ReportData) -> BoxFuture<'_, Result<Evidence, PlatformError>> {
            Box::pin(async move {
                self.quotes.fetch_add(1, Ordering::SeqCst);
                self.gate.acquire().await.unwrap().forget();
                if self.broken {
                    return Err(PlatformError {
                        attempt: "quoting",
                        cause: "no quoting enclave".into(),
                    });
                }
                Ok(Evidence::Tdx {
                    quote: data.0.to_vec(),
                })
            })
        }
    }

    struct World {
        platform: Arc<Gated>,
        quotes: Arc<FreshQuotes>,
        _maker: JoinSet<()>,
    }

    async fn world(open: usize, broken: bool) -> World {
        let platform = Arc::new(Gated {
            quotes: AtomicU64::new(0),
            gate: Semaphore::new(open),
            broken,
        });
        let mut measurer = Measurer::new(Arc::clone(&platform) as Arc<dyn Platform>);
        for kind in &EventKind::ORDER[..4] {
            measurer.record(*kind, vec![]).await.unwrap();
        }
        let quotes = Arc::new(FreshQuotes::new(Arc::new(measurer.finish().await.unwrap())));
        let mut maker = JoinSet::new();
        let make = Arc::clone(&quotes);
        maker.spawn(async move { make.make().await });
        World {
            platform,
            quotes,
            _maker: maker,
        }
    }

    impl World {
        fn made(&self) -> u64 {
            self.platform.quotes.load(Ordering::SeqCst)
        }

        fn ask(&self, asked: &mut JoinSet<Result<(FreshLeaf, FreshParts), AttestError>>, number: u64) {
            let (quotes, leaf) = (Arc::clone(&self.quotes), leaf(number));
            asked.spawn(async move { quotes.answer(leaf).await.map(|fresh| (leaf, fresh)) });
        }

        /// Lets every task run until it waits.
        async fn settle(&self) {
            for _ in 0..4 * WAITING_MAX {
                tokio::task::yield_now().await;
            }
        }
    }

    fn leaf(number: u64) -> FreshLeaf {
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&number.to_le_bytes());
        let binding = FreshBinding {
            nonce: &nonce,
            exporter: &[1; 32],
            certificate: Digest32::ZERO,
            role: Role::Inference,
            log: Digest48::ZERO,
        };
        binding.leaf()
    }

    fn is_bound((leaf, parts): &(FreshLeaf, FreshParts)) -> bool {
        let fresh = FreshEvidence::decode(&parts.concat()).unwrap();
        matches!(&fresh.bundle.platform, Evidence::Tdx { quote }
            if quote.as_slice() == fresh.report_data(leaf).0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_requests_shares_quotes_and_each_answer_is_its_own() {
        let world = world(0, false).await;
        let mut asked = JoinSet::new();
        world.ask(&mut asked, 0);
        world.settle().await;
        for number in 1..500 {
            world.ask(&mut asked, number);
        }
        world.settle().await;
        assert_eq!(world.made(), 1);
        world.platform.gate.add_permits(10);
        let answers = asked.join_all().await;
        assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(is_bound)));
        assert_eq!((answers.len(), world.made()), (500, 2));
        let bundles = answers.iter().flatten().map(|(_, parts)| parts[1].as_ptr());
        let bundles: std::collections::HashSet<_> = bundles.collect();
        assert_eq!(bundles.len(), 2, "one in memory for each quote");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_beyond_the_bound_is_told_to_come_again() {
        let world = world(0, false).await;
        let mut asked = JoinSet::new();
        world.ask(&mut asked, 0);
        world.settle().await;
        for number in 0..WAITING_MAX as u64 {
            world.ask(&mut asked, number);
        }
        world.settle().await;
        assert!(matches!(
            world.quotes.answer(leaf(9)).await,
            Err(AttestError::Busy)
        ));
        world.platform.gate.add_permits(2);
        assert!(asked.join_all().await.iter().all(Result::is_ok));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_quote_is_an_error_for_all_who_share_it_and_the_next_is_tried() {
        let world = world(usize::MAX >> 4, true).await;
        let mut asked = JoinSet::new();
        for number in 0..20 {
            world.ask(&mut asked, number);
        }
        let answers = asked.join_all().await;
        assert!(
            answers
                .iter()
                .all(|answer| matches!(answer, Err(AttestError::Platform(_))))
        );
        assert_eq!((answers.len(), world.made()), (20, 1));
        let later = world.quotes.answer(leaf(9)).await;
        assert!(matches!(later, Err(AttestError::Platform(_))));
        assert_eq!(world.made(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_platform_that_hangs_is_waited_for_in_bounds_and_does_not_hold_up_the_next() {
        let world = world(0, false).await;
        assert!(matches!(
            world.quotes.answer(leaf(1)).await,
            Err(AttestError::Late)
        ));
        world.platform.gate.add_permits(1);
        assert!(world.quotes.answer(leaf(2)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_whose_clients_left_are_not_quoted() {
        let world = world(0, false).await;
        let mut asked = JoinSet::new();
        world.ask(&mut asked, 0);
        world.settle().await;
        for number in 1..9 {
            world.ask(&mut asked, number);
        }
        world.settle().await;
        asked.shutdown().await;
        world.platform.gate.add_permits(1);
        world.settle().await;
        assert_eq!(world.made(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_after_the_other_gets_no_more_quotes_than_the_rate_allows() {
        let world = world(usize::MAX >> 4, false).await;
        let started = Instant::now();
        for number in 0..u64::from(QUOTES_AT_ONCE) + 10 {
            assert!(world.quotes.answer(leaf(number)).await.is_ok());
        }
        assert_eq!(started.elapsed().as_millis() / QUOTE_INTERVAL.as_millis(), 10);
        advance(QUOTE_INTERVAL * QUOTES_AT_ONCE).await;
        let rested = Instant::now();
        assert!(world.quotes.answer(leaf(99)).await.is_ok());
        assert!(rested.elapsed() < QUOTE_INTERVAL);
    }
}
