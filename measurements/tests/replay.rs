//! `cocoon-measure replay` and the parser of event logs, over public logs that nobody in this project wrote
//! (from the folder that `COCOON_VECTORS` names; without it those tests pass with a message) and over bytes
//! that an enemy would send.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use cocoon_measurements::{
    eventlog::{BodyCheck, EventLog, EventType, HashAlgorithm, LogError, LogKind},
    replay::Replay,
};
use proptest::prelude::*;
use serde_json::Value;

fn vector(name: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("COCOON_VECTORS") else {
        eprintln!("skipped: COCOON_VECTORS does not name a folder with public test vectors");
        return None;
    };
    let path = Path::new(&folder).join(name);
    assert!(path.exists(), "{} is missing", path.display());
    Some(path)
}

fn replay_command(arguments: &[&str]) -> (Output, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_cocoon-measure"))
        .arg("replay")
        .args(arguments)
        .arg("--json")
        .output()
        .unwrap();
    let document = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output, document)
}

fn pair(log: &str, quote: &str) -> Option<(Option<i32>, Value)> {
    let (log, quote) = (vector(log)?, vector(quote)?);
    let (output, document) = replay_command(&[log.to_str()?, "--quote", quote.to_str()?]);
    Some((output.status.code(), document))
}

/// Which of the four registers agree.
fn agreement(document: &Value) -> Vec<bool> {
    let rows = document["quote"]["registers"].as_array().unwrap();
    rows.iter().map(|row| row["agrees"].as_bool().unwrap()).collect()
}

#[test]
fn a_log_of_google_replays_to_its_quote() {
    let Some((code, document)) = pair(
        "eventlog/gcp_cos113/ccel_data.dat",
        "eventlog/gcp_cos113/quote_v4.dat",
    ) else {
        return;
    };
    assert_eq!((code, agreement(&document)), (Some(0), vec![true; 4]));
    assert_eq!(document["schema"], "cocoon.replay/1");
    assert_eq!(document["kind"], "tdx");
    assert_eq!(document["registers"]["rtmr3"], "00".repeat(48));
    assert_eq!(document["events"].as_array().unwrap().len(), 43);
}

#[test]
fn ima_without_log_entries_is_told_by_rtmr2_alone() {
    let Some((code, document)) = pair(
        "eventlog/ccapi_ubuntu/ccel_data.bin",
        "eventlog/ccapi_ubuntu/quote_v4.bin",
    ) else {
        return;
    };
    assert_eq!(
        (code, agreement(&document)),
        (Some(10), vec![true, true, false, true])
    );
    assert!(
        document["quote"]["registers"][2]["hint"]
            .as_str()
            .unwrap()
            .contains("IMA")
    );
}

#[test]
fn a_log_of_dstack_replays_with_its_run_time_events() {
    let name = "dstack/tdx-lite-getquote.json";
    let Some((code, document)) = pair(name, name) else {
        return;
    };
    assert_eq!((code, agreement(&document)), (Some(0), vec![true; 4]));
}

#[test]
fn a_log_of_another_machine_does_not_pass_for_the_quote() {
    let Some((code, document)) = pair("eventlog/coco/CCEL_data_ovmf", "eventlog/gcp_cos113/quote_v4.dat")
    else {
        return;
    };
    assert_eq!(
        (code, agreement(&document)),
        (Some(10), vec![false, false, false, true])
    );
}

#[test]
fn a_body_that_was_changed_is_told_though_the_registers_agree() {
    let Some(path) = vector("eventlog/gcp_cos113/ccel_data.dat") else {
        return;
    };
    let mut bytes = fs::read(path).unwrap();
    let body = b"Exit Boot Services Invocation";
    let at = bytes
        .windows(body.len())
        .position(|window| window == body)
        .unwrap();
    let honest = Replay::of(EventLog::parse(&bytes, None).unwrap());
    bytes[at] ^= 1;
    let changed = Replay::of(EventLog::parse(&bytes, None).unwrap());
    assert_eq!(changed.rtmrs(), honest.rtmrs());
    let lies = |replay: &Replay| {
        let events = replay.log.events.iter();
        events
            .filter(|event| event.check_body() == BodyCheck::Mismatch)
            .count()
    };
    assert_eq!((lies(&honest), lies(&changed)), (0, 1));
}

