//! `cocoon proxy --ui`: what it prints.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use crate::world::World;

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
