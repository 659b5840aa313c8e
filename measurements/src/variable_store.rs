//! The UEFI variables in a firmware's configuration volume, as far as Secure Boot reads them.
//!
//! The volume may come from anybody: every length in it is checked, and each step moves on by at least a header.
//! Layout: edk2 `MdeModulePkg/Include/Guid/VariableFormat.h` in the volume of `MdePkg/Include/Pi/
//! PiFirmwareVolume.h` (UEFI PI 1.8, volume 3, section 3.2.1).

/// Why a configuration volume cannot be read. `offset` counts from its start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration volume is damaged at offset {offset:#x}: {problem}")]
pub struct VariableStoreError {
    /// Where.
    pub offset: usize,
    /// What is wrong there.
    pub problem: &'static str,
}

/// A variable as the firmware finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Variable<'a> {
    vendor: [u8; 16],
    /// UTF-16LE with its NUL.
    name: &'a [u8],
    data: &'a [u8],
    /// Being replaced: counts only while there is no other.
    in_transition: bool,
}

/// The variables that are not deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VariableStore<'a> {
    variables: Vec<Variable<'a>>,
}

const VOLUME_SIGNATURE_AT: usize = 40;
const VOLUME_HEADER_BYTES_AT: usize = 48;
const STORE_HEADER_BYTES: usize = 28;
const STORE_FORMATTED: u8 = 0x5a;
const STORE_HEALTHY: u8 = 0xfe;
/// aaf32c78-947b-439a-a180-2e144ec37792: headers with time stamp and monotonic count.
const AUTHENTICATED_STORE: [u8; 16] = [
    0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92,
];
/// ddcf3616-3275-4164-98b6-fe85707ffe7d: headers without.
const PLAIN_STORE: [u8; 16] = [
    0x16, 0x36, 0xcf, 0xdd, 0x75, 0x32, 0x64, 0x41, 0x98, 0xb6, 0xfe, 0x85, 0x70, 0x7f, 0xfe, 0x7d,
];

const START_ID: [u8; 2] = [0xaa, 0x55];
/// State bits are cleared one after the other: header written, added, about to be replaced, deleted.
const STATE_ADDED: u8 = 0x3f;
const STATE_IN_DELETED_TRANSITION: u8 = 0x3e;

/// Where a variable's header has its sizes and its vendor.
struct HeaderLayout {
    name_bytes: usize,
    data_bytes: usize,
    vendor: usize,
    header_bytes: usize,
}

const AUTHENTICATED_HEADER: HeaderLayout = HeaderLayout {
    name_bytes: 36,
    data_bytes: 40,
    vendor: 44,
    header_bytes: 60,
};
const PLAIN_HEADER: HeaderLayout = HeaderLayout {
    name_bytes: 8,
    data_bytes: 12,
    vendor: 16,
    header_bytes: 32,
};

impl<'a> VariableStore<'a> {
    /// Reads a volume: its header, the store's header, and variables up to the first that is none.
    pub(crate) fn parse(volume: &'a [u8]) -> Result<Self, VariableStoreError> {
        let damaged = |offset, problem| VariableStoreError { offset, problem };
        if volume.get(VOLUME_SIGNATURE_AT..VOLUME_SIGNATURE_AT + 4) != Some(b"_FVH") {
            return Err(damaged(VOLUME_SIGNATURE_AT, "no firmware volume starts here"));
        }
        let cut_off = damaged(VOLUME_HEADER_BYTES_AT, "the volume is shorter than its headers");
        let start = usize::from(read_u16(volume, VOLUME_HEADER_BYTES_AT).ok_or_else(|| cut_off.clone())?);
        let header = volume
            .get(start..)
            .and_then(|rest| rest.first_chunk::<STORE_HEADER_BYTES>())
            .ok_or(cut_off)?;
        let layout = if header.starts_with(&AUTHENTICATED_STORE) {
            AUTHENTICATED_HEADER
        } else if header.starts_with(&PLAIN_STORE) {
            PLAIN_HEADER
        } else {
            return Err(damaged(start, "this is no variable store"));
        };
        if header[20..22] != [STORE_FORMATTED, STORE_HEALTHY] {
            return Err(damaged(start + 20, "the store is not formatted and healthy"));
        }
        let bytes = read_u32(header, 16).map_or(0, |bytes| bytes as usize);
        let end = start
            .checked_add(bytes)
            .filter(|end| bytes >= STORE_HEADER_BYTES && *end <= volume.len())
            .ok_or(damaged(
                start + 16,
                "the store's length reaches outside the volume",
            ))?;
        read_variables(&volume[..end], start + STORE_HEADER_BYTES, &layout)
    }