#[test]
fn public_logs_parse_as_others_have_parsed_them() {
    for (name, expected, events) in [
        ("eventlog/coco/CCEL_data", "eventlog/coco/CCEL_data_out.json", 5),
        (
            "eventlog/coco/CCEL_data_grub",
            "eventlog/coco/CCEL_data_grub_out.json",
            37,
        ),
        (
            "eventlog/coco/CCEL_data_ovmf",
            "eventlog/coco/CCEL_data_ovmf_out.json",
            20,
        ),
    ] {
        let (Some(log), Some(expected)) = (vector(name), vector(expected)) else {
            return;
        };
        let log = EventLog::parse(&fs::read(log).unwrap(), None).unwrap();
        assert_eq!(log.kind, LogKind::Tdx);
        assert_eq!(log.trailing_offset, None);
        let expected: Value = serde_json::from_slice(&fs::read(expected).unwrap()).unwrap();
        let rows = expected["uefi_event_logs"].as_array().unwrap();
        assert_eq!((log.events.len(), rows.len()), (events, events), "{name}");
        for (event, row) in log.events.iter().zip(rows) {
            assert_eq!(event.event_type.name(), row["type_name"].as_str(), "{name}");
            let digest = event.digest(HashAlgorithm::SHA384).unwrap().to_string();
            assert_eq!(row["digests"][0]["digest"], digest);
            let index = match event.register.to_string().as_str() {
                "rtmr0" => 1,
                "rtmr1" => 2,
                _ => 3,
            };
            assert_eq!(row["index"], index);
            if row["digest_matches_event"] == true {
                assert_eq!(event.check_body(), BodyCheck::Match);
            }
            assert_ne!(event.check_body(), BodyCheck::Mismatch, "{name}");
        }
    }
}

/// A TPM log with two banks, made by hand from the layout in PFP 1.06, section 10.2.
fn tpm_log(events: &[(u32, u32, &[u8])]) -> Vec<u8> {
    let mut header = b"Spec ID Event03\0".to_vec();
    header.extend([0, 0, 0, 0, 0, 2, 0, 2]);
    header.extend(2u32.to_le_bytes());
    header.extend([0x0b, 0, 32, 0, 0x0c, 0, 48, 0, 0]);
    let mut log = [0, 3].map(u32::to_le_bytes).concat();
    log.extend([0; 20]);
    log.extend((header.len() as u32).to_le_bytes());
    log.extend(header);
    for (index, event_type, body) in events {
        log.extend([*index, *event_type, 2].map(u32::to_le_bytes).concat());
        for algorithm in [HashAlgorithm::SHA256, HashAlgorithm::SHA384] {
            log.extend(algorithm.0.to_le_bytes());
            log.extend(algorithm.hash(&[body]).unwrap());
        }
        log.extend((body.len() as u32).to_le_bytes());
        log.extend(*body);
    }
    log
}

const SEPARATOR: u32 = EventType::SEPARATOR.0;

#[test]
fn a_tpm_log_is_replayed_in_all_its_banks() {
    let log = tpm_log(&[
        (0, EventType::NO_ACTION.0, b"StartupLocality\0\x03"),
        (0, SEPARATOR, &[0; 4]),
        (4, SEPARATOR, &[0; 4]),
    ]);
    let replay = Replay::of(EventLog::parse(&log, None).unwrap());
    assert_eq!(replay.log.kind, LogKind::Tpm);
    let algorithms: Vec<_> = replay.banks.iter().map(|bank| bank.algorithm).collect();
    assert_eq!(algorithms, [HashAlgorithm::SHA384, HashAlgorithm::SHA256]);
    for bank in &replay.banks {
        let digest = bank.algorithm.hash(&[&[0; 4]]).unwrap();
        let mut started = vec![0; digest.len()];
        let pcr4 = bank.algorithm.hash(&[&started, &digest]).unwrap();
        *started.last_mut().unwrap() = 3;
        let pcr0 = bank.algorithm.hash(&[&started, &digest]).unwrap();
        let values: Vec<_> = bank.registers.values().collect();
        assert_eq!(
            (values[0], values[4], values[5]),
            (&pcr0, &pcr4, &vec![0; digest.len()])
        );
    }
    let document = replay.to_json();
    assert_eq!(document["events"][2]["rtmr"], "rtmr1");
    assert_eq!(document["events"][0]["extended"], false);
    assert!(document["banks"]["sha256"]["pcr4"].is_string());
}

