//! What a later start knows, and what it looks up.

use std::path::Path;

use super::*;
use crate::{journal, settler::restart::FORGOTTEN_AFTER_S};

/// What was noted of grants, once it is something.
async fn noted(path: &Path) -> Vec<Seen> {
    let noted = async {
        loop {
            let mut seen = vec![];
            journal::read(path, |entry| {
                if let journal::Entry::Seen(entry) = entry {
                    seen.push(entry);
                }
            })
            .unwrap();
            if !seen.is_empty() {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), noted).await.unwrap()
}

#[tokio::test]
async fn a_restart_does_not_settle_what_the_chain_shows() {
    let chain = FakeChain::new(0);
    for _ in 0..2 {
        let settler = Settler::new(PRICES, Duration::ZERO);
        settler.note(&record(1, 1));
        run_until(&settler, &chain, is_settled).await;
    }
    assert_eq!(chain.settled().len(), 1);
}

/// Months of grants must not stand in front of the first new voucher.
#[tokio::test]
async fn a_later_start_asks_nothing_about_grants_that_have_expired() {
    let (served, all_nano) = (record(1, 1).voucher.voucher.served, 120_000_000);
    assert_eq!(PRICES.amount_nano(served), Some(all_nano));
    for paid_nano in [all_nano, 0] {
        let chain = FakeChain::new(0);
        chain.change(|grant| {
            grant.expires_s = 1_000;
            if paid_nano > 0 {
                (grant.served, grant.paid_nano) = (served, paid_nano);
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let settler = Settler::new(PRICES, Duration::ZERO);
        let (mut journal, _) = settler.take_up(&path).unwrap();
        journal.append(&record(1, 1)).unwrap();
        settler.note(&record(1, 1));
        let journal = Arc::new(Mutex::new(journal));
        run_noting_until(&settler, &chain, &journal, Settlement::is_final).await;
        assert_eq!(chain.looks(), 1);
        noted(&path).await;

        let later = Settler::new(PRICES, Duration::ZERO);
        later.take_up(&path).unwrap();
        assert_eq!(later.next_due(), None);
        assert_eq!(later.claims(), settler.claims());
        assert_eq!(only_claim(&later).settled_nano, paid_nano);
    }
}

#[tokio::test]
async fn what_the_chain_shows_is_noted_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let chain = FakeChain::new(0);
    for _ in 0..3 {
        let settler = Settler::new(PRICES, HOUR);
        let (mut journal, _) = settler.take_up(&path).unwrap();
        journal.append(&record(1, 1)).unwrap();
        settler.note(&record(1, 1));
        assert!(
            settler.next_due().unwrap() <= Instant::now(),
            "not expired: to be looked up"
        );
        let journal = Arc::new(Mutex::new(journal));
        run_noting_until(&settler, &chain, &journal, is_settled).await;
    }
    let seen: Vec<_> = noted(&path)
        .await
        .iter()
        .map(|seen| (seen.expires_s, seen.paid_nano))
        .collect();
    assert_eq!(seen, [(u32::MAX, chain.settled()[0])]);
    assert_eq!(chain.settled().len(), 1);
}

#[tokio::test]
async fn a_claim_of_an_earlier_run_does_not_wait() {
    let settler = Settler::new(PRICES, HOUR);
    settler.note(&record(1, 1));
    run_until(&settler, &FakeChain::new(0), is_settled).await;
}

/// Right after its start a host's clock can be hours ahead.
#[tokio::test]
async fn a_grant_that_seems_to_have_expired_lately_is_looked_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let (mut journal, _) = Journal::open(&path, |_| {}).unwrap();
    journal.append(&record(1, 1)).unwrap();
    for (ago_s, looked_up) in [(FORGOTTEN_AFTER_S - 60, true), (FORGOTTEN_AFTER_S + 60, false)] {
        let expires_s = u32::try_from(now_s() - ago_s).unwrap();
        journal.append_seen(expiring(expires_s)).unwrap();
        let settler = Settler::new(PRICES, Duration::ZERO);
        settler.take_up(&path).unwrap();
        assert_eq!(settler.next_due().is_some(), looked_up);
    }
}

/// Years of grants must not stand in front of each start.
#[test]
fn a_long_journal_is_begun_anew_with_what_can_still_be_settled() {
    for (ago_s, left) in [(FORGOTTEN_AFTER_S - 60, 2), (FORGOTTEN_AFTER_S + 60, 1)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut journal, _) = Journal::open(&path, |_| {}).unwrap();
        for number in 1..=3 {
            journal.append(&record(1, number)).unwrap();
        }
        let mut unseen = record(2, 1);
        unseen.voucher.voucher.grant = Digest32::of(b"another grant");
        journal.append(&unseen).unwrap();
        let expires_s = u32::try_from(now_s() - ago_s).unwrap();
        journal.append_seen(expiring(expires_s)).unwrap();
        let long = journal.length();

        let start = |long| {
            let settler = Settler::new(PRICES, Duration::ZERO);
            let (journal, _) = settler.take_up_renewing(&path, long).unwrap();
            (journal.length(), settler.claims())
        };
        let (length, (records, _)) = start(long + 1);
        assert_eq!((length, records), (long, 4), "not long yet");
        let renewed = start(long);
        let (length, (records, claims)) = &renewed;
        assert!(*length < long);
        assert_eq!((*records, claims.len()), (left, usize::try_from(left).unwrap()));
        assert_eq!(start(long), renewed, "a later start finds the same");
    }
}
