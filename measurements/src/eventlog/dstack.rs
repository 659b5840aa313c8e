//! The JSON form that dstack's guest agent hands out: `[{"imr", "event_type", "digest", "event",
//! "event_payload"}]`, or an answer that holds it as text under `event_log`.

use cocoon_evidence::Rtmr;
use serde::Deserialize;

use super::{
    EventLog, EventType, HashAlgorithm, LOG_EVENTS_MAX, LogError, LogKind, LoggedDigest, LoggedEvent,
    LoggedRegister,
};

#[derive(Deserialize)]
struct Answer {
    event_log: String,
}

#[derive(Deserialize)]
struct Entry {
    imr: u32,
    event_type: u32,
    digest: String,
    #[serde(default)]
    event: String,
    #[serde(default)]
    event_payload: String,
}

pub(super) fn parse(bytes: &[u8]) -> Result<EventLog, LogError> {
    let json = |error: serde_json::Error| LogError::Json {
        reason: error.to_string(),
    };
    let entries: Vec<Entry> = if bytes.trim_ascii_start().starts_with(b"{") {
        let answer: Answer = serde_json::from_slice(bytes).map_err(json)?;
        serde_json::from_str(&answer.event_log).map_err(json)?
    } else {
        serde_json::from_slice(bytes).map_err(json)?
    };
    if entries.len() > LOG_EVENTS_MAX {
        return Err(LogError::TooManyEvents {
            offset: LOG_EVENTS_MAX,
        });
    }
    let events = entries.into_iter().enumerate();
    Ok(EventLog {
        kind: LogKind::Tdx,
        algorithms: vec![HashAlgorithm::SHA384],
        events: events
            .map(|(position, entry)| entry.into_event(position))
            .collect::<Result<_, _>>()?,
        trailing_offset: None,
    })
}

impl Entry {
    fn into_event(self, position: usize) -> Result<LoggedEvent, LogError> {
        let malformed = |reason: String| LogError::Malformed {
            offset: position,
            reason,
        };
        let register = match self.imr {
            0 => Rtmr::Rtmr0,
            1 => Rtmr::Rtmr1,
            2 => Rtmr::Rtmr2,
            3 => Rtmr::Rtmr3,
            other => return Err(malformed(format!("imr {other}, allowed are 0 to 3"))),
        };
        let event_type = EventType(self.event_type);
        let payload = hex::decode(&self.event_payload)
            .map_err(|error| malformed(format!("event_payload is not hexadecimal: {error}")))?;
        let body = match event_type {
            EventType::DSTACK_RUNTIME => [self.event.as_bytes(), b":", &payload].concat(),
            _ => payload,
        };
        let digest = if self.digest.is_empty() && event_type == EventType::DSTACK_RUNTIME {
            runtime_digest(event_type, &body)
        } else {
            hex::decode(&self.digest)
                .ok()
                .filter(|digest| digest.len() == 48)
                .ok_or_else(|| malformed("the digest is not 96 hexadecimal characters".to_owned()))?
        };
        Ok(LoggedEvent {
            offset: position,
            register: LoggedRegister::Rtmr(register),
            event_type,
            digests: vec![LoggedDigest {
                algorithm: HashAlgorithm::SHA384,
                bytes: digest,
            }],
            body,
            label: self.event,
        })
    }
}

/// `SHA-384(u32le(type) || ":" || name || ":" || payload)`; `body` is everything after the first colon
/// (dstack `cc-eventlog`, `RuntimeEvent::digest`).
pub(super) fn runtime_digest(event_type: EventType, body: &[u8]) -> Vec<u8> {
    let number = event_type.0.to_le_bytes();
    let parts = [number.as_slice(), b":", body];
    HashAlgorithm::SHA384
        .hash(&parts)
        .expect("SHA-384 is implemented")
}