#[test]
fn every_cut_inside_an_event_is_refused_at_its_offset() {
    let log = tpm_log(&[(7, SEPARATOR, &[0; 4])]);
    let header = tpm_log(&[]).len();
    for length in 0..log.len() {
        let parsed = EventLog::parse(&log[..length], None);
        // Up to here the rest is missing as a whole, or is zero and so could be filler.
        if length == header {
            assert!(parsed.unwrap().events.is_empty());
            continue;
        }
        let Err(LogError::Truncated {
            offset, needed, left, ..
        }) = parsed
        else {
            panic!("{length} bytes: {parsed:?}");
        };
        assert!(
            offset <= length && left < needed,
            "{length}: {offset} {needed} {left}"
        );
    }
}

#[test]
fn lengths_and_counts_that_lie_are_refused() {
    let good = tpm_log(&[(7, SEPARATOR, &[0; 4])]);
    let event = tpm_log(&[]).len();
    let check = |at: usize, bytes: &[u8], says: &str| {
        let mut log = good.clone();
        log[at..at + bytes.len()].copy_from_slice(bytes);
        let error = EventLog::parse(&log, None).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    check(4, &[4], "offset 4");
    check(28, &[0xff; 4], "ends inside the header's body at offset 32");
    check(32, b"X", "Spec ID Event03");
    check(56, &[17], "17 algorithms");
    check(
        60,
        &[0x0c],
        "algorithm sha384 is repeated or has digests of 32 bytes",
    );
    check(
        event,
        &24u32.to_le_bytes(),
        "register index 24, allowed are 0 to 23",
    );
    check(event + 8, &[3], "3 digests, the header announces 2");
    check(event + 12, &[4], "algorithm sha1 is repeated or not announced");
    check(good.len() - 8, &[0xff; 4], "ends inside an event's body");
}

#[test]
fn a_td_has_no_register_beyond_rtmr3() {
    let log = tpm_log(&[(5, SEPARATOR, &[0; 4])]);
    let error = EventLog::parse(&log, Some(LogKind::Tdx)).unwrap_err();
    assert!(
        error.to_string().contains("register index 5, allowed are 0 to 4"),
        "{error}"
    );
}

#[test]
fn bytes_behind_the_filler_are_told() {
    let mut log = tpm_log(&[(7, SEPARATOR, &[0; 4])]);
    let end = log.len();
    log.extend([0xff; 32]);
    assert_eq!(EventLog::parse(&log, None).unwrap().trailing_offset, None);
    log[end + 20] = 7;
    assert_eq!(
        EventLog::parse(&log, None).unwrap().trailing_offset,
        Some(end + 20)
    );
}

#[test]
fn text_in_a_body_cannot_move_the_cursor() {
    let log = tpm_log(&[(8, EventType::IPL.0, "\x1b[2Jgrub \u{202e}\r\n\0".as_bytes())]);
    let log = EventLog::parse(&log, None).unwrap();
    let text = log.events[0].describe();
    assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{text:?}");
}

#[test]
fn a_log_that_cannot_be_parsed_agrees_with_no_quote() {
    let Some(quote) = vector("eventlog/gcp_cos113/quote_v4.dat") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    fs::write(&log, b"not a log").unwrap();
    let (output, _) = replay_command(&[log.to_str().unwrap(), "--quote", quote.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(10));
    let (output, _) = replay_command(&[log.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("offset"));
}

proptest! {
    #[test]
    fn hostile_logs_never_panic(
        mut tail in proptest::collection::vec(any::<u8>(), 0..300),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        whole in any::<bool>(),
    ) {
        let mut log = if whole { Vec::new() } else { tpm_log(&[(1, 0x8000_0001, &[0; 80]), (4, 0x8000_0003, &[0; 40])]) };
        log.append(&mut tail);
        for (at, value) in flips {
            if !log.is_empty() {
                let at = at.index(log.len());
                log[at] = value;
            }
        }
        for kind in [None, Some(LogKind::Tdx), Some(LogKind::Tpm)] {
            if let Ok(parsed) = EventLog::parse(&log, kind) {
                let _ = Replay::of(parsed).to_json();
            }
        }
    }

    #[test]
    fn hostile_bodies_never_panic(event_type in prop::sample::select(TYPES.to_vec()),
        body in proptest::collection::vec(prop_oneof![Just(0u8), Just(2), any::<u8>()], 0..260)) {
        let log = tpm_log(&[(1, event_type, &body)]);
        let parsed = EventLog::parse(&log, None).unwrap();
        let text = parsed.events[0].describe();
        prop_assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~')));
        parsed.events[0].check_body();
    }
}

const TYPES: &[u32] = &[
    0x4,
    0x6,
    0x8,
    0xa,
    0xd,
    0x0800_0001,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_0006,
    0x8000_000a,
    0x8000_000b,
    0x8000_00e0,
];
