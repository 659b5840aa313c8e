//! What a guest may ask of its host, and what it is told.

use cocoon_protocol::{AccountAddress, Grant, SignedVoucher};
use cocoon_settlement::ChainError;
use ed25519_dalek::SigningKey;
use tokio::net::UnixStream;

use super::*;
use crate::{guest_socket::GuestSocket, journal::tests::record};

const PRICES: Prices = Prices {
    input_nano_per_kilotoken: 1,
    output_nano_per_kilotoken: 1,
};
const DELAY: Duration = Duration::from_secs(3600);
const PAYOUT: AccountAddress = AccountAddress(Digest32([3; 32]));

#[derive(Clone)]
struct FixedChain(Result<Option<GrantState>, ()>);

impl Chain for FixedChain {
    async fn grant(&self, _: AccountAddress, _: Digest32) -> Result<Option<GrantState>, ChainError> {
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

async fn start(chain: FixedChain) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let socket = GuestSocket::Backend {
        base: dir.path().join("guest"),
    };
    let (journal, _) = Journal::open(&dir.path().join("journal")).unwrap();
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
        credits: Mutex::default(),
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

fn signed_grant(expires_s: u32) -> SignedGrant {
    let grant = Grant {
        network: NetworkId::LOCAL,
        contract: AccountAddress(Digest32::ZERO),
        agent_key: [1; 32],
        payout_address: PAYOUT,
        prices: PRICES,
        cap_nano: 500,
        expires_s,
    };
    grant.sign(&SigningKey::from_bytes(&[2; 32]))
}

fn locked() -> GrantState {
    GrantState {
        agent_key: [1; 32],
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
    let mut fixture = start(FixedChain(Ok(None))).await;
    let expected = FromHost::Launch {
        document: b"document".to_vec(),
        endorsements: b"collateral".to_vec(),
    };
    assert_eq!(ask(&mut fixture.guest, ToHost::Launch).await, expected);
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
    let mut fixture = start(FixedChain(Ok(None))).await;
    for _ in 0..2 {
        let request = ToHost::Record { record: record(1, 1) };
        assert_eq!(
            ask(&mut fixture.guest, request).await,
            FromHost::Stored { number: 1 }
        );
    }
    let stored = crate::journal::read(&fixture.dir.path().join("journal")).unwrap();
    assert_eq!(stored, [record(1, 1)]);
    assert_eq!(
        fixture.services.settler.claims().0,
        1,
        "a second delivery is no second claim"
    );
}

#[tokio::test]
async fn a_forged_voucher_and_one_for_another_network_are_not_stored() {
    let mut fixture = start(FixedChain(Ok(None))).await;
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
    assert!(
        crate::journal::read(&fixture.dir.path().join("journal"))
            .unwrap()
            .is_empty()
    );
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
        let mut fixture = start(FixedChain(chain)).await;
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
    let mut fixture = start(FixedChain(Err(()))).await;
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
        let chain = FixedChain(Ok(Some(GrantState {
            expires_s,
            ..locked()
        })));
        let mut fixture = start(chain).await;
        let grant = signed_grant(expires_s);
        let mut voucher = record(1, 1).voucher.voucher;
        voucher.grant = grant.grant.id();
        let mut record = record(1, 1);
        record.voucher = voucher.sign(&SigningKey::from_bytes(&[1; 32]));
        ask(&mut fixture.guest, ToHost::Credit { grant }).await;
        ask(&mut fixture.guest, ToHost::Record { record }).await;
        let due = fixture.services.settler.next_due().unwrap();
        let now = Instant::now();
        assert!(due <= now + waits && due + Duration::from_secs(60) > now + waits);
    }
}

#[tokio::test]
async fn a_connection_with_garbage_ends_and_others_go_on() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut fixture = start(FixedChain(Ok(None))).await;
    let path = fixture.dir.path().join(format!("guest_{HOST_PORT}"));
    let mut hostile = UnixStream::connect(path).await.unwrap();
    hostile.write_all(&[0xff; 64]).await.unwrap();
    assert_eq!(hostile.read(&mut [0; 8]).await.unwrap_or(0), 0);
    assert!(matches!(
        ask(&mut fixture.guest, ToHost::Launch).await,
        FromHost::Launch { .. }
    ));
}