    /// The data of a variable; `name` is ASCII.
    pub(crate) fn get(&self, vendor: &[u8; 16], name: &str) -> Option<&'a [u8]> {
        let wide: Vec<u8> = name
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        let found = |variable: &&Variable<'_>| variable.vendor == *vendor && variable.name == wide;
        let mut matching = self.variables.iter().filter(found);
        let first = matching.next()?;
        let added = matching.find(|variable| !variable.in_transition);
        let variable = if first.in_transition {
            added.unwrap_or(first)
        } else {
            first
        };
        Some(variable.data)
    }
}

fn read_variables<'a>(
    store: &'a [u8],
    mut at: usize,
    layout: &HeaderLayout,
) -> Result<VariableStore<'a>, VariableStoreError> {
    let mut variables = Vec::new();
    loop {
        at = at.next_multiple_of(4);
        let header = match store.get(at..).and_then(|rest| rest.get(..layout.header_bytes)) {
            Some(header) if header.starts_with(&START_ID) => header,
            // Free space, or none left.
            _ => return Ok(VariableStore { variables }),
        };
        let length = |field| read_u32(header, field).map_or(usize::MAX, |length| length as usize);
        let name_start = at + layout.header_bytes;
        let split = name_start.checked_add(length(layout.name_bytes));
        let end = split.and_then(|split| split.checked_add(length(layout.data_bytes)));
        let content = split
            .zip(end)
            .and_then(|(split, end)| Some((store.get(name_start..split)?, store.get(split..end)?, end)));
        let (name, data, end) = content.ok_or(VariableStoreError {
            offset: at,
            problem: "a variable reaches outside the store",
        })?;
        let state = header[2];
        if matches!(state, STATE_ADDED | STATE_IN_DELETED_TRANSITION) {
            let vendor = header[layout.vendor..].first_chunk().copied().unwrap_or_default();
            variables.push(Variable {
                vendor,
                name,
                data,
                in_transition: state == STATE_IN_DELETED_TRANSITION,
            });
        }
        at = end;
    }
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    const VENDOR: [u8; 16] = [7; 16];
    const DELETED: u8 = 0x3c;

    /// {vendor, name, data, state}
    pub(crate) type Entry<'a> = ([u8; 16], &'a str, &'a [u8], u8);

    fn variable(entry: &Entry<'_>, authenticated: bool) -> Vec<u8> {
        let (vendor, name, data, state) = entry;
        let name: Vec<u8> = name
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        let mut bytes = [START_ID.as_slice(), &[*state, 0], &[0x27, 0, 0, 0]].concat();
        if authenticated {
            bytes.extend([0; 8 + 16 + 4]);
        }
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend((data.len() as u32).to_le_bytes());
        bytes.extend(vendor);
        bytes.extend([&name, *data].concat());
        bytes.resize(bytes.len().next_multiple_of(4), 0xff);
        bytes
    }

    /// A volume of 16 KiB with these variables.
    pub(crate) fn volume(entries: &[Entry<'_>], authenticated: bool) -> Vec<u8> {
        let mut volume = vec![0xff; 0x4000];
        volume[VOLUME_SIGNATURE_AT..VOLUME_SIGNATURE_AT + 4].copy_from_slice(b"_FVH");
        volume[VOLUME_HEADER_BYTES_AT..][..2].copy_from_slice(&72u16.to_le_bytes());
        let guid = if authenticated {
            AUTHENTICATED_STORE
        } else {
            PLAIN_STORE
        };
        let mut store = guid.to_vec();
        store.extend((0x4000u32 - 72).to_le_bytes());
        store.extend([STORE_FORMATTED, STORE_HEALTHY, 0, 0, 0, 0, 0, 0]);
        entries
            .iter()
            .for_each(|entry| store.extend(variable(entry, authenticated)));
        volume[72..72 + store.len()].copy_from_slice(&store);
        volume
    }

    #[test]
    fn variables_are_found_by_vendor_and_name() {
        for authenticated in [true, false] {
            let entries = [
                (VENDOR, "PK", b"platform".as_slice(), STATE_ADDED),
                ([8; 16], "KEK", b"other vendor", STATE_ADDED),
                (VENDOR, "KEK", b"exchange", STATE_ADDED),
            ];
            let volume = volume(&entries, authenticated);
            let store = VariableStore::parse(&volume).unwrap();
            assert_eq!(store.get(&VENDOR, "PK"), Some(b"platform".as_slice()));
            assert_eq!(store.get(&VENDOR, "KEK"), Some(b"exchange".as_slice()));
            assert_eq!(store.get(&VENDOR, "db"), None);
            assert_eq!(store.get(&VENDOR, "P"), None);
        }
    }

    #[test]
    fn deleted_variables_do_not_count_and_those_in_transition_only_alone() {
        let check = |entries: &[Entry<'_>], expected: Option<&[u8]>| {
            let volume = volume(entries, true);
            assert_eq!(
                VariableStore::parse(&volume).unwrap().get(&VENDOR, "db"),
                expected
            );
        };
        let entry = |data: &'static [u8], state| (VENDOR, "db", data, state);
        check(&[entry(b"old", DELETED)], None);
        check(&[entry(b"old", 0x7f)], None);
        let transition = entry(b"old", STATE_IN_DELETED_TRANSITION);
        check(&[transition], Some(b"old"));
        check(&[transition, entry(b"new", STATE_ADDED)], Some(b"new"));
        check(&[entry(b"new", STATE_ADDED), transition], Some(b"new"));
        check(
            &[entry(b"old", DELETED), entry(b"new", STATE_ADDED)],
            Some(b"new"),
        );
    }

    #[test]
    fn a_damaged_volume_is_refused_with_the_offset() {
        let check = |at: usize, bytes: &[u8], offset: usize, says: &str| {
            let mut volume = volume(&[(VENDOR, "PK", b"x", STATE_ADDED)], true);
            volume[at..at + bytes.len()].copy_from_slice(bytes);
            let error = VariableStore::parse(&volume).unwrap_err();
            assert_eq!(error.offset, offset);
            assert!(error.to_string().contains(says), "{error}");
        };
        check(40, b"nope", 40, "no firmware volume");
        check(48, &[0xff; 2], 48, "shorter than its headers");
        check(72, &[0], 72, "no variable store");
        check(92, &[0], 92, "not formatted and healthy");
        check(88, &[0xff; 4], 88, "length reaches outside");
        check(88, &[0; 4], 88, "length reaches outside");
        check(100 + 36, &[0xff; 4], 100, "reaches outside the store");
        check(100 + 40, &[0xff; 4], 100, "reaches outside the store");
        assert!(VariableStore::parse(&[]).is_err());
    }

    proptest! {
        #[test]
        fn hostile_volumes_never_panic(
            changes in prop::collection::vec((0usize..256, any::<u8>()), 0..24),
            cut in 0usize..0x4000,
        ) {
            let mut volume = volume(&[(VENDOR, "PK", b"platform", STATE_ADDED)], true);
            for (at, byte) in changes {
                volume[at] = byte;
            }
            for volume in [&volume[..], &volume[..cut]] {
                if let Ok(store) = VariableStore::parse(volume) {
                    store.get(&VENDOR, "PK");
                }
            }
        }
    }
}
