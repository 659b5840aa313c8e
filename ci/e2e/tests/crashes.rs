//! What may die at the worst moment: the launcher between a record and its settlement, the engine in the
//! middle of an answer.

use std::{
    thread,
    time::{Duration, Instant},
};

use cocoon_e2e::{Image, Node, describe};

const DEADLINE: Duration = Duration::from_secs(30);

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

fn balance_nano(node: &Node) -> u64 {
    node.status()["provider"]["balance_nano"]
        .as_u64()
        .expect("status tells the provider's balance")
}

#[test]
fn a_launcher_killed_between_record_and_settlement_settles_once_after_restart() {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    node.write_config(&image, "delay_s = 3600");
    node.up_and_serving();
    let before = balance_nano(&node);
    let answer = node.chat("What is Cocoon?");
    assert!(answer.status.success(), "{}", describe(&answer));
    eventually("a record is stored", || node.records().len() == 1);
    assert_eq!(balance_nano(&node), before, "settled before its time");

    let pid = node.status()["pid"]
        .as_u64()
        .expect("status tells the launcher's pid");
    node.kill_process(pid);
    eventually("nothing outlives the launcher", || node.processes().is_empty());

    node.write_config(&image, "");
    node.up_and_serving();
    eventually("the record is settled", || balance_nano(&node) > before);
    let after = balance_nano(&node);
    assert!(node.down().status.success());
    node.up_and_serving();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(balance_nano(&node), after, "settled twice");
}
