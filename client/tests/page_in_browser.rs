//! The page of `cocoon proxy --ui` in a real browser, in front of a node over loopback.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod browser;
mod node;
mod proxied;

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use browser::{Browser, DEADLINE, POLL};
use node::{ANSWER, ChatScript, Guest, Node};
use proxied::{Served, World};
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

/// What a hostile model may say: none of it may become markup, code or a control character.
const HOSTILE: [&str; 3] = [
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "\u{1b}[2J\u{202e}javascript:alert(1)",
];

async fn browser() -> Option<Browser> {
    let browser = Browser::start().await;
    if browser.is_none() {
        eprintln!("skipped: Chromium is not installed (on Debian: apt-get install chromium)");
    }
    browser
}

async fn open(browser: &mut Browser, proxy: &Served) {
    browser.open(proxy.page.as_ref().unwrap()).await;
    browser.until("document.querySelector('.node') !== null").await;
}

async fn ask(browser: &mut Browser, question: &str) {
    let question = json!(question);
    let fill = format!(
        "document.getElementById('prompt').value = {question}; document.getElementById('send').click()"
    );
    browser.eval(&fill).await;
    browser
        .until("document.querySelector('.proof, .broken') !== null")
        .await;
}

/// Every request went to the proxy, and the browser had nothing to complain about.
fn assert_quiet(browser: &Browser, proxy: &Served) {
    let own = format!("http://{}/", proxy.address);
    let inside = |url: &String| url.starts_with(&own) || url.starts_with("data:") || url == "about:blank";
    assert!(browser.requested.len() > 3, "{:?}", browser.requested);
    assert!(browser.requested.iter().all(inside), "{:?}", browser.requested);
    assert_eq!(browser.complaints, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_the_verification_and_chats() {
    let Some(mut browser) = browser().await else {
        return;
    };
    let world = World::new().await;
    let node = world.node(ChatScript::default()).await;
    let proxy = world.proxy_with_page(&[&node]).await;
    open(&mut browser, &proxy).await;

    assert_eq!(
        browser
            .eval("document.getElementById('verdict').textContent")
            .await,
        "Simulated"
    );
    assert_eq!(
        browser.eval("location.hash").await,
        "",
        "the token stays out of sight"
    );
    let shown = proxy.get_json("/verification").await;
    let checks = shown["nodes"][0]["report"]["certificate"]["checks"]
        .as_array()
        .unwrap()
        .clone();
    for check in &checks {
        let name = json!(check["name"]);
        let row =
            format!("[...document.querySelectorAll('.check')].find((row) => row.dataset.name === {name})");
        for value in ["expected", "actual"] {
            let text = browser
                .eval(&format!("{row}.querySelector('.{value}').textContent"))
                .await;
            assert_eq!(text, check[value], "{name} {value}");
        }
    }
    ask(&mut browser, "What is Cocoon?").await;
    let answer = browser
        .eval("document.querySelector('.said:not(.mine) .text').textContent")
        .await;
    assert_eq!(answer, ANSWER.concat());
    let proof = browser.eval("document.querySelector('.proof').textContent").await;
    assert!(
        proof.as_str().unwrap().contains("7 + 9 tokens, 0.034 TON"),
        "{proof}"
    );
    browser
        .until("document.getElementById('paid').textContent === '0.034 TON'")
        .await;
    assert_quiet(&browser, &proxy);
    resize(&mut browser, 360, 800).await;
    let fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
    assert_eq!(browser.eval(fits).await, true, "wider than a telephone");
    look(&mut browser).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_answer_stays_text() {
    let Some(mut browser) = browser().await else {
        return;
    };
    let world = World::new().await;
    let node = world
        .node(ChatScript {
            answer: Some(HOSTILE),
            ..ChatScript::default()
        })
        .await;
    let proxy = world.proxy_with_page(&[&node]).await;
    open(&mut browser, &proxy).await;
    ask(&mut browser, "<b>hello</b>").await;
    let text = browser
        .eval("document.querySelector('.said:not(.mine) .text').textContent")
        .await;
    let neutral = HOSTILE.concat().replace(['\u{1b}', '\u{202e}'], "\u{fffd}");
    assert_eq!(text, neutral);
    let inside = "document.querySelectorAll('.log script, .log img, .log b').length";
    assert_eq!(browser.eval(inside).await, 0);
    assert_eq!(browser.eval("document.title").await, "Cocoon");
    assert_quiet(&browser, &proxy);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_appears_piece_by_piece_and_can_be_stopped() {
    let Some(mut browser) = browser().await else {
        return;
    };
    let world = World::new().await;
    let gate = Arc::new(Semaphore::new(2));
    let script = ChatScript {
        gate: Some(gate.clone()),
        ..ChatScript::default()
    };
    let node = world.node(script).await;
    let proxy = world.proxy_with_page(&[&node]).await;
    open(&mut browser, &proxy).await;
    let fill = "document.getElementById('prompt').value = 'hello'; document.getElementById('send').click()";
    browser.eval(fill).await;
    // The third piece never comes.
    let two = json!(ANSWER[..2].concat());
    let shown = "document.querySelector('.said:not(.mine) .text').textContent";
    browser.until(&format!("{shown} === {two}")).await;
    browser.eval("document.getElementById('stop').click()").await;
    browser.until("document.querySelector('.broken') !== null").await;
    assert_eq!(browser.eval(shown).await, two);
    browser.until("document.getElementById('stop').hidden").await;
    let noticed = async {
        while !proxy.get("/metrics").await.contains("outcome=\"cancelled\"} 1") {
            sleep(POLL).await;
        }
    };
    assert!(
        timeout(DEADLINE, noticed).await.is_ok(),
        "the proxy goes on with an answer that nobody wants"
    );
    assert_quiet(&browser, &proxy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_node_is_shown_with_the_row_that_failed() {
    let Some(mut browser) = browser().await else {
        return;
    };
    let world = World::new().await;
    let good = world.node(ChatScript::default()).await;
    let cheaper = Guest::boot_with(&world.platform, 1, |launch| {
        launch.prices.input_nano_per_kilotoken = 1;
    });
    let other = Node::honest(cheaper).await;
    let proxy = world.proxy_with_page(&[&other, &good]).await;
    open(&mut browser, &proxy).await;
    let verdicts = "[...document.querySelectorAll('.node')].map((node) => node.dataset.verdict).join()";
    assert_eq!(browser.eval(verdicts).await, "FAIL,SIMULATED");
    let failed = "[...document.querySelectorAll('details[open] .check')]
        .filter((row) => row.querySelector('.pill').textContent === 'FAIL').map((row) => row.dataset.name).join()";
    let failed = browser.eval(failed).await;
    assert!(
        failed.as_str().unwrap().contains("event launch-document"),
        "{failed}"
    );
    let first =
        "[...document.querySelectorAll('.node')].map((node) => node.querySelector('dt').textContent).join()";
    assert_eq!(browser.eval(first).await, "Failed,Proven fresh");
    assert_quiet(&browser, &proxy);
    resize(&mut browser, 1400, 1600).await;
    picture(&mut browser, "refused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_browser_itself_refuses_markup_and_foreign_servers() {
    let Some(mut browser) = browser().await else {
        return;
    };
    let world = World::new().await;
    let node = world.node(ChatScript::default()).await;
    let proxy = world.proxy_with_page(&[&node]).await;
    open(&mut browser, &proxy).await;
    let markup =
        "(() => { try { document.body.innerHTML = '<p>'; return 'done' } catch { return 'refused' } })()";
    assert_eq!(browser.eval(markup).await, "refused");
    for (attempt, directive) in [
        ("fetch('http://127.0.0.1:9/').catch(() => {})", "connect-src"),
        (
            "document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.1:9/' }))",
            "img-src",
        ),
    ] {
        let violation = format!(
            "new Promise((done) => {{
                addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective), {{ once: true }});
                {attempt};
            }})"
        );
        assert_eq!(browser.eval(&violation).await, directive);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_without_the_token_shows_nothing() {
    let Some(mut browser) = browser().await else {
        return;
    };
    let world = World::new().await;
    let node = world.node(ChatScript::default()).await;
    let proxy = world.proxy_with_page(&[&node]).await;
    browser.open(&format!("http://{}/ui", proxy.address)).await;
    browser.until("!document.getElementById('notice').hidden").await;
    let notice = browser
        .eval("document.getElementById('notice').textContent")
        .await;
    assert!(notice.as_str().unwrap().contains("token"), "{notice}");
    assert_eq!(
        browser.eval("document.querySelectorAll('.node').length").await,
        Value::from(0)
    );
}

async fn resize(browser: &mut Browser, width: u32, height: u32) {
    let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
    browser.call("Emulation.setDeviceMetricsOverride", size).await;
}

/// Pictures for whoever changes the page.
async fn look(browser: &mut Browser) {
    for (name, width, height, scheme) in [
        ("light", 1400, 900, "light"),
        ("dark", 1400, 900, "dark"),
        ("narrow", 390, 2400, "light"),
    ] {
        resize(browser, width, height).await;
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser.call("Emulation.setEmulatedMedia", media).await;
        picture(browser, name).await;
    }
}

/// Where `COCOON_PICTURES` names a folder.
async fn picture(browser: &mut Browser, name: &str) {
    let Ok(folder) = std::env::var("COCOON_PICTURES") else {
        return;
    };
    let picture = browser.call("Page.captureScreenshot", json!({})).await;
    let bytes = BASE64_STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
    std::fs::write(format!("{folder}/{name}.png"), bytes).unwrap();
}
