//! GPUs, played by a task that speaks as `cocoon-gpu` does.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cocoon_agent::{
    boot::BootError,
    gpu::{GpuError, GpuProcess, Gpus},
    guest::RunError,
    serve::Deadlines,
};
use cocoon_evidence::{CertifiedEvidence, Digest32, EventKind, EvidenceBundle, GpuEvidence};
use cocoon_protocol::{
    gpu::{FromGpu, ToGpu},
    read_frame_async, write_frame_async,
};
use hyper::StatusCode;
use serde_json::json;
use tokio::{net::UnixStream, sync::Notify};

use crate::world::{Fake, Host, Script, World, boot_with, launch_document, wait_for};

/// What it says first, and what it saw.
struct Played {
    first: FromGpu,
    platform: Arc<Fake>,
    nonce: Mutex<Option<[u8; 32]>>,
    /// Events in RTMR3 when the GPUs were set ready.
    measured: Mutex<Option<usize>>,
    reset: Notify,
    /// Ends without a word where it would report the reset.
    dies: AtomicBool,
}

impl Played {
    fn new(first: FromGpu) -> Arc<Self> {
        Arc::new(Self {
            first,
            platform: Arc::new(Fake::default()),
            nonce: Mutex::default(),
            measured: Mutex::default(),
            reset: Notify::new(),
            dies: AtomicBool::new(false),
        })
    }

    async fn play(self: Arc<Self>, mut socket: UnixStream) {
        let Ok(ToGpu::Collect { nonce }) = read_frame_async(&mut socket).await else {
            panic!("the first message asks for evidence");
        };
        *self.nonce.lock().unwrap() = Some(nonce);
        write_frame_async(&mut socket, &self.first).await.unwrap();
        let Ok(ToGpu::SetReady) = read_frame_async(&mut socket).await else {
            return;
        };
        *self.measured.lock().unwrap() = Some(self.platform.extended.lock().unwrap().len());
        write_frame_async(&mut socket, &FromGpu::Ready).await.unwrap();
        self.reset.notified().await;
        if !self.dies.load(Ordering::SeqCst) {
            let reason = "a GPU was reset".into();
            write_frame_async(&mut socket, &FromGpu::Failed { reason })
                .await
                .unwrap();
        }
    }
}

struct Machine(Arc<Played>);

impl Gpus for Machine {
    fn start(&self) -> io::Result<Option<GpuProcess>> {
        let (socket, theirs) = UnixStream::pair()?;
        tokio::spawn(Arc::clone(&self.0).play(theirs));
        Ok(Some(GpuProcess {
            socket,
            guard: Box::new(()),
        }))
    }
}

fn evidence() -> GpuEvidence {
    GpuEvidence {
        report: vec![1; 60],
        certificates: vec![2; 60],
        confidential_compute: true,
        dev_tools: false,
    }
}

fn one_gpu() -> Arc<Played> {
    Played::new(FromGpu::Evidence {
        items: vec![evidence()],
    })
}

async fn serving(played: &Arc<Played>) -> World {
    let machine = Arc::new(Machine(Arc::clone(played)));
    World::start_on(Arc::clone(&played.platform), machine, 4, Deadlines::default()).await
}

async fn refused(first: FromGpu) -> BootError {
    let played = Played::new(first);
    let host = Arc::new(Host {
        document: launch_document(4),
        ..Host::default()
    });
    let machine = Arc::new(Machine(Arc::clone(&played)));
    let booted = boot_with(&host, &played.platform, &Arc::new(Script::default()), machine).await;
    assert_eq!(*played.measured.lock().unwrap(), None, "the GPUs were set ready");
    booted.err().unwrap()
}

