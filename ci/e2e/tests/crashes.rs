//! What may die at the worst moment: the launcher between a record and its settlement, the engine in the
//! middle of an answer.

use std::{io::Read as _, process::Stdio, thread, time::Duration};

use cocoon_e2e::{Image, Node, describe, eventually};

/// `cocoon` exits with this when a verified node did not answer.
const EXIT_REQUEST: i32 = 40;

#[test]
fn a_launcher_killed_between_record_and_settlement_settles_once_after_restart() {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    node.write_config(&image, "delay_s = 3600");
    node.up_and_serving();
    let before = node.balance_nano();
    let answer = node.chat("What is Cocoon?");
    assert!(answer.status.success(), "{}", describe(&answer));
    eventually("a record is stored", || node.records().len() == 1);
    assert_eq!(node.balance_nano(), before, "settled before its time");

    let pid = node.status()["pid"]
        .as_u64()
        .expect("status tells the launcher's pid");
    assert!(node.kill_process(pid), "the launcher had ended by itself");
    eventually("nothing outlives the launcher", || node.processes().is_empty());

    node.write_config(&image, "");
    node.up_and_serving();
    eventually("the record is settled", || node.balance_nano() > before);
    let after = node.balance_nano();
    assert!(node.down().status.success());
    node.up_and_serving();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(node.balance_nano(), after, "settled twice");

    // The guest has another key after a restart, so the same wallet locks another grant in the same deposit.
    let answer = node.chat("What is Cocoon?");
    assert!(answer.status.success(), "{}", describe(&answer));
    eventually("it is settled as well", || node.balance_nano() > after);
}

/// The answer is cut, nothing of it is charged, and the guest with its keys lives on.
#[test]
fn an_engine_killed_mid_answer_fails_that_answer_only() {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    node.up_and_serving();
    let first = node.chat("What is Cocoon?");
    assert!(first.status.success(), "{}", describe(&first));
    // The client has its receipt before the host has the record.
    eventually("a record is stored", || node.records().len() == 1);
    let served = node.records().pop().expect("a record").voucher.voucher;

    // Hot enough not to end by itself before the kill arrives.
    let mut command = node.chat_command("policy.toml", "What is Cocoon?");
    command.args(["--temperature", "2", "--max-tokens", "96"]);
    let mut asking = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cocoon runs");
    let mut text = [0; 1];
    asking
        .stdout
        .as_mut()
        .expect("a pipe")
        .read_exact(&mut text)
        .expect("the answer begins");
    node.kill_engine();
    let cut = asking.wait_with_output().expect("cocoon ends");
    assert_eq!(cut.status.code(), Some(EXIT_REQUEST), "{}", describe(&cut));
    assert_eq!(node.records().len(), 1, "a failed answer was charged");

    let mut last = None;
    eventually("the engine is back", || {
        let answer = node.chat("What is Cocoon?");
        let back = answer.status.success();
        last = Some(answer);
        back
    });
    eventually("its record is stored", || node.records().len() == 2);
    let after = node.records().pop().expect("a record").voucher.voucher;
    assert_eq!(
        after.agent_key, served.agent_key,
        "the guest was restarted: {last:?}"
    );
    assert!(after.served.output > served.served.output);
}
