//! Replays an event log: every register's value after every event, and how the last ones compare with what a
//! quote says.
//!
//! Extending is `R' = H(R || D)` for a PCR (TPM 2.0 Library Specification, part 1, section 11.4.7 "Extend") and
//! for an RTMR alike (Intel TDX Module Base Architecture Specification 1.5, "RTMR: Run-Time Measurement
//! Registers"). All registers start at zero, but PCR 0 holds the locality of a start that was measured before
//! the firmware ran (PFP 1.06, section 10.4.5.3 "StartupLocality").

use std::collections::BTreeMap;

use cocoon_evidence::{Digest48, Rtmr};
use serde_json::{Value, json};

use crate::eventlog::{EventLog, EventType, HashAlgorithm, LogKind, LoggedEvent, LoggedRegister};

/// The version of the JSON form.
pub const REPLAY_SCHEMA: &str = "cocoon.replay/1";

/// The registers that a TD has.
pub const RTMRS: [Rtmr; 4] = [Rtmr::Rtmr0, Rtmr::Rtmr1, Rtmr::Rtmr2, Rtmr::Rtmr3];

/// The values of all registers of one bank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bank {
    /// Which.
    pub algorithm: HashAlgorithm,
    /// After the last event. All four RTMRs, or PCR 0 to 15 and those above that the log names.
    pub registers: BTreeMap<LoggedRegister, Vec<u8>>,
}

/// A log after its replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// As it was parsed.
    pub log: EventLog,
    /// The banks of which every extended event has a digest and whose hash is implemented, the one that
    /// [`Self::registers`] are taken from first: SHA-384, then SHA-256, SHA-512 and SHA-1.
    pub banks: Vec<Bank>,
    /// For each event the value of its register afterwards, in the first bank; `None` if it extends nothing.
    pub values: Vec<Option<Vec<u8>>>,
}

/// How a replayed register compares with a quoted one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// Which.
    pub register: Rtmr,
    /// From the log.
    pub replayed: Digest48,
    /// From the quote.
    pub quoted: Digest48,
}

impl Compared {
    /// Whether the log explains the register.
    pub fn agrees(&self) -> bool {
        self.replayed == self.quoted
    }

    /// Why they may differ, for a person; empty if they agree.
    pub fn hint(&self) -> &'static str {
        if self.agrees() {
            return "";
        }
        match self.register {
            Rtmr::Rtmr2 => {
                "something extended it after the firmware's log ended: the kernel's IMA does, without an entry"
            }
            Rtmr::Rtmr3 if self.replayed == Digest48::ZERO => {
                "the log has no event for it; software inside the guest wrote it, and keeps its own log"
            }
            _ => "the log is not the one of this boot, is incomplete, or was changed",
        }
    }
}

impl Replay {
    /// Replays a log.
    pub fn of(log: EventLog) -> Self {
        let mut algorithms: Vec<_> = log
            .algorithms
            .iter()
            .copied()
            .filter(|one| has_all_digests(&log, *one))
            .collect();
        algorithms.sort_by_key(|algorithm| {
            PREFERENCE
                .iter()
                .position(|preferred| preferred == algorithm)
                .unwrap_or(PREFERENCE.len())
        });
        let mut banks = Vec::new();
        let mut values = vec![None; log.events.len()];
        for (position, algorithm) in algorithms.into_iter().enumerate() {
            let mut bank = Bank::reset(&log, algorithm);
            for (event, value) in log.events.iter().zip(&mut values) {
                let extended = bank.extend(event);
                if position == 0 {
                    *value = extended;
                }
            }
            banks.push(bank);
        }
        Self { log, banks, values }
    }

    /// The registers in the first bank.
    pub fn registers(&self) -> BTreeMap<LoggedRegister, Vec<u8>> {
        self.banks
            .first()
            .map(|bank| bank.registers.clone())
            .unwrap_or_default()
    }

    /// The RTMRs; `None` for the log of a TPM.
    pub fn rtmrs(&self) -> Option<[Digest48; 4]> {
        let bank = self.banks.first().filter(|_| self.log.kind == LogKind::Tdx)?;
        let value = |rtmr| {
            Some(Digest48(
                bank.registers.get(&LoggedRegister::Rtmr(rtmr))?[..]
                    .try_into()
                    .ok()?,
            ))
        };
        let [a, b, c, d] = RTMRS.map(value);
        Some([a?, b?, c?, d?])
    }

    /// Compares with the RTMRs of a quote; `None` for the log of a TPM.
    pub fn compare(&self, quoted: &[Digest48; 4]) -> Option<Vec<Compared>> {
        let replayed = self.rtmrs()?;
        let rows = RTMRS.into_iter().zip(replayed).zip(quoted);
        Some(
            rows.map(|((register, replayed), quoted)| Compared {
                register,
                replayed,
                quoted: *quoted,
            })
            .collect(),
        )
    }

