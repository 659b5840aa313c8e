//! The binary form: TCG PC Client Platform Firmware Profile 1.06, section 10.2.
//!
//! The first event has the old form TCG_PCR_EVENT (index u32, type u32, SHA-1 digest of 20 bytes, length u32,
//! body) and its body is a TCG_EfiSpecIDEvent; all others are TCG_PCR_EVENT2 (index u32, type u32, digest count
//! u32, {algorithm u16, digest}*, length u32, body). All numbers are little endian. No length of the whole is
//! written anywhere: the log ends at filler (0xff in a CCEL area, 0 elsewhere) or with the file.

use super::{
    EventLog, EventType, HashAlgorithm, LOG_EVENTS_MAX, LogError, LogKind, LoggedDigest, LoggedEvent,
    LoggedRegister,
};

const SPEC_ID: &[u8; 16] = b"Spec ID Event03\0";
const LEGACY_DIGEST_BYTES: usize = 20;

/// The registry knows 9 hash algorithms; no machine has as many banks.
const ALGORITHMS_MAX: usize = 16;

/// Index that edk2 gives the header of a CCEL (that of RTMR0).
const CCEL_HEADER_INDEX: u32 = 1;

pub(super) fn parse(bytes: &[u8], kind: Option<LogKind>) -> Result<EventLog, LogError> {
    let mut reader = Reader { bytes, at: 0 };
    let header = Header::read(&mut reader)?;
    let mut raw = Vec::new();
    while !reader.at_filler() {
        if raw.len() == LOG_EVENTS_MAX {
            return Err(LogError::TooManyEvents { offset: reader.at });
        }
        raw.push(RawEvent::read(&mut reader, &header.algorithms)?);
    }
    let kind = kind.unwrap_or_else(|| guess(&header, &raw));
    let events = raw
        .into_iter()
        .map(|event| event.with_kind(kind))
        .collect::<Result<_, _>>()?;
    Ok(EventLog {
        kind,
        algorithms: header
            .algorithms
            .iter()
            .map(|(algorithm, _)| *algorithm)
            .collect(),
        events,
        trailing_offset: reader.trailing_offset(),
    })
}

fn guess(header: &Header, events: &[RawEvent]) -> LogKind {
    let only_sha384 = matches!(header.algorithms[..], [(HashAlgorithm::SHA384, _)]);
    let td_indexes = events
        .iter()
        .all(|event| (1..=4).contains(&event.index) || event.event_type == EventType::NO_ACTION);
    if only_sha384 && (header.index == CCEL_HEADER_INDEX || td_indexes) {
        LogKind::Tdx
    } else {
        LogKind::Tpm
    }
}

struct Header {
    index: u32,
    algorithms: Vec<(HashAlgorithm, usize)>,
}

impl Header {
    fn read(reader: &mut Reader<'_>) -> Result<Self, LogError> {
        let index = reader.u32("the header's index")?;
        let event_type = EventType(reader.u32("the header's type")?);
        if event_type != EventType::NO_ACTION {
            return Err(malformed(
                4,
                format!("the first event has type {event_type}, not EV_NO_ACTION"),
            ));
        }
        reader.take(LEGACY_DIGEST_BYTES, "the header's digest")?;
        let length = reader.u32("the header's length")? as usize;
        let start = reader.at;
        let body = reader.take(length, "the header's body")?;
        let algorithms = Self::read_body(body, start)?;
        Ok(Self { index, algorithms })
    }

    /// TCG_EfiSpecIDEvent: signature, platform class u32, minor, major, errata, size of UINTN u8 each,
    /// number of algorithms u32, {algorithm u16, digest bytes u16}*, vendor bytes u8, vendor information.
    fn read_body(body: &[u8], start: usize) -> Result<Vec<(HashAlgorithm, usize)>, LogError> {
        let mut reader = Reader { bytes: body, at: 0 };
        let inner = |error: LogError| error.shifted(start);
        if reader.take(SPEC_ID.len(), "the signature").map_err(inner)? != SPEC_ID {
            return Err(malformed(
                start,
                "the header's signature is not \"Spec ID Event03\"".into(),
            ));
        }
        reader.take(8, "class and version").map_err(inner)?;
        let at = start + reader.at;
        let count = reader.u32("the number of algorithms").map_err(inner)? as usize;
        if !(1..=ALGORITHMS_MAX).contains(&count) {
            let reason = format!("{count} algorithms announced, 1 to {ALGORITHMS_MAX} are allowed");
            return Err(malformed(at, reason));
        }
        let mut algorithms = Vec::with_capacity(count);
        for _ in 0..count {
            let at = start + reader.at;
            let algorithm = HashAlgorithm(reader.u16("an algorithm").map_err(inner)?);
            let bytes = usize::from(reader.u16("a digest size").map_err(inner)?);
            let fits = algorithm.digest_bytes().is_none_or(|known| known == bytes);
            if !fits || bytes == 0 || algorithms.iter().any(|(other, _)| *other == algorithm) {
                let reason = format!("algorithm {algorithm} is repeated or has digests of {bytes} bytes");
                return Err(malformed(at, reason));
            }
            algorithms.push((algorithm, bytes));
        }
        let vendor_bytes = reader.take(1, "the vendor's length").map_err(inner)?[0];
        reader
            .take(vendor_bytes.into(), "the vendor's information")
            .map_err(inner)?;
        Ok(algorithms)
    }
}

