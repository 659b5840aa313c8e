//! When a voucher is settled, when it is tried again, and when it is given up.

mod restart;

use cocoon_protocol::{Prices, TokenCounts};
use tokio::{sync::Semaphore, task::JoinHandle};

use super::*;
use crate::journal::tests::record;

const PRICES: Prices = Prices {
    input_nano_per_kilotoken: 4_000_000_000,
    output_nano_per_kilotoken: 4_000_000_000,
};

const HOUR: Duration = Duration::from_secs(3600);

/// That of [`record`].
fn grant() -> Digest32 {
    record(1, 1).voucher.voucher.grant
}

/// That the chain showed it unpaid.
fn expiring(expires_s: u32) -> Seen {
    Seen {
        grant: grant(),
        expires_s,
        prices: PRICES,
        paid_nano: 0,
    }
}

/// A journal in a folder that lasts as long as it.
fn empty_journal() -> (tempfile::TempDir, SharedJournal) {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(&folder.path().join("journal"), |_| {}).unwrap();
    (folder, Arc::new(Mutex::new(journal)))
}

/// A chain that holds one grant, and fails so many times before it works.
#[derive(Clone)]
struct FakeChain(Arc<Mutex<FakeState>>);

struct FakeState {
    grant: Option<GrantState>,
    failures: u32,
    looks: u32,
    settled: Vec<u64>,
    /// A settlement waits for a permit of this.
    gate: Arc<Semaphore>,
}

impl FakeChain {
    fn new(failures: u32) -> Self {
        let grant = GrantState {
            agent_key: [0; 32],
            payout_address: AccountAddress(Digest32::ZERO),
            prices: PRICES,
            cap_nano: u64::MAX,
            expires_s: u32::MAX,
            served: TokenCounts::default(),
            paid_nano: 0,
        };
        Self(Arc::new(Mutex::new(FakeState {
            grant: Some(grant),
            failures,
            looks: 0,
            settled: vec![],
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        })))
    }

    fn change(&self, change: impl FnOnce(&mut GrantState)) {
        change(self.0.lock().unwrap().grant.as_mut().unwrap());
    }

    fn looks(&self) -> u32 {
        self.0.lock().unwrap().looks
    }

    fn settled(&self) -> Vec<u64> {
        self.0.lock().unwrap().settled.clone()
    }
}

impl Chain for FakeChain {
    async fn grant(&self, _: AccountAddress, _: Digest32) -> Result<Option<GrantState>, ChainError> {
        let mut state = self.0.lock().unwrap();
        state.looks += 1;
        Ok(state.grant)
    }

    async fn settle(&self, voucher: &SignedVoucher) -> Result<GrantState, ChainError> {
        let gate = self.0.lock().unwrap().gate.clone();
        gate.acquire().await.unwrap().forget();
        let mut state = self.0.lock().unwrap();
        if state.failures > 0 {
            state.failures -= 1;
            return Err(ChainError::Unreachable {
                tried: 1,
                last: "no answer".into(),
            });
        }
        let prices = state.grant.as_ref().unwrap().prices;
        let amount = prices.amount_nano(voucher.voucher.served).unwrap();
        state.settled.push(amount);
        let grant = state.grant.as_mut().unwrap();
        (grant.served, grant.paid_nano) = (voucher.voucher.served, amount);
        Ok(*grant)
    }
}

fn only_claim(settler: &Settler) -> Claim {
    let (_, mut claims) = settler.claims();
    assert_eq!(claims.len(), 1);
    claims.remove(0)
}

fn running(settler: &Settler, chain: &FakeChain, journal: &SharedJournal) -> JoinHandle<()> {
    let (settler, chain, journal) = (settler.clone(), chain.clone(), journal.clone());
    tokio::spawn(async move { settler.run(chain, journal).await })
}

async fn run_until(settler: &Settler, chain: &FakeChain, condition: impl Fn(&Settlement) -> bool) {
    let (_folder, journal) = empty_journal();
    run_noting_until(settler, chain, &journal, condition).await;
}