    /// The events that were extended into one RTMR, and the value after each.
    pub fn events_of(&self, register: LoggedRegister) -> impl Iterator<Item = (&LoggedEvent, &[u8])> {
        let rows = self.log.events.iter().zip(&self.values);
        rows.filter(move |(event, _)| event.register == register)
            .filter_map(|(event, value)| Some((event, value.as_deref()?)))
    }

    /// The JSON form, described in `docs/MEASUREMENTS.md`.
    pub fn to_json(&self) -> Value {
        let mut document = json!({
            "schema": REPLAY_SCHEMA,
            "kind": match self.log.kind { LogKind::Tdx => "tdx", LogKind::Tpm => "tpm" },
            "registers": registers_json(&self.registers()),
            "events": self.events_json(),
        });
        if self.log.kind == LogKind::Tpm {
            let banks = self
                .banks
                .iter()
                .map(|bank| (bank.algorithm.to_string(), registers_json(&bank.registers)));
            document["banks"] = Value::Object(banks.collect());
        }
        if let Some(offset) = self.log.trailing_offset {
            document["trailing_offset"] = json!(offset);
        }
        document
    }

    fn events_json(&self) -> Vec<Value> {
        let first = self.banks.first().map(|bank| bank.algorithm);
        let rows = self.log.events.iter().zip(&self.values).enumerate();
        rows.map(|(index, (event, value))| {
            let digests = event
                .digests
                .iter()
                .map(|one| (one.algorithm.to_string(), json!(one.to_string())));
            json!({
                "index": index,
                "offset": event.offset,
                "register": event.register.to_string(),
                "rtmr": event.register.as_rtmr().map(|rtmr| LoggedRegister::Rtmr(rtmr).to_string()),
                "type": event.event_type.0,
                "type_name": event.event_type.to_string(),
                "digest": first.and_then(|bank| Some(event.digest(bank)?.to_string())),
                "digests": Value::Object(digests.collect()),
                "extended": value.is_some(),
                "value": value.as_ref().map(hex::encode),
                "body": hex::encode(&event.body),
                "body_check": event.check_body().word(),
                "description": event.describe(),
            })
        })
        .collect()
    }
}

/// SHA-384 first: it is the only bank that a TD has.
const PREFERENCE: [HashAlgorithm; 4] = [
    HashAlgorithm::SHA384,
    HashAlgorithm::SHA256,
    HashAlgorithm::SHA512,
    HashAlgorithm::SHA1,
];

fn has_all_digests(log: &EventLog, algorithm: HashAlgorithm) -> bool {
    let extended = |event: &&LoggedEvent| event.is_extended();
    PREFERENCE.contains(&algorithm)
        && log
            .events
            .iter()
            .filter(extended)
            .all(|event| event.digest(algorithm).is_some())
}

fn registers_json(registers: &BTreeMap<LoggedRegister, Vec<u8>>) -> Value {
    let rows = registers
        .iter()
        .map(|(name, value)| (name.to_string(), json!(hex::encode(value))));
    Value::Object(rows.collect())
}

impl Bank {
    fn reset(log: &EventLog, algorithm: HashAlgorithm) -> Self {
        let bytes = algorithm
            .digest_bytes()
            .expect("only implemented algorithms get here");
        let names: Vec<_> = match log.kind {
            LogKind::Tdx => RTMRS.into_iter().map(LoggedRegister::Rtmr).collect(),
            LogKind::Tpm => (0..16).map(LoggedRegister::Pcr).collect(),
        };
        let mut registers: BTreeMap<_, _> = names.into_iter().map(|name| (name, vec![0; bytes])).collect();
        if let (LogKind::Tpm, Some(locality)) = (log.kind, startup_locality(log)) {
            registers
                .entry(LoggedRegister::Pcr(0))
                .and_modify(|value| value[bytes - 1] = locality);
        }
        Self { algorithm, registers }
    }

    fn extend(&mut self, event: &LoggedEvent) -> Option<Vec<u8>> {
        if !event.is_extended() {
            return None;
        }
        let digest = event.digest(self.algorithm)?;
        let zero = || vec![0; digest.bytes.len()];
        let value = self.registers.entry(event.register).or_insert_with(zero);
        *value = self.algorithm.hash(&[value, &digest.bytes])?;
        Some(value.clone())
    }
}

fn startup_locality(log: &EventLog) -> Option<u8> {
    log.events.iter().find_map(|event| {
        let is_pcr0 = event.event_type == EventType::NO_ACTION && event.register == LoggedRegister::Pcr(0);
        match event.body.strip_prefix(b"StartupLocality\0") {
            Some([locality]) if is_pcr0 => Some(*locality),
            _ => None,
        }
    })
}
