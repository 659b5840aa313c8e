//! `cocoon chat` without a prompt: a conversation, line by line.

use std::{
    fs,
    process::{Output, Stdio},
};

use cocoon::PROMPT_BYTES_MAX;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    node::{ANSWER, Node, Script},
    world::{World, assert_exit, wrong_policy},
};

/// Starts `cocoon chat` without a prompt, through `wrap`; its standard input and output are the test's.
fn converse(
    world: &World,
    wrap: impl FnOnce(String) -> tokio::process::Command,
    more: &str,
) -> tokio::process::Child {
    let chat = format!(
        "{} chat {} --policy policy.toml --wallet wallet --ton-config ton.json {more}",
        env!("CARGO_BIN_EXE_cocoon"),
        world.node.endpoint
    );
    let mut command = wrap(format!("exec {chat}"));
    command
        .current_dir(world.dir.path())
        .env_remove("COCOON_LOG")
        .env("XDG_STATE_HOME", world.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn piped(world: &World, input: &str, more: &str) -> Output {
    let shell = |chat: String| {
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", &chat]);
        command
    };
    let mut child = converse(world, shell, more);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    child.wait_with_output().await.unwrap()
}

fn chats(node: &Node) -> usize {
    node.requests()
        .iter()
        .filter(|line| line.contains("/v1/chat"))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_sent_again_each_time_and_never_written_down() {
    let world = World::new().await;
    world.new_wallet().await;
    let output = piped(&world, "canary-question one\ntwo\n/new\nthree\n", "").await;
    assert_exit(&output, 0);
    let answers = String::from_utf8(output.stdout).unwrap();
    assert_eq!(answers, format!("{}\n", ANSWER.concat()).repeat(3));
    let told = String::from_utf8(output.stderr).unwrap();
    let first = told.lines().next().unwrap();
    assert!(
        first.contains("SIMULATED") && first.contains("cocoon-demo"),
        "{told}"
    );

    let received = String::from_utf8_lossy(&world.node.received()).into_owned();
    let requests: Vec<_> = received.split("POST /v1/chat/completions").skip(1).collect();
    assert_eq!(requests.len(), 3, "{received}");
    let second = requests[1];
    assert!(
        second.contains("canary-question one") && second.contains(&ANSWER.concat()),
        "{second}"
    );
    assert!(!requests[2].contains("canary-question"), "/new forgot nothing");
    assert_eq!(world.deposit().await["grants"].as_array().unwrap().len(), 1);
    let found = std::process::Command::new("grep")
        .args(["-rl", "canary-question", "."])
        .current_dir(world.dir.path())
        .output();
    assert!(
        found.unwrap().stdout.is_empty(),
        "the conversation is on the disk"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_costs_no_more_than_allowed() {
    let world = World::new().await;
    world.new_wallet().await;
    // Each answer costs 0.034 TON and could cost 0.112.
    let output = piped(&world, "one\ntwo\nthree\n", "--max-ton 0.15").await;
    assert_exit(&output, 30);
    assert_eq!(chats(&world.node), 2);
    assert_eq!(world.deposit().await["reserved_nano"], 150_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_with_a_refused_guest_never_begins() {
    let world = World::new().await;
    fs::write(world.path("policy.toml"), wrong_policy(&world).to_toml()).unwrap();
    let output = piped(&world, "canary-question\n", "").await;
    assert_exit(&output, 10);
    let received = String::from_utf8_lossy(&world.node.received()).into_owned();
    assert!(!received.contains("canary-question"));
    assert_eq!(chats(&world.node), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_outgrows_the_context_loses_its_oldest_part() {
    let mut script = Script::default();
    script.chat.messages_max = Some(3);
    let world = World::scripted(script).await;
    let output = piped(&world, "one-canary\ntwo-canary\nthree-canary\n", "").await;
    assert_exit(&output, 0);
    let received = String::from_utf8_lossy(&world.node.received()).into_owned();
    let last = received.rsplit("POST /v1/chat/completions").next().unwrap();
    assert!(
        last.contains("two-canary") && last.contains("three-canary"),
        "{last}"
    );
    assert!(!last.contains("one-canary"), "{last}");
    // A refusal costs nothing.
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("[0.102000000 TON of"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_is_refused_for_another_reason_forgets_nothing() {
    let mut script = Script::default();
    script.chat.messages_max = Some(3);
    script.chat.refusal_code = Some("request_refused");
    let world = World::scripted(script).await;
    let output = piped(&world, "one-canary\ntwo-canary\nthree-canary\n", "").await;
    assert_exit(&output, 40);
    assert_eq!(chats(&world.node), 3);
    let received = String::from_utf8_lossy(&world.node.received()).into_owned();
    let last = received.rsplit("POST /v1/chat/completions").next().unwrap();
    assert!(last.contains("one-canary"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_of_more_bytes_than_are_sent_loses_its_oldest_part() {
    let world = World::new().await;
    world.new_wallet().await;
    let long = |canary: &str| canary.to_owned() + &"x".repeat(PROMPT_BYTES_MAX * 3 / 5) + "\n";
    let output = piped(&world, &(long("one-canary") + &long("two-canary")), "").await;
    assert_exit(&output, 0);
    let received = String::from_utf8_lossy(&world.node.received()).into_owned();
    let last = received.rsplit("POST /v1/chat/completions").next().unwrap();
    assert!(last.contains("two-canary") && !last.contains("one-canary"));
}

/// Reads until the text was seen after what was read before; the test fails with what came instead.
async fn until(terminal: &mut (impl AsyncRead + Unpin), text: &str) {
    let mut seen = String::new();
    let read = async {
        while !seen.contains(text) {
            let mut bytes = [0; 4096];
            let read = terminal.read(&mut bytes).await.unwrap();
            assert!(read > 0, "no {text:?} in {seen}");
            seen += &String::from_utf8_lossy(&bytes[..read]);
        }
    };
    let ended = tokio::time::timeout(std::time::Duration::from_secs(60), read).await;
    assert!(ended.is_ok(), "no {text:?} in {seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_an_answer_can_be_stopped_and_the_conversation_goes_on() {
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
    let mut script = Script::default();
    script.chat.gate = Some(gate.clone());
    let world = World::scripted(script).await;
    let terminal = |chat: String| {
        let mut command = tokio::process::Command::new("script");
        command
            .args(["-qefc", &chat, "/dev/null"])
            .env("SHELL", "/bin/sh");
        command
    };
    let mut child = converse(&world, terminal, "");
    let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    until(&mut screen, "> ").await;
    keys.write_all(b"/verify\nfirst question\n").await.unwrap();
    until(&mut screen, "VERDICT: SIMULATED").await;
    until(&mut screen, ANSWER[0].trim_end()).await;
    keys.write_all(b"\x03").await.unwrap();
    until(&mut screen, "stopped").await;
    gate.add_permits(100);
    keys.write_all(b"second question\n").await.unwrap();
    until(&mut screen, "0.146000000 TON").await;
    keys.write_all(b"\x04").await.unwrap();
    assert!(child.wait().await.unwrap().success());
    let received = String::from_utf8_lossy(&world.node.received()).into_owned();
    let last = received.rsplit("POST /v1/chat/completions").next().unwrap();
    assert!(
        last.contains("second question") && !last.contains("first question"),
        "{last}"
    );
}