async fn run_noting_until(
    settler: &Settler,
    chain: &FakeChain,
    journal: &SharedJournal,
    condition: impl Fn(&Settlement) -> bool,
) {
    let running = running(settler, chain, journal);
    let reached = async {
        while !condition(&only_claim(settler).settlement) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let reached = timeout(Duration::from_secs(20), reached).await;
    assert!(reached.is_ok(), "still {:?}", only_claim(settler).settlement);
    running.abort();
    let _ = running.await;
}

fn is_settled(settlement: &Settlement) -> bool {
    *settlement == Settlement::Settled
}

#[tokio::test]
async fn many_records_of_a_grant_are_one_settlement_of_the_newest() {
    let settler = Settler::new(PRICES, Duration::from_millis(50));
    for number in [1, 3, 2] {
        settler.note(&record(1, number));
    }
    let chain = FakeChain::new(0);
    run_until(&settler, &chain, is_settled).await;
    let newest = PRICES.amount_nano(record(1, 3).voucher.voucher.served).unwrap();
    assert_eq!(chain.settled(), [newest]);
    assert_eq!(only_claim(&settler).settled_nano, newest);
}

#[tokio::test]
async fn a_chain_that_fails_is_tried_again_and_the_reason_is_told() {
    let mut settler = Settler::new(PRICES, Duration::ZERO);
    settler.retry_first = Duration::from_millis(100);
    settler.note(&record(1, 1));
    let chain = FakeChain::new(3);
    let failing = |settlement: &Settlement| matches!(settlement, Settlement::Failing { reason, attempts: 3 } if reason.contains("no answer"));
    run_until(&settler, &chain, failing).await;
    run_until(&settler, &chain, is_settled).await;
    assert_eq!(chain.settled().len(), 1);
}

#[tokio::test]
async fn a_grant_that_is_not_on_chain_is_said_and_nothing_sent() {
    let settler = Settler::new(PRICES, Duration::ZERO);
    settler.note(&record(1, 1));
    let chain = FakeChain::new(0);
    chain.0.lock().unwrap().grant = None;
    run_until(&settler, &chain, |settlement| {
        matches!(settlement, Settlement::Failing { reason, .. } if reason.contains("no such grant"))
    })
    .await;
    assert!(chain.settled().is_empty());
}

#[tokio::test]
async fn a_voucher_below_the_minimum_waits_for_the_next() {
    let chain = FakeChain::new(0);
    let nearly = PRICES.amount_nano(record(1, 1).voucher.voucher.served).unwrap() - 1;
    chain.0.lock().unwrap().grant.as_mut().unwrap().paid_nano = nearly;
    let settler = Settler::new(PRICES, Duration::ZERO);
    settler.note(&record(1, 1));
    run_until(&settler, &chain, |settlement| {
        matches!(settlement, Settlement::Waiting { raise_nano: 1, .. })
    })
    .await;
    assert!(chain.settled().is_empty());
    settler.note(&record(1, 1_000));
    run_until(&settler, &chain, is_settled).await;
    assert_eq!(chain.settled().len(), 1);
}

#[tokio::test]
async fn a_voucher_is_settled_before_its_grant_expires_whatever_the_delay() {
    let settler = Settler::new(PRICES, HOUR);
    let lead_s = SETTLEMENT_LEAD.as_secs();
    settler.learn(&expiring(u32::try_from(now_s() + lead_s).unwrap()));
    settler.note(&record(1, 1));
    run_until(&settler, &FakeChain::new(0), is_settled).await;
    // A minute before that, it still waits for later ones.
    let settler = Settler::new(PRICES, HOUR);
    settler.learn(&expiring(u32::try_from(now_s() + lead_s + 60).unwrap()));
    settler.note(&record(1, 1));
    let due = settler.next_due().unwrap();
    let now = Instant::now();
    assert!(due > now && due <= now + Duration::from_secs(60));
}

#[tokio::test]
async fn a_voucher_of_a_grant_at_former_prices_is_settled() {
    let cheaper = Prices {
        input_nano_per_kilotoken: 1,
        output_nano_per_kilotoken: 1,
    };
    let settler = Settler::new(cheaper, Duration::ZERO);
    settler.note(&record(1, 1));
    let chain = FakeChain::new(0);
    run_until(&settler, &chain, is_settled).await;
    let owed = PRICES.amount_nano(record(1, 1).voucher.voucher.served).unwrap();
    assert_eq!(chain.settled(), [owed]);
    assert_eq!(only_claim(&settler).served_nano, owed);
}

#[tokio::test]
async fn a_claim_on_an_expired_or_released_grant_is_closed_and_not_tried_for_ever() {
    let closed = |settlement: &Settlement| matches!(settlement, Settlement::Closed { .. });
    let expired = FakeChain::new(0);
    expired.change(|grant| grant.expires_s = 1_000);
    let released = FakeChain::new(0);
    released.0.lock().unwrap().grant = None;
    for chain in [expired, released] {
        let mut settler = Settler::new(PRICES, Duration::ZERO);
        settler.retry_first = Duration::from_millis(1);
        settler.note(&record(1, 1));
        run_until(&settler, &chain, closed).await;
        assert_eq!(settler.next_due(), None);
        assert!(chain.settled().is_empty());
    }
}

#[tokio::test]
async fn a_liteserver_that_is_behind_does_not_close_a_grant_that_has_not_expired() {
    let mut settler = Settler::new(PRICES, Duration::ZERO);
    settler.retry_first = Duration::from_millis(1);
    settler.learn(&expiring(u32::MAX));
    settler.note(&record(1, 1));
    let chain = FakeChain::new(0);
    let shown = chain.0.lock().unwrap().grant.take();
    run_until(
        &settler,
        &chain,
        |settlement| matches!(settlement, Settlement::Failing { attempts, .. } if *attempts > LOOKS_MAX),
    )
    .await;
    chain.0.lock().unwrap().grant = shown;
    run_until(&settler, &chain, is_settled).await;
    assert_eq!(chain.settled().len(), 1);
}

#[test]
fn only_looks_that_show_no_grant_count_towards_giving_it_up() {
    let settler = Settler::new(PRICES, Duration::ZERO);
    settler.note(&record(1, 1));
    let after = |outcome| {
        settler.conclude(&grant(), &record(1, 1).voucher, outcome);
        only_claim(&settler).settlement
    };
    for _ in 0..LOOKS_MAX {
        after(Outcome::Failed("no answer".into()));
    }
    for _ in 1..LOOKS_MAX {
        let settlement = after(Outcome::Gone);
        assert!(matches!(settlement, Settlement::Failing { .. }), "{settlement:?}");
    }
    let settlement = after(Outcome::Gone);
    assert!(matches!(settlement, Settlement::Closed { .. }), "{settlement:?}");
}

#[test]
fn what_can_be_lost_soon_is_settled_first_and_then_each_in_its_turn() {
    let settler = Settler::new(PRICES, Duration::ZERO);
    let voucher_on = |grant: &[u8]| {
        let mut record = record(1, 1);
        record.voucher.voucher.grant = Digest32::of(grant);
        record
    };
    let now_s = u32::try_from(now_s()).unwrap();
    let expiries = [
        ("unknown", None),
        ("expired", Some(now_s - 3600)),
        ("late", Some(now_s + 7200)),
        ("soon", Some(now_s + 60)),
    ];
    for (name, expires_s) in expiries {
        let record = voucher_on(name.as_bytes());
        if let Some(expires_s) = expires_s {
            let grant = record.voucher.voucher.grant;
            settler.learn(&Seen {
                grant,
                ..expiring(expires_s)
            });
        }
        settler.note(&record);
    }
    for name in ["soon", "unknown", "late", "expired"] {
        let taken = settler.take_due().unwrap().voucher.grant;
        assert_eq!(taken, Digest32::of(name.as_bytes()), "{name}");
    }
}

#[test]
fn what_is_not_settled_is_said_with_its_amount_and_time() {
    let settler = Settler::new(PRICES, HOUR);
    assert_eq!(settler.unsettled(), None);
    settler.learn(&expiring(
        u32::try_from(now_s() + SETTLEMENT_LEAD.as_secs() + 3630).unwrap(),
    ));
    settler.note(&record(1, 1));
    let said = settler.unsettled().unwrap();
    assert!(said.contains("120000000 nanoTON on 1 grant(s)"), "{said}");
    assert!(said.contains("within 60 min"), "{said}");
    // What a chain that could not be asked may have paid long ago, or pays no more, is none of it.
    settler.learn(&Seen {
        paid_nano: 120_000_000,
        ..expiring(u32::MAX)
    });
    assert_eq!(settler.unsettled(), None);
    let expired = Settler::new(PRICES, HOUR);
    expired.learn(&expiring(1_000));
    expired.note(&record(1, 1));
    assert_eq!(expired.unsettled(), None);
}

#[test]
fn a_log_that_cannot_be_written_loses_no_claim() {
    fn broken_log() -> std::io::Sink {
        panic!("as eprintln! does on a full disk")
    }
    let settler = Settler::new(PRICES, Duration::ZERO);
    settler.note(&record(1, 1));
    let fail = || {
        // As when it is taken up.
        let taken = settler.take_due().unwrap();
        settler.conclude(&grant(), &taken, Outcome::Failed("no answer".into()));
    };
    let log = tracing_subscriber::fmt().with_writer(broken_log).finish();
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        tracing::subscriber::with_default(log, fail);
    }));
    assert!(failed.is_err(), "the line was written");
    assert!(settler.next_due().is_some(), "it is tried again");
    let settlement = only_claim(&settler).settlement;
    assert!(
        matches!(settlement, Settlement::Failing { attempts: 1, .. }),
        "{settlement:?}"
    );
}

