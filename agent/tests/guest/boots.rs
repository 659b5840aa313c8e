//! Boots that have to fail, and what is in the register by then.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use cocoon_agent::boot::BootError;
use cocoon_evidence::{Digest48, EventKind, RuntimeEvent};
use cocoon_protocol::{LaunchDocument, host::Stage};
use tokio::time::advance;

use crate::world::{Fake, Host, NoGpus, OtherDisk, Script, StuckDisk, boot_from, boot_with, launch_document};

/// Why a guest with this launch document does not boot, and what is in the register by then.
async fn refused(document: &[u8]) -> (BootError, Vec<Digest48>) {
    let host = Arc::new(Host {
        document: document.to_vec(),
        ..Host::default()
    });
    let (platform, script) = (Arc::new(Fake::default()), Arc::new(Script::default()));
    let booted = boot_with(&host, &platform, &script, Arc::new(NoGpus)).await;
    let extended = platform.extended.lock().expect("nobody panicked").clone();
    (booted.err().expect("it does not boot"), extended)
}

#[tokio::test]
async fn a_malformed_launch_document_is_extended_and_then_refused() {
    let document = b"{not json";
    let (error, extended) = refused(document).await;
    assert!(matches!(error, BootError::Document(_)), "{error}");
    let event = RuntimeEvent {
        kind: EventKind::LaunchDocument,
        payload: document.to_vec(),
    };
    assert_eq!(extended, [event.digest()]);
}

#[tokio::test]
async fn an_oversized_launch_document_is_refused_unmeasured() {
    let (error, extended) = refused(&[b' '; 9 * 1024]).await;
    assert!(matches!(error, BootError::TooLarge { .. }), "{error}");
    assert!(extended.is_empty());
}

#[tokio::test]
async fn a_disk_that_holds_another_model_is_in_the_register_and_ends_the_boot() {
    let host = Arc::new(Host {
        document: launch_document(4),
        ..Host::default()
    });
    let (platform, script) = (Arc::new(Fake::default()), Arc::new(Script::default()));
    let refused = boot_from(Arc::new(OtherDisk), &host, &platform, &script, Arc::new(NoGpus)).await;
    assert!(matches!(refused.err().unwrap(), BootError::Volume(_)));
    let launch = LaunchDocument::parse(&host.document).unwrap();
    let payloads = [
        (EventKind::LaunchDocument, host.document.clone()),
        (
            EventKind::Model,
            launch.model.verity.table("/dev/vdb").into_bytes(),
        ),
    ];
    let events = payloads.map(|(kind, payload)| RuntimeEvent { kind, payload }.digest());
    assert_eq!(*platform.extended.lock().unwrap(), events);
}

/// Ten minutes from when they are first read, however long the engine takes beside them.
#[tokio::test(start_paused = true)]
async fn disks_that_do_not_answer_end_the_boot_in_time() {
    let host = Arc::new(Host {
        document: launch_document(4),
        ..Host::default()
    });
    let (platform, script) = (Arc::new(Fake::default()), Arc::new(Script::default()));
    script.loads_slowly.store(true, Ordering::SeqCst);
    let (answer, disk) = std::sync::mpsc::channel();
    let disk = Arc::new(StuckDisk(disk.into()));
    let boot = {
        let (host, platform, script) = (host.clone(), platform.clone(), script.clone());
        tokio::spawn(async move { boot_from(disk, &host, &platform, &script, Arc::new(NoGpus)).await })
    };
    settle(|| platform.extended.lock().unwrap().len() == 4).await;
    advance(Duration::from_secs(200)).await;
    script.go.notify_one();
    settle(|| host.stages.lock().unwrap().contains(&Stage::Engine)).await;
    advance(Duration::from_secs(401)).await;
    settle(|| boot.is_finished()).await;
    drop(answer);
    assert!(matches!(boot.await.unwrap().err().unwrap(), BootError::Disks));
}

/// Lets every task run until this is so; no time passes.
async fn settle(mut so: impl FnMut() -> bool) {
    for _ in 0..1_000_000 {
        if so() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it never came true");
}
