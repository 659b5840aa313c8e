//! `cocoon proxy`.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context as _, anyhow};
use cocoon::{ConnectError, Deadlines, Endpoint, Exit, Fleet, Proxy, Purse, Wallet};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::{Failure, verify};
use crate::cli::ProxyArgs;

pub(super) async fn run(args: &ProxyArgs) -> Result<(), Failure> {
    let policy = super::load_policy(&args.terms)?;
    let config = super::load_ton_config(&args.ton_config)?;
    let fleet = Fleet::new(
        args.upstream.iter().cloned(),
        &policy,
        super::remembered(&args.terms, &policy)?,
        Deadlines::default(),
    );
    let fleet = fleet.map_err(Failure::of)?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}; choose another --listen", args.listen))
        .map_err(Failure::usage)?;
    let address = listener.local_addr().map_err(Failure::usage)?;

    verify_all(&fleet).await?;
    let wallet = Wallet::load(&args.wallet).map_err(Failure::of)?;
    let network = fleet.network().ok_or_else(|| Failure {
        exit: Exit::Unreachable,
        error: anyhow!("no node is verified"),
    })?;
    let purse = Purse::open(wallet, &config, network).await.map_err(Failure::of)?;
    let mut proxy = Proxy::new(fleet, purse, args.max_ton);
    if args.ui {
        let path = proxy.offer_page().context("cannot offer the page of --ui");
        eprintln!("page: http://{address}{}", path.map_err(Failure::usage)?);
    }
    eprintln!("OpenAI's API is served at the following base URL; any API key will do");
    println!("http://{address}/v1");
    // A closed pipe is the reader's choice.
    let _ = io::stdout().flush();
    tokio::select! {
        never = proxy.serve(listener) => match never {},
        stopped = stop() => stopped,
    }
}

/// Says how each node fares. Those that fail are tried again later, if there is one that does not.
async fn verify_all(fleet: &Fleet) -> Result<(), Failure> {
    let mut verified = 0;
    let mut first_error = None;
    for (endpoint, verdict) in fleet.verify().await {
        match verdict {
            Ok(proof) => {
                verified += 1;
                if proof.guest().is_simulated() {
                    eprintln!("{endpoint}: SIMULATED platform: whoever runs the host can read everything");
                } else {
                    eprintln!("{endpoint}: PASS");
                }
            }
            Err(error) => {
                say_refused(&endpoint, &error);
                first_error.get_or_insert(error);
            }
        }
    }
    match first_error {
        Some(error) if verified == 0 => Err(Failure::of(error)),
        _ => Ok(()),
    }
}

fn say_refused(endpoint: &Endpoint, error: &ConnectError) {
    eprintln!(
        "{endpoint}: FAIL: not used ({})",
        cocoon::plain(&error.to_string(), 400)
    );
    if let Some(verification) = verify::judged(error) {
        verify::print_table(&mut io::stderr(), io::stderr().is_terminal(), verification, false);
    }
    verify::explain(error);
}

async fn stop() -> Result<(), Failure> {
    let listen = |kind| {
        signal(kind)
            .context("cannot wait for signals")
            .map_err(Failure::usage)
    };
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
