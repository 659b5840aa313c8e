//! Event logs, and the field-by-field reading of raw evidence.

use cocoon_measurements::{
    eventlog::{EventLog, LogKind},
    fields::Fields,
    replay::Replay,
};

/// CCEL, TCG2 and dstack's JSON. Replaying a log and describing its events must hold for whatever is parsed.
pub fn event_log(bytes: &[u8]) -> bool {
    let mut accepted = false;
    for kind in [None, Some(LogKind::Tdx), Some(LogKind::Tpm)] {
        let Ok(log) = EventLog::parse(bytes, kind) else {
            continue;
        };
        for event in &log.events {
            let _ = (event.check_body(), event.describe());
        }
        let replay = Replay::of(log);
        let _ = replay.to_json().to_string();
        accepted = true;
    }
    accepted
}

/// `cocoon-measure quote`: any supported quote, report or GPU evidence, without its signatures.
pub fn evidence_fields(bytes: &[u8]) -> bool {
    let Ok(fields) = Fields::parse(bytes) else {
        return false;
    };
    let _ = fields.registers();
    true
}
