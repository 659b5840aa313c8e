//! Who may ask: grants, the host's word on their credit, and accounts.

use std::{sync::atomic::Ordering, time::Duration};

use cocoon_agent::{meter::now_s, serve::Deadlines};
use cocoon_protocol::{SessionProof, TokenCounts, host::SETTLEMENT_LEAD};
use ed25519_dalek::SigningKey;
use hyper::StatusCode;
use serde_json::json;

use crate::{
    parse,
    world::{INPUT_TOKENS, World, owner, wait_for},
};

#[tokio::test]
async fn without_a_grant_there_is_no_answer() {
    let world = World::start().await;
    let (status, body) = world.client().await.chat("count 1", json!({})).await;
    assert_eq!(status, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(parse(&body)["error"]["code"], "no_grant");
}

#[tokio::test]
async fn a_grant_copied_from_the_chain_is_refused() {
    let world = World::start().await;
    let mut client = world.client().await;
    let grant = world.grant(&mut client, &owner(), 1_000).await;
    let thief = SigningKey::from_bytes(&[66; 32]);
    let (status, body) = client.bind(&grant, &thief).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (StatusCode::FORBIDDEN, &json!("session_proof_refused"))
    );

    let other = world.client().await;
    let proof = SessionProof::sign(&owner(), &other.session, &grant.grant);
    let replayed = json!({"grant": grant, "proof": proof}).to_string();
    let (status, _) = client.send("POST", "/v1/cocoon/grant", replayed.into()).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_grant_for_another_agent_or_without_credit_is_refused() {
    let world = World::start().await;
    let mut client = world.client().await;
    let mut foreign = world.grant(&mut client, &owner(), 1_000).await.grant;
    foreign.agent_key = [1; 32];
    let (status, body) = client.bind(&foreign.sign(&owner()), &owner()).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (StatusCode::FORBIDDEN, &json!("grant_refused"))
    );

    world.host.credit_nano.store(0, Ordering::SeqCst);
    let unlocked = world.grant(&mut client, &owner(), 1_000).await;
    let (status, body) = client.bind(&unlocked, &owner()).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (StatusCode::PAYMENT_REQUIRED, &json!("no_credit"))
    );
}

#[tokio::test]
async fn a_worst_case_over_the_cap_is_refused_whatever_the_host_reports() {
    let world = World::start().await;
    let mut client = world.client().await;
    // Worst case here: (279 + 64) tokens, 279 + 128 nanoTON.
    let grant = world.grant(&mut client, &owner(), 400).await;
    let (status, balance) = client.bind(&grant, &owner()).await;
    assert_eq!((status, &balance["credit_nano"]), (StatusCode::OK, &json!(400)));
    let (status, body) = client.chat("count 3", json!({})).await;
    assert_eq!(status, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(parse(&body)["error"]["code"], "credit_exceeded");
    let (status, _) = client.chat("count 3", json!({"max_tokens": 4})).await;
    assert_eq!(status, StatusCode::OK);
}

/// The host gives no credit on a grant that expires before it can settle: a client that binds one early and
/// spends it at the last moment would be served for nothing.
#[tokio::test]
async fn credit_that_the_host_takes_back_is_not_served_upon() {
    let deadlines = Deadlines {
        credit: Duration::ZERO,
        ..Deadlines::default()
    };
    let world = World::start_with(4, deadlines).await;
    let (mut client, _) = world.paying_client().await;
    let (status, _) = client.chat("count 1", json!({})).await;
    assert_eq!(status, StatusCode::OK);
    world.host.credit_nano.store(0, Ordering::SeqCst);
    let (status, body) = client.chat("count 1", json!({})).await;
    assert_eq!(status, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(parse(&body)["error"]["code"], "no_credit");
}

/// The client chooses when its grant expires: what it asks for just before must be paid for all the same.
#[tokio::test]
async fn no_answer_goes_on_for_longer_than_its_voucher_can_be_settled() {
    let world = World::start().await;
    let left_s = 5;
    let mut client = world.client().await;
    let mut grant = world.grant(&mut client, &owner(), 1_000_000).await.grant;
    grant.expires_s = u32::try_from(now_s() + SETTLEMENT_LEAD.as_secs() + left_s).unwrap();
    let (status, _) = client.bind(&grant.sign(&owner()), &owner()).await;
    assert_eq!(status, StatusCode::OK);
    let (status, body) = client.chat("hang", json!({})).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(parse(&body)["choices"][0]["finish_reason"], "length");
    assert_eq!(world.records(1).await[0].tokens.output, 1);
    let (status, body) = client.chat("count 1", json!({})).await;
    assert_eq!(
        (status, &parse(&body)["error"]["code"]),
        (StatusCode::FORBIDDEN, &json!("grant_refused"))
    );
}

#[tokio::test]
async fn made_up_grants_do_not_hold_up_those_who_pay() {
    let world = World::start().await;
    let (mut paying, grant) = world.paying_client().await;
    world.host.credit_stalls.store(true, Ordering::SeqCst);
    let mut asked = vec![];
    for number in 0..9 {
        let stranger = SigningKey::from_bytes(&[100 + number; 32]);
        let mut client = world.client().await;
        let made_up = world.grant(&mut client, &stranger, 1_000).await;
        asked.push(tokio::spawn(
            async move { client.bind(&made_up, &stranger).await },
        ));
    }
    let refused = wait_for_one(&mut asked).await;
    assert_eq!(
        (refused.0, &refused.1["error"]["code"]),
        (StatusCode::TOO_MANY_REQUESTS, &json!("too_many_requests"))
    );
    world.host.credit_stalls.store(false, Ordering::SeqCst);
    let (status, _) = paying.bind(&grant, &owner()).await;
    assert_eq!(status, StatusCode::OK);
}

async fn wait_for_one<T>(tasks: &mut Vec<tokio::task::JoinHandle<T>>) -> T {
    wait_for(|| tasks.iter().any(tokio::task::JoinHandle::is_finished)).await;
    let at = tasks.iter().position(tokio::task::JoinHandle::is_finished);
    tasks.swap_remove(at.unwrap()).await.unwrap()
}

#[tokio::test]
async fn two_connections_share_one_account_and_counts_only_grow() {
    let world = World::start().await;
    let ((mut one, _), (mut two, _)) = (world.paying_client().await, world.paying_client().await);
    for _ in 0..2 {
        let (a, b) = tokio::join!(one.chat("count 2", json!({})), two.chat("count 3", json!({})));
        assert_eq!((a.0, b.0), (StatusCode::OK, StatusCode::OK));
    }
    let records = world.records(4).await;
    let mut sum = TokenCounts::default();
    for (position, record) in records.iter().enumerate() {
        assert_eq!(record.number, position as u64 + 1);
        sum = sum.checked_add(record.tokens).unwrap();
        assert_eq!(record.voucher.voucher.served, sum);
    }
    assert_eq!(
        sum,
        TokenCounts {
            input: 4 * INPUT_TOKENS,
            output: 10
        }
    );
}
