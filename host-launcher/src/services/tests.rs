//! What a guest may ask of its host, and what it is told.

use std::sync::atomic::{AtomicU32, Ordering};

use cocoon_protocol::{AccountAddress, Grant, SignedVoucher};
use cocoon_settlement::ChainError;
use ed25519_dalek::SigningKey;
use tokio::{net::UnixStream, time::Instant};

use super::*;
use crate::{
    guest_socket::GuestSocket,
    journal::{self, Entry, tests::record},
};

const PRICES: Prices = Prices {
    input_nano_per_kilotoken: 1,
    output_nano_per_kilotoken: 1,
};
const DELAY: Duration = Duration::from_secs(3600);
const PAYOUT: AccountAddress = AccountAddress(Digest32([3; 32]));

/// Always the same answer, and how often it was asked for.
#[derive(Clone)]
struct FixedChain(Result<Option<GrantState>, ()>, Arc<AtomicU32>);

fn fixed(answer: Result<Option<GrantState>, ()>) -> FixedChain {
    FixedChain(answer, Arc::default())
}

impl Chain for FixedChain {
    async fn grant(&self, _: AccountAddress, _: Digest32) -> Result<Option<GrantState>, ChainError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.map_err(|()| ChainError::Unreachable {
            tried: 2,
            last: "timed out".into(),
        })
    }

    async fn settle(&self, _: &SignedVoucher) -> Result<GrantState, ChainError> {
        Err(ChainError::NoFaucet(0))
    }
}

struct Fixture {
    guest: UnixStream,
    boot: mpsc::Receiver<BootEvent>,
    services: Arc<Services<FixedChain>>,
    dir: tempfile::TempDir,
}

impl Fixture {
    /// As if the chain had shown the grant of this record.
    fn grant_credit(&self, record: &UsageRecord) {
        let voucher = &record.voucher.voucher;
        let grant = Grant {
            agent_key: voucher.agent_key,
            contract: voucher.contract,
            ..signed_grant(u32::MAX).grant
        };
        self.services.granted().insert(voucher.grant, grant);
    }

    fn journal(&self) -> Vec<Entry> {
        let mut entries = vec![];
        journal::read(&self.dir.path().join("journal"), |entry| entries.push(entry)).unwrap();
        entries
    }
}

async fn start(chain: FixedChain) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let socket = GuestSocket::Backend {
        base: dir.path().join("guest"),
    };
    let (journal, _) = Journal::open(&dir.path().join("journal"), |_| {}).unwrap();
    let (sender, boot) = mpsc::channel(4);
    let services = Arc::new(Services {
        document: b"document".to_vec(),
        endorsements: Box::new(|| Ok(b"collateral".to_vec())),
        boot: sender,
        journal: Arc::new(Mutex::new(journal)),
        settler: Settler::new(PRICES, DELAY),
        chain,
        terms: Terms {
            network: NetworkId::LOCAL,
            payout_address: PAYOUT,
            prices: PRICES,
        },
        granted: Mutex::default(),
    });
    tokio::spawn(services.clone().serve(socket.listen(HOST_PORT).unwrap()));
    let guest = UnixStream::connect(dir.path().join(format!("guest_{HOST_PORT}")))
        .await
        .unwrap();
    Fixture {
        guest,
        boot,
        services,
        dir,
    }
}

async fn ask(guest: &mut UnixStream, request: ToHost) -> FromHost {
    write_frame_async(guest, &request).await.unwrap();
    read_frame_async(guest).await.unwrap()
}

/// That of [`record`]'s first agent.
fn agent() -> SigningKey {
    SigningKey::from_bytes(&[1; 32])
}

fn record_on(grant: &SignedGrant, number: u64) -> UsageRecord {
    let mut record = record(1, number);
    let mut voucher = record.voucher.voucher;
    (voucher.grant, voucher.contract) = (grant.grant.id(), grant.grant.contract);
    record.voucher = voucher.sign(&agent());
    record
}

fn signed_grant(expires_s: u32) -> SignedGrant {
    let grant = Grant {
        network: NetworkId::LOCAL,
        contract: AccountAddress(Digest32::ZERO),
        agent_key: agent().verifying_key().to_bytes(),
        payout_address: PAYOUT,
        prices: PRICES,
        cap_nano: 500,
        expires_s,
    };
    grant.sign(&SigningKey::from_bytes(&[2; 32]))
}

fn locked() -> GrantState {
    GrantState {
        agent_key: agent().verifying_key().to_bytes(),
        payout_address: PAYOUT,
        prices: PRICES,
        cap_nano: 500,
        expires_s: u32::MAX,
        served: cocoon_protocol::TokenCounts::default(),
        paid_nano: 0,
    }
}

