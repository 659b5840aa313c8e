//! The program as people run it: against a node over loopback and a real local chain, judged by what it prints,
//! what it exits with and what it leaves on the chain.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod node;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Output, Stdio},
};

use cocoon::PROMPT_BYTES_MAX;
use cocoon_protocol::{AccountAddress, SignedReceipt};
use cocoon_settlement::{LocalChain, LocalChainHandle};
use cocoon_simulator::SimulatedPlatform;
use cocoon_verify::{Expect, Policy};
use node::{ANSWER, DAY_S, Guest, Identity, Node, Script, now_s};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

/// A folder with policy, wallet and chain, and a node that meets the policy.
struct World {
    dir: tempfile::TempDir,
    node: Node,
    platform: SimulatedPlatform,
    _chain: LocalChainHandle,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let platform = SimulatedPlatform::open_or_create(&dir.path().join("platform"), now_s()).unwrap();
        let guest = Guest::boot(&platform, 1);
        fs::write(dir.path().join("policy.toml"), guest.policy().to_toml()).unwrap();
        let chain = LocalChain::open(dir.path().join("chain")).unwrap();
        let chain = chain.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
        fs::write(dir.path().join("ton.json"), chain.global_config().to_json()).unwrap();
        Self {
            node: Node::honest(guest).await,
            dir,
            platform,
            _chain: chain,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn cocoon(&self, arguments: &[&str]) -> Output {
        self.cocoon_reading(arguments, Stdio::null()).await
    }

    async fn cocoon_reading(&self, arguments: &[&str], stdin: Stdio) -> Output {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_cocoon"));
        command.args(arguments).current_dir(self.dir.path()).stdin(stdin);
        command
            .env_remove("COCOON_LOG")
            .env("XDG_STATE_HOME", self.dir.path())
            .kill_on_drop(true)
            .output()
            .await
            .unwrap()
    }

    async fn verify(&self, policy: &str, more: &[&str]) -> Output {
        let url = self.node.endpoint.to_string();
        self.cocoon(&[&["verify", &url, "--policy", policy], more].concat())
            .await
    }

    async fn chat(&self, policy: &str, more: &[&str]) -> Output {
        let more = [more, &["What is Cocoon?"]].concat();
        self.chat_reading(policy, &more, Stdio::null()).await
    }

    async fn chat_reading(&self, policy: &str, more: &[&str], stdin: Stdio) -> Output {
        let url = self.node.endpoint.to_string();
        let fixed = [
            "chat",
            &url,
            "--policy",
            policy,
            "--wallet",
            "wallet",
            "--ton-config",
            "ton.json",
        ];
        self.cocoon_reading(&[&fixed, more].concat(), stdin).await
    }

    async fn new_wallet(&self) {
        let made = self.cocoon(&["wallet", "new", "--out", "wallet"]).await;
        assert_exit(&made, 0);
    }

    async fn deposit(&self) -> Value {
        let arguments = [
            "deposit",
            "status",
            "--wallet",
            "wallet",
            "--ton-config",
            "ton.json",
            "--json",
        ];
        json(&self.cocoon(&arguments).await)
    }
}

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(
        output.status.code(),
        Some(code),
        "\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
    );
}

