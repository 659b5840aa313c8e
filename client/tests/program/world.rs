//! What the program needs around it.

use std::{
    fs,
    path::PathBuf,
    process::{Output, Stdio},
};

use cocoon_settlement::{LocalChain, LocalChainHandle};
use cocoon_simulator::SimulatedPlatform;
use cocoon_verify::{Expect, Policy};
use serde_json::Value;

use crate::node::{Guest, Node, Script, now_s};

/// A folder with policy, wallet and chain, and a node that meets the policy.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) node: Node,
    pub(crate) platform: SimulatedPlatform,
    _chain: LocalChainHandle,
}

impl World {
    pub(crate) async fn new() -> Self {
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

    /// With a wallet, and a node that does as `script` says.
    pub(crate) async fn scripted(script: Script) -> Self {
        let mut world = Self::new().await;
        world.new_wallet().await;
        world.node = Node::scripted(Guest::boot(&world.platform, 1), script).await;
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) async fn cocoon(&self, arguments: &[&str]) -> Output {
        self.cocoon_reading(arguments, Stdio::null()).await
    }

    pub(crate) async fn cocoon_reading(&self, arguments: &[&str], stdin: Stdio) -> Output {
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

    pub(crate) async fn verify(&self, policy: &str, more: &[&str]) -> Output {
        let url = self.node.endpoint.to_string();
        self.cocoon(&[&["verify", &url, "--policy", policy], more].concat())
            .await
    }

    pub(crate) async fn chat(&self, policy: &str, more: &[&str]) -> Output {
        let more = [more, &["What is Cocoon?"]].concat();
        self.chat_reading(policy, &more, Stdio::null()).await
    }

    pub(crate) async fn chat_reading(&self, policy: &str, more: &[&str], stdin: Stdio) -> Output {
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

    pub(crate) async fn new_wallet(&self) {
        let made = self.cocoon(&["wallet", "new", "--out", "wallet"]).await;
        assert_exit(&made, 0);
    }

    pub(crate) async fn deposit(&self) -> Value {
        let arguments = [
            "deposit",
            "status",
            "--network",
            "local",
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
pub(crate) fn assert_exit(output: &Output, code: i32) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(
        output.status.code(),
        Some(code),
        "\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
    );
}

#[track_caller]
pub(crate) fn json(output: &Output) -> Value {
    assert_exit(output, 0);
    serde_json::from_slice(&output.stdout).expect("stdout is one JSON object")
}

pub(crate) fn wrong_policy(world: &World) -> Policy {
    let mut terms = Guest::boot(&world.platform, 1).policy_terms();
    terms.tdx_mut().unwrap().registers.rtmr1 =
        Expect::exact(cocoon_evidence::Digest48::of(b"another kernel"));
    Policy::new(terms).unwrap()
}
