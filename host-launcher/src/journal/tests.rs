//! Records outlive crashes, full disks and torn tails.

use cocoon_protocol::{AccountAddress, NetworkId, TokenCounts, Voucher, host::UsageRecord};
use ed25519_dalek::SigningKey;

use super::*;

pub(crate) fn record(agent: u8, number: u64) -> UsageRecord {
    let agent = SigningKey::from_bytes(&[agent; 32]);
    let served = TokenCounts {
        input: number * 10,
        output: number * 20,
    };
    let voucher = Voucher {
        network: NetworkId::LOCAL,
        contract: AccountAddress(Digest32::of(b"contract")),
        agent_key: agent.verifying_key().to_bytes(),
        grant: Digest32::of(b"grant"),
        served,
    };
    UsageRecord {
        number,
        tokens: TokenCounts {
            input: 10,
            output: 20,
        },
        commitment: Digest32::ZERO,
        voucher: voucher.sign(&agent),
    }
}

/// The journal, its entries, and how many torn bytes were cut.
fn open(path: &Path) -> Result<(Journal, Vec<Entry>, u64), OpenError> {
    let mut entries = vec![];
    let (journal, torn_bytes) = Journal::open(path, |entry| entries.push(entry))?;
    Ok((journal, entries, torn_bytes))
}

fn records(numbers: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    numbers.map(|number| Entry::Record(record(1, number))).collect()
}

fn seen() -> Seen {
    Seen {
        grant: Digest32::of(b"grant"),
        expires_s: 1_800_000_000,
        prices: Prices {
            input_nano_per_kilotoken: 1,
            output_nano_per_kilotoken: 2,
        },
        paid_nano: 3,
    }
}

fn filled(path: &Path, records: u64) {
    let (mut journal, ..) = open(path).unwrap();
    for number in 1..=records {
        assert!(journal.append(&record(1, number)).unwrap());
    }
}

#[test]
fn records_survive_a_restart_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    filled(&path, 3);
    let (_, entries, torn_bytes) = open(&path).unwrap();
    assert_eq!(entries, records(1..=3));
    assert_eq!(torn_bytes, 0);
}

#[test]
fn what_the_chain_showed_stands_between_records_and_survives_likewise() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    filled(&path, 1);
    let (mut journal, ..) = open(&path).unwrap();
    journal.append_seen(seen()).unwrap();
    let length = std::fs::metadata(&path).unwrap().len();
    journal.append(&record(1, 2)).unwrap();
    let expected = [records(1..=1), vec![Entry::Seen(seen())], records(2..=2)].concat();
    assert_eq!(open(&path).unwrap().1, expected);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(length - 1)
        .unwrap();
    assert_eq!(open(&path).unwrap().1, records(1..=1));
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_the_rest_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    filled(&path, 2);
    let whole = std::fs::read(&path).unwrap();
    let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for cut in second + 1..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let (mut journal, entries, torn_bytes) = open(&path).unwrap();
        assert_eq!(entries, records(1..=1), "cut at {cut}");
        assert_eq!(torn_bytes, (cut - second) as u64);
        assert!(journal.append(&record(1, 2)).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn damage_before_the_end_is_reported_and_nothing_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    filled(&path, 3);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(open(&path), Err(OpenError::Damaged { line: 1, .. })));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn two_damaged_entries_at_the_end_are_no_crash_and_are_not_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    filled(&path, 3);
    let mut bytes = std::fs::read(&path).unwrap();
    let second = bytes.len() / 3 + 100;
    let third = bytes.len() - 100;
    bytes[second] ^= 1;
    bytes[third] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(open(&path), Err(OpenError::Damaged { line: 2, .. })));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn records_of_another_version_are_not_taken_for_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let json = br#"{"number":1,"written_by":"a later version"}"#;
    let entry = format!("{} {} ", json.len(), Digest32::of(json));
    let bytes = [entry.as_bytes(), json, b"\n"].concat();
    for entries in [1, 2] {
        let bytes = bytes.repeat(entries);
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(open(&path), Err(OpenError::Foreign { line: 1, .. })));
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn a_record_delivered_twice_is_stored_once_even_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    filled(&path, 2);
    let before = std::fs::read(&path).unwrap();
    let (mut journal, ..) = open(&path).unwrap();
    assert!(!journal.append(&record(1, 2)).unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert!(
        journal.append(&record(2, 2)).unwrap(),
        "another agent counts anew"
    );
}