#[tokio::test]
async fn evidence_is_asked_for_under_this_boots_nonce_and_measured_before_the_gpus_are_ready() {
    let played = one_gpu();
    let world = serving(&played).await;
    let mut client = world.client().await;
    let usage_key = client.usage_key().await;
    assert_eq!(
        *played.nonce.lock().unwrap(),
        Some(GpuEvidence::nonce(&usage_key))
    );
    // Launch document, model, usage key, GPU evidence; `ready` comes later.
    assert_eq!(*played.measured.lock().unwrap(), Some(4));
    let bundle = client.evidence().await.bundle;
    assert_eq!(bundle.gpu, [evidence()]);
    let payload = bundle.events.payload(EventKind::GpuEvidence).unwrap();
    assert_eq!(payload, GpuEvidence::event_payload(&[evidence()]));
}

/// Sixteen GPUs that fill NVML's buffers: far more than a certificate holds, and within what a verifier takes.
#[tokio::test]
async fn evidence_of_many_gpus_is_named_by_digest_and_each_connection_gets_its_own() {
    let large = GpuEvidence {
        report: vec![1; 8192],
        certificates: vec![2; 5120],
        ..evidence()
    };
    let played = Played::new(FromGpu::Evidence {
        items: vec![large.clone(); 16],
    });
    let deadlines = Deadlines {
        rotate: Duration::from_millis(50),
        ..Deadlines::default()
    };
    let machine = Arc::new(Machine(Arc::clone(&played)));
    let world = World::start_on(Arc::clone(&played.platform), machine, 4, deadlines).await;
    let mut clients = vec![world.client().await];
    while clients.len() < 2 {
        let client = world.client().await;
        if client.certificate != clients[0].certificate {
            clients.push(client);
        }
    }
    for mut client in clients {
        let named = match client.certified_evidence() {
            CertifiedEvidence::ByDigest(named) => named,
            CertifiedEvidence::Carried(_) => panic!("{} bytes", client.certificate.len()),
        };
        let (status, bytes) = client
            .send("GET", "/.well-known/cocoon/certificate-evidence", vec![])
            .await;
        assert_eq!((status, Digest32::of(&bytes)), (StatusCode::OK, named));
        let bundle = EvidenceBundle::decode(&bytes).unwrap();
        assert_eq!(bundle.gpu, vec![large.clone(); 16]);
        assert_eq!(client.evidence().await.bundle.gpu, bundle.gpu);
    }
}

#[tokio::test]
async fn a_machine_without_gpu_boots_and_says_so_in_the_register() {
    let reason = "the NVIDIA driver knows no GPU".into();
    let played = Played::new(FromGpu::Nothing { reason });
    let world = serving(&played).await;
    let bundle = world.client().await.evidence().await.bundle;
    assert!(bundle.gpu.is_empty());
    assert_eq!(bundle.events.payload(EventKind::GpuEvidence), Some(&[][..]));
    assert_eq!(*played.measured.lock().unwrap(), None);
}

#[tokio::test]
async fn gpus_that_do_not_work_end_the_boot() {
    let reason = "no permission".to_owned();
    let error = refused(FromGpu::Failed { reason }).await;
    assert!(matches!(&error, BootError::Gpu(GpuError::Failed(reason)) if reason == "no permission"));
    // Evidence of nothing is not "no GPU", and readiness that nobody asked for is not evidence.
    for first in [FromGpu::Evidence { items: vec![] }, FromGpu::Ready] {
        assert!(matches!(
            refused(first).await,
            BootError::Gpu(GpuError::Unexpected(_))
        ));
    }
}

#[tokio::test]
async fn a_gpu_that_is_reset_or_unwatched_ends_the_guest_and_what_runs_on_it() {
    for dies in [false, true] {
        let played = one_gpu();
        played.dies.store(dies, Ordering::SeqCst);
        let world = serving(&played).await;
        let (mut client, _) = world.paying_client().await;
        let answer = tokio::spawn(async move { client.chat("hang", json!({})).await });
        wait_for(|| world.script.starts.load(Ordering::SeqCst) == 1).await;
        played.reset.notify_one();
        let error = world.guest.await.unwrap().unwrap_err();
        assert!(matches!(error, RunError::Gpu(_)), "{error}");
        answer.abort();
    }
}