#[tokio::test]
async fn document_and_boot_events_pass() {
    let mut fixture = start(fixed(Ok(None))).await;
    let expected = FromHost::Launch {
        document: b"document".to_vec(),
        endorsements: b"collateral".to_vec(),
    };
    assert_eq!(ask(&mut fixture.guest, ToHost::Launch).await, expected);
    let expected = FromHost::Endorsements {
        endorsements: b"collateral".to_vec(),
    };
    assert_eq!(ask(&mut fixture.guest, ToHost::Endorsements).await, expected);
    let stage = ToHost::Stage {
        stage: Stage::Agent,
        uptime_ms: 7,
    };
    assert_eq!(ask(&mut fixture.guest, stage).await, FromHost::Ok);
    let event = BootEvent::Stage {
        stage: Stage::Agent,
        uptime_ms: 7,
    };
    assert_eq!(fixture.boot.recv().await, Some(event));
}

#[tokio::test]
async fn a_record_is_on_disk_before_it_is_acknowledged() {
    let mut fixture = start(fixed(Ok(None))).await;
    fixture.grant_credit(&record(1, 1));
    for _ in 0..2 {
        let request = ToHost::Record { record: record(1, 1) };
        assert_eq!(
            ask(&mut fixture.guest, request).await,
            FromHost::Stored { number: 1 }
        );
    }
    assert_eq!(fixture.journal(), [Entry::Record(record(1, 1))]);
    assert_eq!(
        fixture.services.settler.claims().0,
        1,
        "a second delivery is no second claim"
    );
}