#[track_caller]
fn json(output: &Output) -> Value {
    assert_exit(output, 0);
    serde_json::from_slice(&output.stdout).expect("stdout is one JSON object")
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_prints_every_register_and_says_simulated() {
    let world = World::new().await;
    let output = world.verify("policy.toml", &[]).await;
    assert_exit(&output, 0);
    let table = String::from_utf8(output.stdout).unwrap();
    for row in [
        "MRTD",
        "RTMR0",
        "RTMR1",
        "RTMR2",
        "RTMR3",
        "event launch-document",
        "event usage-key",
    ] {
        assert!(
            table.lines().any(|line| line.contains(row)),
            "no {row} in\n{table}"
        );
    }
    assert!(
        table.lines().last().unwrap().starts_with("VERDICT: SIMULATED"),
        "{table}"
    );
    assert!(!table.contains('\u{1b}'), "no colours in a pipe");

    let report = json(&world.verify("policy.toml", &["--json"]).await);
    assert_eq!(report["verdict"], "SIMULATED");
    assert!(report["fresh"]["checks"].as_array().unwrap().len() > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_saved_is_judged_again_without_the_node() {
    let mut world = World::new().await;
    assert_exit(&world.verify("policy.toml", &["--save", "saved"]).await, 0);
    let wrong = wrong_policy(&world);
    fs::write(world.path("wrong.toml"), wrong.to_toml()).unwrap();
    assert_exit(&world.verify("wrong.toml", &["--save", "refused"]).await, 10);
    let requests = world.node.requests().len();

    let offline = ["verify", "--offline", "saved", "--policy"];
    let again = world
        .cocoon(&[offline.as_slice(), &["policy.toml", "--explain"]].concat())
        .await;
    assert_exit(&again, 0);
    let table = String::from_utf8(again.stdout).unwrap();
    assert!(table.contains("RTMR2: the kernel's command line"), "{table}");
    assert!(table.contains("1 launch-document: "), "{table}");
    assert_exit(
        &world
            .cocoon(&[offline.as_slice(), &["wrong.toml"]].concat())
            .await,
        10,
    );
    assert_eq!(world.node.requests().len(), requests, "the node was asked");

    // A refused guest was not asked for fresh evidence: a kinder policy cannot make it up.
    let refused = ["verify", "--offline", "refused", "--policy", "policy.toml"];
    assert_exit(&world.cocoon(&refused).await, 11);

    for (file, byte) in [
        ("certificate.der", 900),
        ("evidence.cbor", 60),
        ("endorsements.cbor", 60),
    ] {
        let path = world.path("saved").join(file);
        let honest = fs::read(&path).unwrap();
        let mut changed = honest.clone();
        changed[byte] ^= 1;
        fs::write(&path, &changed).unwrap();
        let judged = world
            .cocoon(&[offline.as_slice(), &["policy.toml"]].concat())
            .await;
        assert!(
            matches!(judged.status.code(), Some(10..=14)),
            "{file}: {:?}",
            judged.status
        );
        fs::write(&path, vec![0; 1024 * 1024]).unwrap();
        assert_exit(
            &world
                .cocoon(&[offline.as_slice(), &["policy.toml"]].concat())
                .await,
            2,
        );
        fs::write(&path, honest).unwrap();
    }
    world.node = Node::honest(Guest::boot(&world.platform, 1)).await;
    assert_exit(&world.verify("policy.toml", &["--save", "saved"]).await, 2);
}

fn wrong_policy(world: &World) -> Policy {
    let mut terms = Guest::boot(&world.platform, 1).policy_terms();
    terms.tdx_mut().unwrap().registers.rtmr1 =
        Expect::exact(cocoon_evidence::Digest48::of(b"another kernel"));
    Policy::new(terms).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_policy_than_one_that_was_accepted_is_refused() {
    let world = World::new().await;
    let write = |number| {
        let mut terms = Guest::boot(&world.platform, 1).policy_terms();
        terms.number = number;
        fs::write(world.path("policy.toml"), Policy::new(terms).unwrap().to_toml()).unwrap();
    };
    for (number, code) in [(7, 0), (8, 0), (7, 10), (8, 0)] {
        write(number);
        assert_exit(&world.verify("policy.toml", &[]).await, code);
    }
    let state = world.path("cocoon/seen.json");
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o600);
    // Another state knows nothing; a damaged one is no reason to accept.
    write(1);
    assert_exit(&world.verify("policy.toml", &["--state", "other.json"]).await, 0);
    fs::write(&state, "{").unwrap();
    assert_exit(&world.verify("policy.toml", &[]).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_pays_answers_and_uses_the_grant_again() {
    let world = World::new().await;
    world.new_wallet().await;
    let first = world
        .chat("policy.toml", &["--receipt-out", "receipt.json"])
        .await;
    assert_exit(&first, 0);
    assert_eq!(
        String::from_utf8(first.stdout).unwrap().trim_end(),
        ANSWER.concat()
    );
    let receipt: SignedReceipt =
        serde_json::from_slice(&fs::read(world.path("receipt.json")).unwrap()).unwrap();

    let deposit = world.deposit().await;
    let grants = deposit["grants"].as_array().unwrap();
    assert_eq!(grants.len(), 1);
    assert_eq!(grants[0]["id"], receipt.receipt.grant.to_string());
    assert_eq!(deposit["reserved_nano"], 1_000_000_000);

    let second = json(&world.chat("policy.toml", &["--json"]).await);
    assert_eq!(second["answer"], ANSWER.concat());
    assert_eq!(second["amount_nano"], 34_000_000);
    assert_eq!(second["receipt"]["receipt"]["served_nano"], 68_000_000);
    assert_eq!(
        world.deposit().await["grants"].as_array().unwrap().len(),
        1,
        "a second grant was locked"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_from_standard_input_reaches_the_node() {
    let world = World::new().await;
    world.new_wallet().await;
    fs::write(world.path("record.txt"), "a line of a medical record\n").unwrap();
    let file = fs::File::open(world.path("record.txt")).unwrap();
    assert_exit(&world.chat_reading("policy.toml", &["-"], file.into()).await, 0);
    let received = world.node.received();
    let received = String::from_utf8_lossy(&received);
    assert!(received.contains("\"a line of a medical record\""), "{received}");
}

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
    let mut world = World::new().await;
    world.new_wallet().await;
    let mut guest = Guest::boot(&world.platform, 1);
    let identity = Identity::of(&mut guest, -60, DAY_S);
    let mut script = Script::default();
    script.chat.messages_max = Some(3);
    world.node = Node::serve(guest, &identity, script).await;
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
    let mut world = World::new().await;
    world.new_wallet().await;
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
    let mut guest = Guest::boot(&world.platform, 1);
    let identity = Identity::of(&mut guest, -60, DAY_S);
    let mut script = Script::default();
    script.chat.gate = Some(gate.clone());
    world.node = Node::serve(guest, &identity, script).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn what_no_grant_reserves_can_be_withdrawn() {
    let world = World::new().await;
    world.new_wallet().await;
    assert_exit(&world.chat("policy.toml", &["--max-ton", "0.5"]).await, 0);
    let to = AccountAddress(cocoon_evidence::Digest32::of(b"owner")).to_string();
    let fixed = [
        "deposit",
        "withdraw",
        "--wallet",
        "wallet",
        "--ton-config",
        "ton.json",
        "--to",
        &to,
        "--amount",
    ];
    let too_much = world.cocoon(&[fixed.as_slice(), &["0.5"]].concat()).await;
    assert_exit(&too_much, 30);
    let before = world.deposit().await["balance_nano"].as_u64().unwrap();
    assert_exit(&world.cocoon(&[fixed.as_slice(), &["0.01"]].concat()).await, 0);
    let after = world.deposit().await;
    assert!(after["balance_nano"].as_u64().unwrap() <= before - 10_000_000);
    assert_eq!(after["reserved_nano"], 500_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_policy_sends_nothing_and_touches_no_wallet() {
    let world = World::new().await;
    fs::write(world.path("wrong.toml"), wrong_policy(&world).to_toml()).unwrap();

    let verified = world.verify("wrong.toml", &[]).await;
    assert_exit(&verified, 10);
    let table = String::from_utf8(verified.stdout).unwrap();
    assert!(
        table
            .lines()
            .any(|line| line.contains("RTMR1") && line.ends_with("FAIL")),
        "{table}"
    );

    // There is no wallet: were it looked for, the exit code would be 30.
    let asked = world.chat("wrong.toml", &[]).await;
    assert_exit(&asked, 10);
    assert!(asked.stdout.is_empty());
    let error = String::from_utf8(asked.stderr).unwrap();
    assert!(
        error.contains("RTMR1") && error.contains("what to do:"),
        "{error}"
    );
    for request in world.node.requests() {
        assert!(request.contains(" /.well-known/cocoon/"), "{request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsafe_or_missing_wallet_pays_nothing() {
    let world = World::new().await;
    assert_exit(&world.chat("policy.toml", &[]).await, 30);
    world.new_wallet().await;
    fs::set_permissions(world.path("wallet"), fs::Permissions::from_mode(0o644)).unwrap();
    let asked = world.chat("policy.toml", &[]).await;
    assert_exit(&asked, 30);
    assert!(String::from_utf8(asked.stderr).unwrap().contains("chmod 600"));
    fs::set_permissions(world.path("wallet"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(world.deposit().await["deployed"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cap_below_one_request_locks_nothing() {
    let world = World::new().await;
    world.new_wallet().await;
    let asked = world.chat("policy.toml", &["--max-ton", "0.01"]).await;
    assert_exit(&asked, 30);
    assert!(String::from_utf8(asked.stderr).unwrap().contains("--max-ton"));
    assert_eq!(world.deposit().await["balance_nano"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contract_that_is_not_compiled_in_is_not_paid() {
    let mut world = World::new().await;
    world.new_wallet().await;
    let mut guest = Guest::boot_with(&world.platform, 1, |launch| {
        launch.settlement.contract_code.depth += 1;
    });
    fs::write(world.path("policy.toml"), guest.policy().to_toml()).unwrap();
    let identity = Identity::of(&mut guest, -60, DAY_S);
    world.node = Node::serve(guest, &identity, Script::default()).await;
    let asked = world.chat("policy.toml", &[]).await;
    assert_exit(&asked, 30);
    assert!(String::from_utf8(asked.stderr).unwrap().contains("contract code"));
    assert_eq!(world.deposit().await["balance_nano"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_simulated_guest_gets_no_real_coins() {
    let mut world = World::new().await;
    world.new_wallet().await;
    let mut guest = Guest::boot_with(&world.platform, 1, |launch| {
        launch.settlement.network = cocoon_protocol::NetworkId::TESTNET;
    });
    fs::write(world.path("policy.toml"), guest.policy().to_toml()).unwrap();
    let identity = Identity::of(&mut guest, -60, DAY_S);
    world.node = Node::serve(guest, &identity, Script::default()).await;
    let asked = world.chat("policy.toml", &[]).await;
    assert_exit(&asked, 30);
    assert!(String::from_utf8(asked.stderr).unwrap().contains("SIMULATED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_files_and_absent_nodes_have_their_exit_codes() {
    let mut world = World::new().await;
    assert_exit(&world.verify("missing.toml", &[]).await, 2);
    fs::write(world.path("broken.toml"), "version = 1").unwrap();
    assert_exit(&world.verify("broken.toml", &[]).await, 2);
    let endpoint = world.node.endpoint.to_string();
    world.node = Node::honest(Guest::boot(&world.platform, 1)).await;
    let absent = world
        .cocoon(&["verify", &endpoint, "--policy", "policy.toml", "--json"])
        .await;
    assert_exit(&absent, 20);
    let report: Value = serde_json::from_slice(&absent.stdout).unwrap();
    assert_eq!(report["exit_code"], 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_prints_the_url_of_its_page_on_standard_error() {
    let world = World::new().await;
    world.new_wallet().await;
    let url = world.node.endpoint.to_string();
    let mut process = tokio::process::Command::new(env!("CARGO_BIN_EXE_cocoon"))
        .args(["proxy", "--ui", "--listen", "127.0.0.1:0", "--upstream", &url])
        .args([
            "--policy",
            "policy.toml",
            "--wallet",
            "wallet",
            "--ton-config",
            "ton.json",
        ])
        .current_dir(world.dir.path())
        .env_remove("COCOON_LOG")
        .env("XDG_STATE_HOME", world.dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // It prints its base URL when it serves.
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let base = lines.next_line().await.unwrap().unwrap();
    let address = base.strip_prefix("http://").unwrap().strip_suffix("/v1").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET /ui HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");

    process.kill().await.unwrap();
    let mut said = String::new();
    process
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .await
        .unwrap();
    let prefix = format!("page: http://{address}/ui#");
    let token = said
        .lines()
        .find_map(|line| line.strip_prefix(&prefix))
        .unwrap_or_else(|| panic!("{said}"));
    assert!(token.len() == 32 && !page.contains(token), "{said}");
}
