//! Chromium without a window, spoken to over its debugging pipe: JSON messages that end with a zero byte. What the
//! page asks of the network and what the browser complains about is kept.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's scaffolding fails the test"
)]

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{sleep, timeout},
};

const PROGRAM: &str = "/usr/bin/chromium";
/// For one answer of a browser on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// A browser with one page; ends when dropped.
pub(crate) struct Browser {
    _process: Child,
    _profile: tempfile::TempDir,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    page: String,
    last_id: u64,
    /// URLs of every request.
    pub(crate) requested: Vec<String>,
    /// What stands in the console and in the browser's log, with exceptions.
    pub(crate) complaints: Vec<String>,
}

impl Browser {
    /// `None` where no Chromium is installed.
    pub(crate) async fn start() -> Option<Self> {
        if !Path::new(PROGRAM).exists() {
            return None;
        }
        let profile = tempfile::tempdir().unwrap();
        // The pipe's ends are descriptors 3 and 4. Tests run as root in a container, where Chromium's own sandbox
        // does not work; it sees pages of this test only.
        let mut process = Command::new("sh")
            .args([
                "-c",
                "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1",
                "sh",
                PROGRAM,
            ])
            .args([
                "--headless=new",
                "--remote-debugging-pipe",
                "--no-sandbox",
                "--disable-gpu",
            ])
            .args([
                "--no-first-run",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .env("HOME", profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut browser = Self {
            input: process.stdin.take().unwrap(),
            output: BufReader::new(process.stdout.take().unwrap()),
            _process: process,
            _profile: profile,
            page: String::new(),
            last_id: 0,
            requested: vec![],
            complaints: vec![],
        };
        browser.attach().await;
        Some(browser)
    }

    async fn attach(&mut self) {
        let target = self
            .call("Target.createTarget", json!({"url": "about:blank"}))
            .await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = self.call("Target.attachToTarget", attach).await;
        self.page = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Network", "Log"] {
            self.call(&format!("{domain}.enable"), json!({})).await;
        }
    }

    pub(crate) async fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", json!({"url": url})).await;
        assert_eq!(opened["errorText"], Value::Null, "{url}");
        // It answers when the document has begun.
        self.until("document.readyState === 'complete'").await;
    }

    /// The value of a JavaScript expression.
    pub(crate) async fn eval(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let evaluated = self.call("Runtime.evaluate", asked).await;
        assert_eq!(evaluated["exceptionDetails"], Value::Null, "{expression}");
        evaluated["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub(crate) async fn until(&mut self, expression: &str) {
        let wait = async {
            while self.eval(expression).await != true {
                sleep(POLL).await;
            }
        };
        let came = timeout(DEADLINE, wait).await;
        assert!(came.is_ok(), "{expression}: {:?}", self.complaints);
    }

    pub(crate) async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut message = json!({"id": self.last_id, "method": method, "params": params});
        if !self.page.is_empty() {
            message["sessionId"] = json!(self.page);
        }
        let bytes = [message.to_string().as_bytes(), b"\0"].concat();
        self.input.write_all(&bytes).await.unwrap();
        let answered = timeout(DEADLINE, self.answer(self.last_id)).await;
        let Ok(answer) = answered else {
            panic!("the browser does not answer {method}");
        };
        assert_eq!(answer["error"], Value::Null, "{method}");
        answer["result"].clone()
    }

    async fn answer(&mut self, id: u64) -> Value {
        loop {
            let mut bytes = vec![];
            self.output.read_until(0, &mut bytes).await.unwrap();
            assert_eq!(bytes.pop(), Some(0), "the browser ended");
            let message: Value = serde_json::from_slice(&bytes).unwrap();
            if message["id"] == id {
                return message;
            }
            self.note(&message);
        }
    }

    fn note(&mut self, message: &Value) {
        let params = &message["params"];
        match message["method"].as_str().unwrap_or_default() {
            "Network.requestWillBeSent" => {
                let url = params["request"]["url"].as_str().unwrap();
                self.requested.push(url.to_owned());
            }
            "Log.entryAdded" | "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" => {
                self.complaints.push(params.to_string());
            }
            _ => {}
        }
    }
}