#[tokio::test]
async fn a_flush_settles_what_was_served_while_an_older_voucher_was_on_its_way() {
    let settler = Settler::new(PRICES, HOUR);
    settler.learn(&expiring(u32::MAX));
    let chain = FakeChain::new(0);
    let gate = Arc::new(Semaphore::new(0));
    chain.0.lock().unwrap().gate = gate.clone();
    let (_folder, journal) = empty_journal();
    let running = running(&settler, &chain, &journal);
    settler.note(&record(1, 1));
    let flushing = tokio::spawn({
        let settler = settler.clone();
        async move { settler.flush(Duration::from_secs(20)).await }
    });
    while only_claim(&settler).settlement != Settlement::Sent {
        tokio::task::yield_now().await;
    }
    settler.note(&record(1, 2));
    gate.add_permits(2);
    flushing.await.unwrap();
    assert_eq!(chain.settled().len(), 2);
    running.abort();
}

#[test]
fn a_retry_is_not_put_off_beyond_the_expiry() {
    let settler = Settler::new(PRICES, HOUR);
    let waits = |left_s: u64| {
        let expires_s = now_s() + SETTLEMENT_LEAD.as_secs() + left_s;
        settler.learn(&expiring(u32::try_from(expires_s).unwrap()));
        let retry = settler.book().retry(&grant(), RETRY_LAST);
        retry.saturating_duration_since(Instant::now())
    };
    assert!(waits(100) <= Duration::from_secs(100));
    assert!(waits(0) <= RETRY_URGENT && waits(0) > Duration::ZERO);
    assert!(waits(10_000) > RETRY_LAST / 2);
}

#[tokio::test]
async fn a_flush_does_not_wait_for_the_delay() {
    let settler = Settler::new(PRICES, HOUR);
    settler.learn(&expiring(u32::MAX));
    settler.note(&record(1, 1));
    let chain = FakeChain::new(0);
    let (_folder, journal) = empty_journal();
    let running = running(&settler, &chain, &journal);
    settler.flush(Duration::from_secs(1)).await;
    assert_eq!(chain.settled().len(), 1);
    running.abort();
}

#[test]
fn back_off_grows_to_its_bound() {
    assert_eq!(back_off(RETRY_FIRST, 0), RETRY_FIRST);
    assert_eq!(back_off(RETRY_FIRST, 2), Duration::from_secs(4));
    assert_eq!(back_off(RETRY_FIRST, 40), RETRY_LAST);
}
