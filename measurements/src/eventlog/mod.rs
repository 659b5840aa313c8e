//! Event logs: what firmware, boot loader and kernel say that they extended registers with.
//!
//! Two binary forms share one layout (TCG PC Client Platform Firmware Profile 1.06, section 10, "Event
//! Logging"): the log of a TPM, and the confidential-computing log (CCEL) that TDX firmware keeps (Guest
//! Hypervisor Communication Interface for TDX 1.5, section "TD measurement"; UEFI 2.10, section 38). dstack
//! writes its log as JSON. [`EventLog::parse`] takes all three.
//!
//! A log is only a claim: what makes it true is that [`crate::replay`] of its digests equals the registers in a
//! signed quote. The bodies are not even that: a digest may have been taken over something else, so each event
//! says what its body is worth ([`LoggedEvent::check_body`]).

mod body;
mod describe;
mod device_path;
mod dstack;
mod event_type;
mod hash;
mod tcg;

pub use body::BodyCheck;
pub use event_type::EventType;
pub use hash::{HashAlgorithm, LoggedDigest};

use std::fmt;

use cocoon_evidence::Rtmr;

/// A longer log is refused before it is parsed. Firmware reserves 64 KiB to 1 MiB.
pub const LOG_BYTES_MAX: usize = 16 * 1024 * 1024;

/// No real log has more; GRUB's, the longest, have some hundreds.
pub const LOG_EVENTS_MAX: usize = 65_536;

/// Which machine kept a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogKind {
    /// TDX: measurement register indexes, 1 to 4 for RTMR0 to RTMR3.
    Tdx,
    /// A TPM: PCR indexes.
    Tpm,
}

/// A register that events are extended into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoggedRegister {
    /// Of a TD.
    Rtmr(Rtmr),
    /// Of a TPM.
    Pcr(u32),
    /// Index 0 of a CCEL. MRTD cannot be extended while the guest runs, so that such an event changes nothing.
    Mrtd,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedEvent {
    /// Where it starts in the log, in bytes; for a JSON log its position.
    pub offset: usize,
    /// What it says it was extended into.
    pub register: LoggedRegister,
    /// What it says it records.
    pub event_type: EventType,
    /// One digest for each bank.
    pub digests: Vec<LoggedDigest>,
    /// What the log says about the measured data.
    pub body: Vec<u8>,
    /// A name, in logs whose events have one; empty otherwise.
    pub label: String,
}

/// A log, as it was parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog {
    /// Whose indexes the events have.
    pub kind: LogKind,
    /// The banks that the header announces.
    pub algorithms: Vec<HashAlgorithm>,
    /// The events, without the header.
    pub events: Vec<LoggedEvent>,
    /// Where bytes that are neither events nor filler follow the end, if any do. No register covers them.
    pub trailing_offset: Option<usize>,
}

/// Why bytes are not an event log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Over [`LOG_BYTES_MAX`].
    #[error("the event log has {bytes} bytes, at most {LOG_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Over [`LOG_EVENTS_MAX`].
    #[error("the event log has more than {LOG_EVENTS_MAX} events at offset {offset}")]
    TooManyEvents {
        /// Where the first that is too many starts.
        offset: usize,
    },
    /// A field reaches over the end.
    #[error("the event log ends inside {field} at offset {offset}: {needed} bytes needed, {left} left")]
    Truncated {
        /// Where the field starts.
        offset: usize,
        /// Which field.
        field: &'static str,
        /// Its length.
        needed: usize,
        /// How many bytes there are.
        left: usize,
    },
    /// A field has a value that the format does not allow.
    #[error("the event log is malformed at offset {offset}: {reason}")]
    Malformed {
        /// Where the field starts.
        offset: usize,
        /// What is wrong.
        reason: String,
    },
    /// A JSON log.
    #[error("the event log is not JSON as dstack writes it: {reason}")]
    Json {
        /// What is wrong, with line and column.
        reason: String,
    },
}