#[tokio::test]
async fn a_forged_voucher_and_one_for_another_network_are_not_stored() {
    let mut fixture = start(fixed(Ok(None))).await;
    fixture.grant_credit(&record(1, 1));
    let mut forged = record(1, 1);
    forged.voucher.voucher.served.output += 1;
    let mut foreign = record(1, 1);
    foreign.voucher.voucher.network = NetworkId::MAINNET;
    for (record, says) in [(forged, "signature"), (foreign, "network -239")] {
        match ask(&mut fixture.guest, ToHost::Record { record }).await {
            FromHost::Failed { reason } => assert!(reason.contains(says), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fixture.journal(), []);
}

#[tokio::test]
async fn credit_is_what_the_chain_holds_and_nothing_without_it() {
    let other_payee = GrantState {
        payout_address: AccountAddress(Digest32::ZERO),
        ..locked()
    };
    let cases = [
        (Ok(Some(locked())), u32::MAX, 500, ""),
        (Ok(None), u32::MAX, 0, "no such grant on chain"),
        (Ok(Some(other_payee)), u32::MAX, 0, "another payout address"),
        (Ok(Some(locked())), 1_000, 0, "expires"),
    ];
    for (chain, expires_s, expected, says) in cases {
        let mut fixture = start(fixed(chain)).await;
        let request = ToHost::Credit {
            grant: signed_grant(expires_s),
        };
        match ask(&mut fixture.guest, request).await {
            FromHost::Credit { nano, reason } => {
                assert_eq!(nano, expected);
                assert!(reason.contains(says), "{reason}");
                assert_eq!(reason.is_empty(), expected > 0);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn trouble_with_the_chain_is_not_called_a_lack_of_credit() {
    let mut fixture = start(fixed(Err(()))).await;
    let request = ToHost::Credit {
        grant: signed_grant(u32::MAX),
    };
    match ask(&mut fixture.guest, request).await {
        FromHost::Failed { reason } => assert!(reason.contains("timed out"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_expiry_of_a_grant_with_credit_is_known_to_the_settler() {
    let ends_soon_s = u32::try_from(now_s() + EXPIRY_MARGIN_S + 60).unwrap();
    for (expires_s, waits) in [(ends_soon_s, Duration::from_secs(180)), (u32::MAX, DELAY)] {
        let shown = GrantState {
            expires_s,
            ..locked()
        };
        let mut fixture = start(fixed(Ok(Some(shown)))).await;
        let grant = signed_grant(expires_s);
        let seen = Entry::Seen(Seen::new(grant.grant.id(), &shown));
        let record = record_on(&grant, 1);
        let credit = ToHost::Credit { grant };
        for _ in 0..2 {
            ask(&mut fixture.guest, credit.clone()).await;
        }
        let stored = ToHost::Record {
            record: record.clone(),
        };
        ask(&mut fixture.guest, stored).await;
        let written = async {
            while fixture.journal().len() < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(20), written).await.unwrap();
        let journal = fixture.journal();
        assert!(
            journal.contains(&seen) && journal.contains(&Entry::Record(record)),
            "{journal:?}"
        );
        assert_eq!(journal.len(), 2);
        let due = fixture.services.settler.next_due().unwrap();
        let now = Instant::now();
        assert!(due <= now + waits && due + Duration::from_secs(60) > now + waits);
    }
}

/// Its cap is reserved for this node until it expires: trouble with the chain is no reason to stop serving on it.
#[tokio::test]
async fn a_grant_that_the_chain_showed_once_is_not_looked_up_again() {
    let chain = fixed(Ok(Some(locked())));
    let mut fixture = start(chain.clone()).await;
    for _ in 0..2 {
        let credit = ToHost::Credit {
            grant: signed_grant(u32::MAX),
        };
        match ask(&mut fixture.guest, credit).await {
            FromHost::Credit { nano, .. } => assert_eq!(nano, 500),
            other => panic!("{other:?}"),
        }
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(3600)).await;
        tokio::time::resume();
    }
    assert_eq!(chain.1.load(Ordering::Relaxed), 1);
    let expiring = ToHost::Credit {
        grant: signed_grant(1_000),
    };
    assert!(matches!(
        ask(&mut fixture.guest, expiring).await,
        FromHost::Credit { nano: 0, .. }
    ));
}

/// Else its client would lock another one, for the same answer.
#[tokio::test]
async fn no_place_for_another_grant_is_not_called_a_lack_of_credit() {
    let mut fixture = start(fixed(Ok(Some(locked())))).await;
    let grant = signed_grant(u32::MAX);
    for number in 0..u32::try_from(GRANTED_MAX).unwrap() {
        let mut id = Digest32::ZERO;
        id.0[..4].copy_from_slice(&number.to_be_bytes());
        fixture.services.granted().insert(id, grant.grant.clone());
    }
    let request = ToHost::Credit { grant };
    match ask(&mut fixture.guest, request.clone()).await {
        FromHost::Failed { reason } => assert!(reason.contains("65536 grants"), "{reason}"),
        other => panic!("{other:?}"),
    }
    // One that pays nothing any more makes room.
    fixture
        .services
        .granted()
        .get_mut(&Digest32::ZERO)
        .unwrap()
        .expires_s = 0;
    let answer = ask(&mut fixture.guest, request).await;
    assert!(matches!(answer, FromHost::Credit { nano: 1.., .. }), "{answer:?}");
    assert!(!fixture.services.granted().contains_key(&Digest32::ZERO));
}

/// The contract would refuse them, and they would stand in the way of those that it takes.
#[tokio::test]
async fn records_that_their_grant_does_not_cover_are_not_stored() {
    let mut fixture = start(fixed(Ok(Some(locked())))).await;
    let grant = signed_grant(u32::MAX);
    let good = record_on(&grant, 1);
    let resigned = |change: fn(&mut Voucher), key: [u8; 32]| {
        let mut record = record_on(&grant, 2);
        let mut voucher = record.voucher.voucher;
        change(&mut voucher);
        let key = SigningKey::from_bytes(&key);
        voucher.agent_key = key.verifying_key().to_bytes();
        record.voucher = voucher.sign(&key);
        record
    };
    let bad = [
        (good.clone(), "gave no credit on"),
        (resigned(|_| {}, [9; 32]), "another agent"),
        (
            resigned(|voucher| voucher.contract = PAYOUT, [1; 32]),
            "another deposit",
        ),
        (
            resigned(|voucher| voucher.served.input = 1_000_000, [1; 32]),
            "over the grant's cap",
        ),
        (
            resigned(|voucher| voucher.served.input = u64::MAX, [1; 32]),
            "over the grant's cap",
        ),
    ];
    for (number, (record, says)) in bad.into_iter().enumerate() {
        match ask(&mut fixture.guest, ToHost::Record { record }).await {
            FromHost::Failed { reason } => assert!(reason.contains(says), "{reason}"),
            other => panic!("{other:?}"),
        }
        if number == 0 {
            let credit = ToHost::Credit { grant: grant.clone() };
            ask(&mut fixture.guest, credit).await;
        }
    }
    let stored = ask(&mut fixture.guest, ToHost::Record { record: good.clone() }).await;
    assert_eq!(stored, FromHost::Stored { number: 1 });
    let records: Vec<_> = fixture.journal();
    let records = records.iter().filter(|entry| matches!(entry, Entry::Record(_)));
    assert_eq!(records.collect::<Vec<_>>(), [&Entry::Record(good)]);
}

#[tokio::test]
async fn a_connection_with_garbage_ends_and_others_go_on() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut fixture = start(fixed(Ok(None))).await;
    let path = fixture.dir.path().join(format!("guest_{HOST_PORT}"));
    let mut hostile = UnixStream::connect(path).await.unwrap();
    hostile.write_all(&[0xff; 64]).await.unwrap();
    assert_eq!(hostile.read(&mut [0; 8]).await.unwrap_or(0), 0);
    assert!(matches!(
        ask(&mut fixture.guest, ToHost::Launch).await,
        FromHost::Launch { .. }
    ));
}