#[test]
fn numbers_are_kept_of_the_latest_agents_only() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, ..) = open(&dir.path().join("journal")).unwrap();
    let agents = 1..=RECENT_AGENTS_MAX as u8;
    for agent in agents.clone() {
        assert!(journal.append(&record(agent, 1)).unwrap());
    }
    for agent in agents {
        assert!(!journal.append(&record(agent, 1)).unwrap());
    }
    journal.append(&record(100, 1)).unwrap();
    assert_eq!(journal.recent.len(), RECENT_AGENTS_MAX);
    assert!(!journal.append(&record(2, 1)).unwrap());
}

#[test]
fn a_number_used_for_another_record_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, ..) = open(&dir.path().join("journal")).unwrap();
    journal.append(&record(1, 1)).unwrap();
    let mut other = record(1, 2);
    other.number = 1;
    assert!(matches!(
        journal.append(&other),
        Err(AppendError::Conflict { number: 1 })
    ));
}

/// A disk with room for so many bytes; what does not fit is written in part, as on a real one.
#[derive(Default)]
struct SmallDisk {
    bytes: Vec<u8>,
    room: usize,
    truncate_fails: bool,
}

impl Storage for SmallDisk {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        assert_eq!(offset, self.bytes.len() as u64, "a gap or an overwrite");
        let fits = bytes.len().min(self.room - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..fits]);
        if fits < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        if self.truncate_fails {
            return Err(io::ErrorKind::Other.into());
        }
        self.bytes.truncate(length as usize);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_refuses_the_record_and_takes_it_once_there_is_room() {
    let encoded = |number| encode(&json_of(&record(1, number)));
    let entry_bytes = encoded(1).len();
    for truncate_fails in [false, true] {
        let disk = SmallDisk {
            room: entry_bytes + entry_bytes / 2,
            truncate_fails,
            ..SmallDisk::default()
        };
        let mut journal = Journal::over(disk, 0);
        journal.append(&record(1, 1)).unwrap();
        let error = journal.append(&record(1, 2)).unwrap_err();
        assert!(error.to_string().contains("free some space"));
        journal.storage.room = entry_bytes * 4;
        journal.storage.truncate_fails = false;
        assert!(journal.append(&record(1, 2)).unwrap());
        let expected = [encoded(1), encoded(2)].concat();
        assert_eq!(journal.storage.bytes, expected);
    }
}

#[test]
fn a_renewed_journal_goes_on_with_what_was_picked_and_the_old_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (path, kept) = (dir.path().join("journal"), dir.path().join("journal.until-7"));
    filled(&path, 3);
    let (mut journal, ..) = open(&path).unwrap();
    journal.append_seen(seen()).unwrap();
    let old = std::fs::read(&path).unwrap();
    let second = Entry::Record(record(1, 2));
    journal.renew(&path, &kept, |entry| *entry != second).unwrap();
    assert!(journal.append(&record(1, 4)).unwrap());
    assert!(!journal.append(&record(1, 2)).unwrap(), "still known");
    let (_, entries, torn_bytes) = open(&path).unwrap();
    let expected = [
        Entry::Record(record(1, 1)),
        Entry::Record(record(1, 3)),
        Entry::Seen(seen()),
        Entry::Record(record(1, 4)),
    ];
    assert_eq!((entries.as_slice(), torn_bytes), (&expected[..], 0));
    assert_eq!(std::fs::read(&kept).unwrap(), old);
}

#[test]
fn a_journal_that_cannot_be_renewed_is_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (path, kept) = (dir.path().join("journal"), dir.path().join("journal.until-7"));
    filled(&path, 2);
    std::fs::write(&kept, "the provider's books").unwrap();
    let (mut journal, ..) = open(&path).unwrap();
    journal.renew(&path, &kept, |_| false).unwrap_err();
    assert!(!dir.path().join("journal.new").exists());
    assert!(journal.append(&record(1, 3)).unwrap());
    assert_eq!(open(&path).unwrap().1, records(1..=3));
    assert_eq!(std::fs::read(&kept).unwrap(), b"the provider's books");
}
