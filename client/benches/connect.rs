//! What attestation costs a client that connects, beside plain TLS 1.3 of the same library, cipher suites, key
//! exchange and key type, over the same loopback, in the same run.
//!
//! `cargo bench -p cocoon --bench connect`. The node is the one of this crate's tests: the guest's evidence without a
//! guest, so that a quote costs what the simulated platform takes, which is measured and shown apart. Rows are measured
//! in turns: shown are the fastest of all turns, which other work on the machine disturbs least, and for ratios the
//! median over turns too. Nothing is asserted: a busy machine is not slow code.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a benchmark fails by panicking")]

#[path = "../tests/node/mod.rs"]
mod node;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Instant};

use cocoon::{Deadlines, Endpoint, Verifier, connect_recorded};
use cocoon_evidence::{Endorsements, ReportData};
use cocoon_simulator::SimulatedPlatform;
use cocoon_verify::{Floors, Policy};
use node::{Guest, Node, Reply, Script, now_s};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs, aws_lc_rs::kx_group},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

const TURNS: usize = 1000;
const PLAIN_NAME: &str = "cocoon.invalid";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    let platform = SimulatedPlatform::open_or_create(dir.path(), now_s()).unwrap();
    let guest = Guest::boot(&platform, 1);
    let policy = guest.policy();
    let script = Script {
        // As an agent has them: ready.
        endorsements: Reply::Bytes(Endorsements::of_tdx(platform.collateral(now_s()).unwrap()).encode()),
        ..Script::default()
    };
    let node = Node::scripted(guest, script).await;
    let warm = verifier(&policy);
    warm.connect_stream(&node.endpoint).await.unwrap();
    let plain = Plain::serve().await;
    let mut quoting = Guest::boot(&platform, 2);
    let record = record(&node.endpoint, &policy).await;

    let mut turns = Turns::default();
    for _ in 0..TURNS {
        let plain_s = seconds(plain.connect()).await;
        let warm_s = seconds(async { warm.connect_stream(&node.endpoint).await.unwrap() }).await;
        // Another verifier each time, which has seen no key.
        let cold = verifier(&policy);
        let cold_s = seconds(async { cold.connect_stream(&node.endpoint).await.unwrap() }).await;
        let quote_s = seconds(async { quoting.bundle(ReportData([1; 64])) }).await;
        let judge_s = seconds(async { record.judge(&policy, Floors::default()).unwrap() }).await;
        turns.add([plain_s, warm_s, cold_s, quote_s, judge_s]);
    }
    turns.print();
}

/// Seconds of each turn: plain, warm, cold, quote, appraisal.
#[derive(Default)]
struct Turns(Vec<[f64; 5]>);

impl Turns {
    fn add(&mut self, turn: [f64; 5]) {
        self.0.push(turn);
    }

    fn print(&self) {
        let fastest = |row: usize| self.0.iter().map(|turn| turn[row]).fold(f64::MAX, f64::min);
        let [plain, warm, cold, quote, judge] = [0, 1, 2, 3, 4].map(fastest);
        let row = |name: &str, value: f64, median: f64, unit: &str| {
            println!("{name:<52}{value:>9.3}{median:>9.3} {unit}");
        };
        let ms =
            |name: &str, s: f64, of: fn(&[f64; 5]) -> f64| row(name, s * 1e3, self.median(of) * 1e3, "ms");
        println!("{:<52}{:>9}{:>9}", "", "fastest", "median");
        ms("plain TLS 1.3 connect", plain, |turn| turn[0]);
        ms("attested connect, key proven", warm, |turn| turn[1]);
        row(
            "  ratio to plain",
            warm / plain,
            self.median(|turn| turn[1] / turn[0]),
            "",
        );
        ms("attested connect, key unknown", cold, |turn| turn[2]);
        ms("  of which the simulated quote", quote, |turn| turn[3]);
        ms(
            "  of which appraisals, of the certificate and fresh",
            judge,
            |turn| turn[4],
        );
        ms(
            "  added to a plain connect and the quote",
            cold - plain - quote,
            |turn| turn[2] - turn[0] - turn[3],
        );
    }

    fn median(&self, of: fn(&[f64; 5]) -> f64) -> f64 {
        let mut values: Vec<_> = self.0.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }
}

async fn seconds<T>(work: impl Future<Output = T>) -> f64 {
    let start = Instant::now();
    // Closing is not part of it.
    let _kept = work.await;
    start.elapsed().as_secs_f64()
}

fn verifier(policy: &Policy) -> Verifier {
    Verifier::new(policy.clone(), Floors::default(), Deadlines::default()).unwrap()
}

async fn record(endpoint: &Endpoint, policy: &Policy) -> cocoon::Record {
    let deadlines = Deadlines::default();
    let (record, session) = connect_recorded(endpoint, policy, Floors::default(), now_s(), &deadlines).await;
    session.unwrap();
    record.unwrap()
}

/// A server with an ordinary certificate of an ECDSA P-256 key, and a client that trusts it.
struct Plain {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Plain {
    async fn serve() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![PLAIN_NAME.to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(server_config(&certificate, &key)));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let Ok(mut tls) = acceptor.accept(tcp).await {
                        let _ = tls.read(&mut [0]).await;
                    }
                });
            }
        });
        Self {
            address,
            config: Arc::new(client_config(certificate)),
        }
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let name = ServerName::try_from(PLAIN_NAME).unwrap();
        let connector = TlsConnector::from(Arc::clone(&self.config));
        connector.connect(name, tcp).await.unwrap()
    }
}

/// As the node's.
fn server_config(certificate: &CertificateDer<'static>, key: &rcgen::KeyPair) -> ServerConfig {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap()
}

/// As a verifier's, but for who is trusted.
fn client_config(certificate: CertificateDer<'static>) -> ClientConfig {
    let provider = CryptoProvider {
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config
}
