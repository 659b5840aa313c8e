//! `cocoon` behind a host that tampers with bytes.

use std::process::Output;

use crate::{
    hostile_host::{Fault, HostileHost, Place, Plan, Way},
    world::{World, assert_exit},
};

/// Runs `cocoon` against the node behind a host that keeps to this plan.
async fn through(
    world: &World,
    plan: Option<Plan>,
    command: &[&str],
    more: &[&str],
) -> (Output, HostileHost) {
    let host = HostileHost::before(world.node.endpoint.port(), plan).await;
    let url = format!("https://{}", host.address);
    let fixed = [url.as_str(), "--policy", "policy.toml"];
    let output = world.cocoon(&[command, &fixed, more].concat()).await;
    (output, host)
}

/// Those faults that end at once; what only a deadline ends is the library's to be tested.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_tampers_is_told_by_the_exit_code() {
    const PROMPT: &str = "canary: the secret of a patient";
    let world = World::new().await;
    world.new_wallet().await;
    let paying = ["--wallet", "wallet", "--ton-config", "ton.json", PROMPT];
    let (answered, host) = through(&world, None, &["chat"], &paying).await;
    assert_exit(&answered, 0);
    // HTTP's last chunk may come on its own, after the receipt.
    let last = host.records().1 - 2;

    for fault in [Fault::Corrupt, Fault::End] {
        let mut codes = vec![];
        for record in 0..=last {
            let plan = Plan {
                way: Way::ToClient,
                record,
                fault,
                place: Place::Inside,
                seed: record as u64,
            };
            let (asked, host) = through(&world, Some(plan), &["chat"], &paying).await;
            let said = String::from_utf8(asked.stderr).unwrap();
            assert!(
                said.contains("what to do:") && !said.contains(PROMPT),
                "{plan:?}: {said}"
            );
            host.assert_saw_nothing_of(PROMPT);
            codes.push(asked.status.code().unwrap());
        }
        let verified = codes.iter().position(|code| *code == 40).unwrap();
        let (before, after) = codes.split_at(verified);
        assert!(
            verified > 2 && before.iter().all(|code| [13, 20].contains(code)),
            "{codes:?}"
        );
        assert!(after.iter().all(|code| *code == 40), "{codes:?}");
    }
}
