//! Programs that nobody here wrote, unchanged, through `cocoon proxy` and a booted guest: the official `openai`
//! packages for Python and Node, curl, and a conformance suite. `scripts/test` installs them and names their folder
//! in COCOON_E2E_CLIENTS.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use cocoon_e2e::{Image, Node, describe};
use serde_json::Value;

const MODEL: &str = "cocoon-demo";

/// Of llm-comply's, those for conversations in text. The others want tools, images and reasoning, which a node
/// refuses with 400.
const CONFORMANCE_TESTS: &str = "chat-basic-response,chat-system-prompt,chat-multi-turn,chat-streaming-response,\
                                 chat-streaming-usage,chat-error-handling";

/// Where the packages are; `None`, with a message, where none were installed.
fn clients() -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("COCOON_E2E_CLIENTS") else {
        eprintln!("SKIP: COCOON_E2E_CLIENTS is not set; scripts/test installs the packages and sets it");
        return None;
    };
    let folder = PathBuf::from(folder);
    for file in [
        "python/bin/python",
        "python/bin/llm-comply",
        "node/node_modules/openai",
    ] {
        assert!(
            folder.join(file).exists(),
            "{file} is not in {}",
            folder.display()
        );
    }
    Some(folder)
}

/// `cocoon proxy` for a node, on a port of its own; ends when dropped.
struct Proxy {
    process: Child,
    url: String,
}

impl Proxy {
    fn start(node: &Node) -> Self {
        let mut command = node.proxy_command();
        let mut process = command.stdout(Stdio::piped()).spawn().expect("cocoon runs");
        let stdout = process.stdout.take().expect("its output is piped");
        let mut url = String::new();
        // It prints one line once it serves, and ends if it cannot.
        BufReader::new(stdout).read_line(&mut url).expect("its base URL");
        let url = url.trim_end().to_owned();
        assert!(url.starts_with("http://127.0.0.1:"), "cocoon proxy did not start");
        Self { process, url }
    }

    fn root(&self) -> &str {
        self.url.trim_end_matches("/v1")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn programs_of_others_work_unchanged() {
    let (Some(image), Some(clients)) = (Image::from_env(), clients()) else {
        return;
    };
    let node = Node::configure(&image);
    node.up_and_serving();
    let proxy = Proxy::start(&node);

    curl(&proxy);
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    let mut python = Command::new(clients.join("python/bin/python"));
    succeeds(
        python
            .arg(scripts.join("openai_python.py"))
            .args([&proxy.url, MODEL]),
    );
    node_script(&clients, &scripts, &proxy);
    conformance(&clients, &proxy);

    // Every answer above was paid for, and every receipt checked.
    let metrics = text(&succeeds(
        Command::new("curl").args(["-sS", &format!("{}/metrics", proxy.root())]),
    ));
    assert!(
        metrics.contains("cocoon_proxy_false_receipts_total 0\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("cocoon_proxy_requests_total{outcome=\"failed\"} 0\n"),
        "{metrics}"
    );
}

fn curl(proxy: &Proxy) {
    let body = format!(
        r#"{{"model":"{MODEL}","stream":true,"max_tokens":8,"messages":[{{"role":"user","content":"Hello"}}]}}"#
    );
    let url = format!("{}/chat/completions", proxy.url);
    let mut command = Command::new("curl");
    command.args([
        "-sS",
        "--fail",
        "-N",
        &url,
        "-H",
        "Content-Type: application/json",
        "-d",
        &body,
    ]);
    let streamed = text(&succeeds(&mut command));
    assert!(streamed.ends_with("data: [DONE]\n\n"), "{streamed}");
}

/// Node looks for packages beside the script.
fn node_script(clients: &Path, scripts: &Path, proxy: &Proxy) {
    let script = clients.join("node/openai_node.mjs");
    std::fs::copy(scripts.join("openai_node.mjs"), &script).expect("copying the script");
    succeeds(Command::new("node").arg(script).args([&proxy.url, MODEL]));
}

/// What the suite checks for chats of text, which is what a node serves.
fn conformance(clients: &Path, proxy: &Proxy) {
    let mut command = Command::new(clients.join("python/bin/llm-comply"));
    command.args([
        "--format",
        "openai-chat",
        "-k",
        "none",
        "-m",
        MODEL,
        "--json",
        "-u",
        &proxy.url,
    ]);
    command.args(["-f", CONFORMANCE_TESTS]);
    let report: Value = serde_json::from_str(&text(&succeeds(&mut command))).expect("a report in JSON");
    assert_eq!(report["summary"]["failed"], 0, "{report:#}");
    assert_eq!(
        report["summary"]["passed"],
        CONFORMANCE_TESTS.split(',').count(),
        "{report:#}"
    );
}

#[track_caller]
fn succeeds(command: &mut Command) -> Output {
    let output = command.output().expect("the program is installed");
    assert!(output.status.success(), "{command:?}\n{}", describe(&output));
    output
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
