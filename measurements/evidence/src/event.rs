//! The RTMR3 event log: five events, once each, in one order.
//!
//! Each event's digest is taken over the raw bytes that the agent received, before it parses them:
//! `SHA-384("cocoon-event-v1" || u32le(len(name)) || name || u64le(len(payload)) || payload)`.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::{Digest48, Register};

/// No event's payload is longer. The launch document, the largest, is capped well below this by the agent.
pub const EVENT_PAYLOAD_BYTES_MAX: usize = 16 * 1024;

const DOMAIN: &[u8] = b"cocoon-event-v1";

/// What an event in RTMR3 records. The order of the variants is the order in which they must occur.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum EventKind {
    /// The bytes of the launch document, as the host sent them.
    #[n(0)]
    LaunchDocument,
    /// The device-mapper table of the model volume, as the agent gave it to the kernel.
    #[n(1)]
    Model,
    /// The Ed25519 public key (32 bytes) that signs vouchers and receipts; made in the guest at this boot.
    #[n(2)]
    UsageKey,
    /// SHA-384 of the GPU evidence in the bundle; empty on a machine without GPU.
    #[n(3)]
    GpuEvidence,
    /// The engine has loaded the model; nothing is extended after this. Empty payload.
    #[n(4)]
    Ready,
}

impl EventKind {
    /// All kinds in the order in which they must occur.
    pub const ORDER: [Self; 5] = [
        Self::LaunchDocument,
        Self::Model,
        Self::UsageKey,
        Self::GpuEvidence,
        Self::Ready,
    ];

    /// The name that is hashed.
    pub fn name(self) -> &'static str {
        match self {
            Self::LaunchDocument => "launch-document",
            Self::Model => "model",
            Self::UsageKey => "usage-key",
            Self::GpuEvidence => "gpu-evidence",
            Self::Ready => "ready",
        }
    }
}

/// One entry of the event log.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RuntimeEvent {
    /// What is recorded.
    #[n(0)]
    pub kind: EventKind,
    /// The raw bytes that were measured.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub payload: Vec<u8>,
}

impl RuntimeEvent {
    /// The digest that RTMR3 is extended with.
    pub fn digest(&self) -> Digest48 {
        let name = self.kind.name().as_bytes();
        Digest48::of_parts([
            DOMAIN,
            &(name.len() as u32).to_le_bytes(),
            name,
            &(self.payload.len() as u64).to_le_bytes(),
            &self.payload,
        ])
    }
}

/// Why a log is not the log of a guest that is ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventLogError {
    /// An event is missing, repeated or out of order.
    #[error("event {position} is {found}, expected {expected}")]
    Order {
        /// Index in the log, from 0.
        position: usize,
        /// What stands there.
        found: &'static str,
        /// What has to stand there.
        expected: &'static str,
    },
    /// A payload is over [`EVENT_PAYLOAD_BYTES_MAX`].
    #[error("the payload of event {name} has {bytes} bytes, at most {EVENT_PAYLOAD_BYTES_MAX} are allowed")]
    PayloadTooLarge {
        /// Which event.
        name: &'static str,
        /// Its payload's length.
        bytes: usize,
    },
}

/// The events of RTMR3 so far, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct EventLog(#[n(0)] Vec<RuntimeEvent>);

impl EventLog {
    /// Appends the next event. The caller extends RTMR3 with the returned digest.
    ///
    /// # Errors
    /// The kind is not the next in [`EventKind::ORDER`], or the payload is too large.
    pub fn push(&mut self, kind: EventKind, payload: Vec<u8>) -> Result<Digest48, EventLogError> {
        let event = RuntimeEvent { kind, payload };
        check(self.0.len(), &event)?;
        let digest = event.digest();
        self.0.push(event);
        Ok(digest)
    }

    /// Checks that every event occurs once, in order, within its bound.
    ///
    /// # Errors
    /// Names the first event that is not as it must be.
    pub fn check_complete(&self) -> Result<(), EventLogError> {
        for (position, event) in self.0.iter().enumerate() {
            check(position, event)?;
        }
        match EventKind::ORDER.get(self.0.len()) {
            None => Ok(()),
            Some(missing) => Err(EventLogError::Order {
                position: self.0.len(),
                found: "the end of the log",
                expected: missing.name(),
            }),
        }
    }

    /// The value RTMR3 has if exactly these events were extended.
    pub fn replay(&self) -> Digest48 {
        Register::replay(&self.0.iter().map(RuntimeEvent::digest).collect::<Vec<_>>()).value()
    }

    /// The events in order.
    pub fn events(&self) -> &[RuntimeEvent] {
        &self.0
    }

    /// The payload of the first event of this kind.
    pub fn payload(&self, kind: EventKind) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|event| event.kind == kind)
            .map(|event| event.payload.as_slice())
    }
}

fn check(position: usize, event: &RuntimeEvent) -> Result<(), EventLogError> {
    let name = event.kind.name();
    match EventKind::ORDER.get(position) {
        Some(expected) if *expected == event.kind => {}
        expected => {
            let expected = expected.map_or("the end of the log", |kind| kind.name());
            return Err(EventLogError::Order {
                position,
                found: name,
                expected,
            });
        }
    }
    if event.payload.len() > EVENT_PAYLOAD_BYTES_MAX {
        return Err(EventLogError::PayloadTooLarge {
            name,
            bytes: event.payload.len(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> EventLog {
        let mut log = EventLog::default();
        for kind in EventKind::ORDER {
            log.push(kind, kind.name().into()).unwrap();
        }
        log
    }

    #[test]
    fn a_complete_log_is_accepted_and_nothing_follows_ready() {
        let mut log = complete();
        assert_eq!(log.check_complete(), Ok(()));
        assert!(log.push(EventKind::Ready, vec![]).is_err());
    }

    #[test]
    fn missing_repeated_and_reordered_events_are_refused() {
        let full = complete();
        for cut in 0..full.0.len() {
            assert!(
                EventLog(full.0[..cut].to_vec()).check_complete().is_err(),
                "cut at {cut}"
            );
        }
        let mut swapped = full.clone();
        swapped.0.swap(1, 2);
        assert!(swapped.check_complete().is_err());
        let mut repeated = full;
        repeated.0.insert(1, repeated.0[0].clone());
        assert!(repeated.check_complete().is_err());
    }

    #[test]
    fn bytes_cannot_move_between_name_and_payload() {
        let digests: Vec<_> = complete().0.iter().map(RuntimeEvent::digest).collect();
        let mut unique = digests.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), digests.len());
    }

    #[test]
    fn an_oversized_payload_is_refused() {
        let error = EventLog::default()
            .push(EventKind::LaunchDocument, vec![0; EVENT_PAYLOAD_BYTES_MAX + 1])
            .unwrap_err();
        assert!(matches!(error, EventLogError::PayloadTooLarge { .. }));
    }
}