impl EventLog {
    /// Parses a log in any supported form. `kind` overrides the guess of a binary log's kind.
    ///
    /// The guess: TDX firmware (edk2 SecurityPkg and OvmfPkg `TdTcg2Dxe`) gives the header index 1; any other
    /// log that has one bank, SHA-384, and no extended event outside index 1 to 4 is TDX too (td-shim). All
    /// others are TPM logs: those extend PCR 0 first.
    ///
    /// # Errors
    /// See [`LogError`]; it names the offset.
    pub fn parse(bytes: &[u8], kind: Option<LogKind>) -> Result<Self, LogError> {
        if bytes.len() > LOG_BYTES_MAX {
            return Err(LogError::TooLarge { bytes: bytes.len() });
        }
        match bytes.trim_ascii_start().first() {
            Some(b'[' | b'{') => dstack::parse(bytes),
            _ => tcg::parse(bytes, kind),
        }
    }
}

/// The agent's log, as an evidence bundle carries it: all of it is in RTMR3.
impl From<&cocoon_evidence::EventLog> for EventLog {
    fn from(log: &cocoon_evidence::EventLog) -> Self {
        let event = |(offset, event): (usize, &cocoon_evidence::RuntimeEvent)| LoggedEvent {
            offset,
            register: LoggedRegister::Rtmr(Rtmr::Rtmr3),
            event_type: EventType::COCOON_RUNTIME,
            digests: vec![LoggedDigest {
                algorithm: HashAlgorithm::SHA384,
                bytes: event.digest().as_bytes().to_vec(),
            }],
            body: event.payload.clone(),
            label: event.kind.name().to_owned(),
        };
        Self {
            kind: LogKind::Tdx,
            algorithms: vec![HashAlgorithm::SHA384],
            events: log.events().iter().enumerate().map(event).collect(),
            trailing_offset: None,
        }
    }
}

impl LoggedRegister {
    /// Where TDX firmware would have put an event of this PCR: edk2 `OvmfPkg/Tcg/TdTcg2Dxe`,
    /// `Tcg2MapPcrToMrIndex` (UEFI 2.10, table 38.4 "TDX measurement register mapping"). `None` for PCR 0
    /// (MRTD), and for PCRs that nothing maps to.
    pub fn as_rtmr(self) -> Option<Rtmr> {
        match self {
            Self::Rtmr(rtmr) => Some(rtmr),
            Self::Mrtd => None,
            Self::Pcr(1 | 7) => Some(Rtmr::Rtmr0),
            Self::Pcr(2..=6) => Some(Rtmr::Rtmr1),
            Self::Pcr(8..=15) => Some(Rtmr::Rtmr2),
            Self::Pcr(_) => None,
        }
    }

    fn of_index(kind: LogKind, index: u32) -> Option<Self> {
        Some(match (kind, index) {
            (LogKind::Tdx, 0) => Self::Mrtd,
            (LogKind::Tdx, 1) => Self::Rtmr(Rtmr::Rtmr0),
            (LogKind::Tdx, 2) => Self::Rtmr(Rtmr::Rtmr1),
            (LogKind::Tdx, 3) => Self::Rtmr(Rtmr::Rtmr2),
            (LogKind::Tdx, 4) => Self::Rtmr(Rtmr::Rtmr3),
            (LogKind::Tpm, 0..=23) => Self::Pcr(index),
            _ => return None,
        })
    }
}

impl fmt::Display for LoggedRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rtmr(Rtmr::Rtmr0) => f.pad("rtmr0"),
            Self::Rtmr(Rtmr::Rtmr1) => f.pad("rtmr1"),
            Self::Rtmr(Rtmr::Rtmr2) => f.pad("rtmr2"),
            Self::Rtmr(Rtmr::Rtmr3) => f.pad("rtmr3"),
            Self::Pcr(index) => f.pad(&format!("pcr{index}")),
            Self::Mrtd => f.pad("mrtd"),
        }
    }
}

impl LoggedEvent {
    /// The digest of one bank.
    pub fn digest(&self, algorithm: HashAlgorithm) -> Option<&LoggedDigest> {
        self.digests.iter().find(|digest| digest.algorithm == algorithm)
    }

    /// Whether the register was extended: EV_NO_ACTION only informs (PFP 1.06, table 27), and MRTD cannot be.
    pub fn is_extended(&self) -> bool {
        self.event_type != EventType::NO_ACTION && self.register != LoggedRegister::Mrtd
    }

    /// What the body proves, given that the digest is what was extended.
    pub fn check_body(&self) -> BodyCheck {
        body::check(self)
    }

    /// One line for a person about the body, free of control characters.
    pub fn describe(&self) -> String {
        describe::describe(self)
    }
}