/// An event whose index has no meaning yet.
struct RawEvent {
    offset: usize,
    index: u32,
    event_type: EventType,
    digests: Vec<LoggedDigest>,
    body: Vec<u8>,
}

impl RawEvent {
    fn read(reader: &mut Reader<'_>, announced: &[(HashAlgorithm, usize)]) -> Result<Self, LogError> {
        let offset = reader.at;
        let index = reader.u32("an event's index")?;
        let event_type = EventType(reader.u32("an event's type")?);
        let count = reader.u32("an event's digest count")? as usize;
        if count > announced.len() {
            let reason = format!(
                "{count} digests, the header announces {} algorithms",
                announced.len()
            );
            return Err(malformed(offset + 8, reason));
        }
        let mut digests: Vec<LoggedDigest> = Vec::with_capacity(count);
        for _ in 0..count {
            let at = reader.at;
            let algorithm = HashAlgorithm(reader.u16("a digest's algorithm")?);
            let known = announced.iter().find(|(other, _)| *other == algorithm);
            let repeated = digests.iter().any(|digest| digest.algorithm == algorithm);
            let Some((_, bytes)) = known.filter(|_| !repeated) else {
                return Err(malformed(
                    at,
                    format!("algorithm {algorithm} is repeated or not announced"),
                ));
            };
            let bytes = reader.take(*bytes, "a digest")?.to_vec();
            digests.push(LoggedDigest { algorithm, bytes });
        }
        let length = reader.u32("an event's length")? as usize;
        let body = reader.take(length, "an event's body")?.to_vec();
        Ok(Self {
            offset,
            index,
            event_type,
            digests,
            body,
        })
    }

    fn with_kind(self, kind: LogKind) -> Result<LoggedEvent, LogError> {
        let Some(register) = LoggedRegister::of_index(kind, self.index) else {
            let (index, allowed) = (
                self.index,
                if kind == LogKind::Tdx { "0 to 4" } else { "0 to 23" },
            );
            return Err(malformed(
                self.offset,
                format!("register index {index}, allowed are {allowed}"),
            ));
        };
        let event = LoggedEvent {
            offset: self.offset,
            register,
            event_type: self.event_type,
            digests: self.digests,
            body: self.body,
            label: String::new(),
        };
        if kind == LogKind::Tdx && event.is_extended() && event.digest(HashAlgorithm::SHA384).is_none() {
            return Err(malformed(
                event.offset,
                "an event of a TD without a SHA-384 digest".into(),
            ));
        }
        Ok(event)
    }
}

fn malformed(offset: usize, reason: String) -> LogError {
    LogError::Malformed { offset, reason }
}

impl LogError {
    fn shifted(mut self, by: usize) -> Self {
        if let Self::Truncated { offset, .. } = &mut self {
            *offset += by;
        }
        self
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    fn take(&mut self, needed: usize, field: &'static str) -> Result<&'a [u8], LogError> {
        let (offset, left) = (self.at, self.rest().len());
        let taken = self.rest().get(..needed).ok_or(LogError::Truncated {
            offset,
            field,
            needed,
            left,
        })?;
        self.at += needed;
        Ok(taken)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, LogError> {
        Ok(u16::from_le_bytes(
            self.take(2, field)?.try_into().expect("two bytes were taken"),
        ))
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, LogError> {
        Ok(u32::from_le_bytes(
            self.take(4, field)?.try_into().expect("four bytes were taken"),
        ))
    }

    /// Eight bytes of filler cannot start an event: index 0xffffffff does not exist, and EV_PREBOOT_CERT (type
    /// 0) in register 0 is reserved and not to be used.
    fn at_filler(&self) -> bool {
        let start = &self.rest()[..self.rest().len().min(8)];
        start.iter().all(|byte| *byte == 0xff) || start.iter().all(|byte| *byte == 0)
    }

    fn trailing_offset(&self) -> Option<usize> {
        let filler = *self.rest().first()?;
        let past = self.rest().iter().position(|byte| *byte != filler)?;
        Some(self.at + past)
    }
}
