//! What an event's body is worth: compares it with the digest where the digest is one of the body.

use super::{EventType, HashAlgorithm, LoggedEvent};

/// What the body of an event proves, given that its digest is what the register was extended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyCheck {
    /// The digest is that of the whole body: the body is what was measured.
    Match,
    /// The digest is that of one part of the body; only this part is what was measured.
    MatchPart(&'static str),
    /// For this type the digest has to be one of the body, and is not: the body is a lie.
    Mismatch,
    /// The digest is of something that is not in the log; the body is only a hint.
    Unverified,
}

impl BodyCheck {
    /// The word in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Match => "match",
            Self::MatchPart(_) => "match-part",
            Self::Mismatch => "mismatch",
            Self::Unverified => "unverified",
        }
    }
}

/// What PFP 1.06, table 27 ("Events") says is hashed, for the types where that is in the body.
enum Measured {
    Body,
    VariableData,
    BootLoaderText,
    DstackEvent,
    AgentEvent,
    Elsewhere,
}

fn measured(event_type: EventType) -> Measured {
    match event_type {
        EventType::SEPARATOR
        | EventType::ACTION
        | EventType::EFI_ACTION
        | EventType::S_CRTM_VERSION
        | EventType::EFI_GPT_EVENT
        | EventType::EFI_GPT_EVENT2
        | EventType::EFI_VARIABLE_AUTHORITY
        | EventType::EFI_VARIABLE_BOOT2
        | EventType::EFI_VARIABLE_DRIVER_CONFIG => Measured::Body,
        EventType::EFI_VARIABLE_BOOT => Measured::VariableData,
        EventType::IPL => Measured::BootLoaderText,
        EventType::DSTACK_RUNTIME => Measured::DstackEvent,
        EventType::COCOON_RUNTIME => Measured::AgentEvent,
        _ => Measured::Elsewhere,
    }
}

pub(super) fn check(event: &LoggedEvent) -> BodyCheck {
    if !event.is_extended() {
        return BodyCheck::Unverified;
    }
    match measured(event.event_type) {
        Measured::Body => whole(event),
        Measured::VariableData => part(
            event,
            variable_data(&event.body),
            "variable data",
            BodyCheck::Mismatch,
        ),
        Measured::BootLoaderText => part(
            event,
            boot_loader_text(&event.body),
            "command",
            BodyCheck::Unverified,
        ),
        Measured::DstackEvent => dstack(event),
        // The digest was computed from the body when the log was read.
        Measured::AgentEvent => BodyCheck::Match,
        Measured::Elsewhere => BodyCheck::Unverified,
    }
}

fn whole(event: &LoggedEvent) -> BodyCheck {
    // A log in JSON leaves bodies out; nothing is claimed, so nothing is refuted.
    if event.body.is_empty() {
        return BodyCheck::Unverified;
    }
    match all_banks(event, &event.body) {
        Some(true) => BodyCheck::Match,
        Some(false) => BodyCheck::Mismatch,
        None => BodyCheck::Unverified,
    }
}

fn part(event: &LoggedEvent, data: Option<&[u8]>, what: &'static str, otherwise: BodyCheck) -> BodyCheck {
    if event.body.is_empty() {
        return BodyCheck::Unverified;
    }
    let matches = |data: &[u8]| all_banks(event, data) == Some(true);
    if matches(&event.body) {
        return BodyCheck::Match;
    }
    if data.is_some_and(matches) {
        return BodyCheck::MatchPart(what);
    }
    otherwise
}

/// Whether every bank has the digest of `data`; `None` if there is no bank that is implemented here.
fn all_banks(event: &LoggedEvent, data: &[u8]) -> Option<bool> {
    event
        .digests
        .iter()
        .filter_map(|digest| digest.is_of(data))
        .reduce(|all, one| all && one)
}

/// UEFI_VARIABLE_DATA (PFP 1.06, section 10.2.6): GUID, u64 characters of the name, u64 bytes of data, name,
/// data. edk2 measures only the data of boot variables (MdeModulePkg `BmBoot`, SecurityPkg `Tcg2Dxe`).
fn variable_data(body: &[u8]) -> Option<&[u8]> {
    super::describe::Variable::parse(body).map(|variable| variable.data)
}

/// GRUB writes "grub_cmd: " or "kernel_cmdline: " and the text with a NUL, and measures the text alone
/// (`grub-core/lib/cmdline.c`, `grub-core/script/execute.c`).
fn boot_loader_text(body: &[u8]) -> Option<&[u8]> {
    let text = body.strip_suffix(b"\0")?;
    [b"grub_cmd: ".as_slice(), b"kernel_cmdline: "]
        .iter()
        .find_map(|prefix| text.strip_prefix(*prefix))
}

/// The body holds `name || ":" || payload`, which the digest covers.
fn dstack(event: &LoggedEvent) -> BodyCheck {
    let expected = super::dstack::runtime_digest(event.event_type, &event.body);
    match event.digest(HashAlgorithm::SHA384) {
        Some(digest) if digest.bytes == expected => BodyCheck::Match,
        _ => BodyCheck::Mismatch,
    }
}
