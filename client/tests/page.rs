//! The page of `cocoon proxy --ui`: who gets it, and what only it may ask.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod node;
mod proxied;

use hyper::{Request, StatusCode};
use node::ChatScript;
use proxied::{PROMPT, Served, World, chat, text};
use serde_json::Value;

const TOKEN: &str = "x-cocoon-token";

fn token(proxy: &Served) -> String {
    let url = proxy.page.as_ref().unwrap();
    url.split_once('#').unwrap().1.to_owned()
}

fn own_origin(proxy: &Served) -> String {
    format!("http://{}", proxy.address)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_may_run_its_own_script_only_and_be_framed_by_nobody() {
    let world = World::new().await;
    let node = world.node(ChatScript::default()).await;
    let proxy = world.proxy_with_page(&[&node]).await;
    let url = format!("http://{}/ui", proxy.address);
    let page = proxy.send(Request::get(&url), &Value::Null).await;
    assert_eq!(page.status(), StatusCode::OK);
    let header = |name: &str| page.headers()[name].to_str().unwrap().to_owned();
    let policy = header("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'; script-src 'sha256-"),
        "{policy}"
    );
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert_eq!(header(name), value, "{name}");
    }
    assert!(
        !text(page).await.contains(&token(&proxy)),
        "whoever connects gets the page"
    );
    for (name, value) in [
        ("host", "attacker.example"),
        ("origin", "https://attacker.example"),
    ] {
        let refused = proxy
            .send(Request::get(&url).header(name, value), &Value::Null)
            .await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_page_from_the_same_address_cannot_spend_or_look_without_the_token() {
    let world = World::new().await;
    let node = world.node(ChatScript::default()).await;
    let proxy = world.proxy_with_page(&[&node]).await;
    let origin = own_origin(&proxy);
    let wrong = "0".repeat(token(&proxy).len());
    for given in [None, Some(""), Some(wrong.as_str())] {
        let mut post = proxy.post().header("origin", &origin);
        let url = format!("{origin}/receipts");
        let mut get = Request::get(url).header("sec-fetch-site", "same-origin");
        if let Some(given) = given {
            (post, get) = (post.header(TOKEN, given), get.header(TOKEN, given));
        }
        let asked = proxy.send(post, &chat(true)).await;
        assert_eq!(asked.status(), StatusCode::FORBIDDEN, "{given:?}");
        let looked = proxy.send(get, &Value::Null).await;
        assert_eq!(looked.status(), StatusCode::FORBIDDEN, "{given:?}");
    }
    assert!(!String::from_utf8_lossy(&node.received()).contains(PROMPT));

    let post = proxy
        .post()
        .header("origin", &origin)
        .header(TOKEN, token(&proxy));
    assert_eq!(proxy.send(post, &chat(false)).await.status(), StatusCode::OK);
    // Elsewhere the token opens nothing.
    let foreign = proxy.post().header("origin", "https://attacker.example");
    let asked = proxy
        .send(foreign.header(TOKEN, token(&proxy)), &chat(true))
        .await;
    assert_eq!(asked.status(), StatusCode::FORBIDDEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_need_no_token() {
    let world = World::new().await;
    let node = world.node(ChatScript::default()).await;
    let proxy = world.proxy_with_page(&[&node]).await;
    assert_eq!(proxy.chat(false).await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_page_no_request_of_a_page_is_answered() {
    let world = World::new().await;
    let node = world.node(ChatScript::default()).await;
    let proxy = world.proxy(&[&node]).await;
    let url = format!("http://{}/ui", proxy.address);
    let none = proxy.send(Request::get(url), &Value::Null).await;
    assert_eq!(none.status(), StatusCode::NOT_FOUND);
    let post = proxy
        .post()
        .header("origin", own_origin(&proxy))
        .header(TOKEN, "");
    assert_eq!(
        proxy.send(post, &chat(true)).await.status(),
        StatusCode::FORBIDDEN
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_row_that_is_shown_has_an_explanation() {
    let world = World::new().await;
    let node = world.node(ChatScript::default()).await;
    let proxy = world.proxy(&[&node]).await;
    let shown = proxy.get_json("/verification").await;
    let report = &shown["nodes"][0]["report"];
    for part in ["certificate", "fresh"] {
        for check in report[part]["checks"].as_array().unwrap() {
            let about = &shown["about"][check["name"].as_str().unwrap()];
            assert!(about.as_str().is_some_and(|about| !about.is_empty()), "{check}");
        }
    }
}
