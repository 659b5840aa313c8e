//! Variations that no LaunchSpec describes: what goes wrong between the configuration and the registers.

use cocoon_evidence::Digest48;

use super::{Expected, ExpectedEvent, Variation};
use crate::eventlog::EventType;

const RTMR1: usize = 1;
const RTMR2: usize = 2;

/// The command line measured as a slightly different text: every place of the initrd's name with every slip.
/// `command_line` is what QEMU's `-append` got.
pub fn command_line_variations(expected: &Expected, command_line: &str) -> Vec<Variation> {
    let mut variations = Vec::new();
    for slip in SLIPS {
        for (place, argued) in PLACES {
            let text = (slip.measured)(&argued(&(slip.line)(command_line)));
            let (id, title, change) = match slip.id {
                "" => (INITRD_ARGUMENT, *place, INITRD_CHANGE),
                id => (id, slip.title, slip.change),
            };
            variations.extend(with_load_options(expected, id, title, change, &text));
        }
    }
    variations
}

const INITRD_ARGUMENT: &str = "command-line-initrd-argument";
const INITRD_CHANGE: &str = "state initrd_argument in the LaunchSpec's [firmware], use the firmware that it names, or start with the same \
     initrd or none";

type Place = (&'static str, fn(&str) -> String);

const PLACES: &[Place] = &[
    (
        "the firmware put \" initrd=initrd\" behind the command line (before edk2-stable202508, with -initrd)",
        |line| format!("{line} initrd=initrd"),
    ),
    (
        "the firmware put \"initrd=initrd \" before the command line (edk2-stable202508 and later, with -initrd)",
        |line| format!("initrd=initrd {line}"),
    ),
    (
        "the firmware did not put \"initrd=initrd\" on the command line",
        str::to_owned,
    ),
];

/// What goes wrong with a text on its way.
struct Slip {
    id: &'static str,
    title: &'static str,
    change: &'static str,
    line: fn(&str) -> String,
    measured: fn(&str) -> Vec<u8>,
}

const LAUNCHER: &str = "mend the launcher: pass to -append exactly what the manifest says";
const BOOT_LOADER: &str = "boot the kernel directly, through its EFI stub";

const SLIPS: &[Slip] = &[
    Slip {
        id: "",
        title: "",
        change: "",
        line: str::to_owned,
        measured: wide_with_nul,
    },
    Slip {
        id: "command-line-newline",
        title: "the command line ends with a newline, as when it was read from a file",
        change: LAUNCHER,
        line: |line| format!("{line}\n"),
        measured: wide_with_nul,
    },
    Slip {
        id: "command-line-no-nul",
        title: "the command line was measured without the NUL at its end",
        change: "use a kernel whose EFI stub measures the NUL, as mainline does",
        line: str::to_owned,
        measured: wide,
    },
    Slip {
        id: "command-line-space",
        title: "the command line has a space at its end",
        change: LAUNCHER,
        line: |line| format!("{line} "),
        measured: wide_with_nul,
    },
    Slip {
        id: "command-line-space",
        title: "the command line has a space at its start",
        change: LAUNCHER,
        line: |line| format!(" {line}"),
        measured: wide_with_nul,
    },
    Slip {
        id: "command-line-encoding",
        title: "the command line was measured in 8 bits for a character, as by a boot loader",
        change: BOOT_LOADER,
        line: str::to_owned,
        measured: |line| [line.as_bytes(), b"\0"].concat(),
    },
    Slip {
        id: "command-line-encoding",
        title: "the command line was measured in 8 bits for a character and without NUL, as by a boot loader",
        change: BOOT_LOADER,
        line: str::to_owned,
        measured: |line| line.as_bytes().to_vec(),
    },
];

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn wide_with_nul(text: &str) -> Vec<u8> {
    wide(&format!("{text}\0"))
}

fn with_load_options(
    expected: &Expected,
    id: &'static str,
    title: &'static str,
    change: &'static str,
    text: &[u8],
) -> Option<Variation> {
    let digest = Digest48::of(text);
    // The command line is the first thing that the kernel measures.
    let known = |events: &Vec<ExpectedEvent>| events.first().is_none_or(|event| event.digest == digest);
    if expected.rtmrs[RTMR2].iter().all(known) {
        return None;
    }
    let mut expected = expected.clone();
    for events in &mut expected.rtmrs[RTMR2] {
        if let Some(first) = events.first_mut() {
            first.digest = digest;
        }
    }
    Some(Variation {
        id,
        title: title.to_owned(),
        change: change.to_owned(),
        expected,
    })
}

/// Events too many or too few.
pub fn structure_variations(expected: &Expected) -> Vec<Variation> {
    let variation = |id, title: &str, change: &str, index: usize, edit: &dyn Fn(&mut Vec<ExpectedEvent>)| {
        let mut changed = expected.clone();
        changed.rtmrs[index].iter_mut().for_each(edit);
        Variation {
            id,
            title: title.to_owned(),
            change: change.to_owned(),
            expected: changed,
        }
    };
    let mut variations = vec![
        variation(
            "separator-duplicated",
            "the separator before the kernel's start is in RTMR1 twice",
            "use a released firmware; this one signals ReadyToBoot twice or carries a wrong backport",
            RTMR1,
            &|events| duplicate(events, EventType::SEPARATOR),
        ),
        variation(
            "separator-duplicated",
            "a separator is in RTMR0 twice",
            "use a released firmware; this one signals ReadyToBoot twice or carries a wrong backport",
            0,
            &|events| duplicate(events, EventType::SEPARATOR),
        ),
        variation(
            "separator-missing",
            "there is no separator in RTMR1",
            "use a released firmware, or state its layout in the LaunchSpec's [firmware]",
            RTMR1,
            &|events| events.retain(|event| event.event_type != Some(EventType::SEPARATOR)),
        ),
        variation(
            "boot-option-failed",
            "the firmware tried another boot option first, and it failed",
            "remove bootable devices that the LaunchSpec does not list, or give the kernel bootindex=0",
            RTMR1,
            &fail_first,
        ),
    ];
    variations.retain(|variation| variation.expected != *expected);
    variations
}

fn duplicate(events: &mut Vec<ExpectedEvent>, event_type: EventType) {
    if let Some(at) = events
        .iter()
        .position(|event| event.event_type == Some(event_type))
    {
        events.insert(at, events[at].clone());
    }
}

const CALLING: &[u8] = b"Calling EFI Application from Boot Option";
const RETURNING: &[u8] = b"Returning from EFI Application from Boot Option";

fn fail_first(events: &mut Vec<ExpectedEvent>) {
    let calling = Digest48::of(CALLING);
    let Some(at) = events.iter().position(|event| event.digest == calling) else {
        return;
    };
    let first = events[at].clone();
    let returning = ExpectedEvent {
        name: "Returning from EFI Application from Boot Option".to_owned(),
        digest: Digest48::of(RETURNING),
        ..first.clone()
    };
    // Between the two calls the firmware has measured its separator once; it stays where it is.
    let separator = events
        .iter()
        .skip(at)
        .position(|event| event.event_type == Some(EventType::SEPARATOR));
    let after = separator.map_or(at + 1, |offset| at + offset + 1);
    events.splice(after..after, [returning, first]);
}
