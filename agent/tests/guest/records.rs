//! Usage records that the host does not take at once.

use std::sync::atomic::Ordering;

use serde_json::json;

use crate::world::{World, wait_for};

#[tokio::test]
async fn a_record_is_kept_until_the_host_has_stored_it() {
    let world = World::start().await;
    world.host.refuses_records.store(u64::MAX, Ordering::SeqCst);
    let (mut client, _) = world.paying_client().await;
    client.chat("count 2", json!({})).await;
    wait_for(|| world.host.refused_records.load(Ordering::SeqCst) >= 2).await;
    assert!(world.host.records.lock().unwrap().is_empty());
    world.host.refuses_records.store(0, Ordering::SeqCst);
    assert_eq!(world.records(1).await[0].tokens.output, 2);
}

#[tokio::test]
async fn a_record_that_the_host_refuses_holds_up_no_other() {
    let world = World::start().await;
    world.host.refuses_records.store(1, Ordering::SeqCst);
    let (mut client, _) = world.paying_client().await;
    client.chat("count 2", json!({})).await;
    client.chat("count 3", json!({})).await;
    assert_eq!(world.records(1).await[0].number, 2);
    world.host.refuses_records.store(0, Ordering::SeqCst);
    assert_eq!(world.records(2).await[1].number, 1);
}
