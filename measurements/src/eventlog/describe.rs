//! One line for a person about an event's body. The body comes from an enemy: everything that is not printable
//! ASCII is escaped, so that it can neither move the cursor nor reorder text, and what is long is cut.

use super::{EventType, LoggedEvent, device_path::device_path};

/// A longer text is cut; the whole body is in the JSON form.
const TEXT_CHARS_MAX: usize = 160;

pub(super) fn describe(event: &LoggedEvent) -> String {
    let body = event.body.as_slice();
    let text = match event.event_type {
        EventType::EFI_VARIABLE_DRIVER_CONFIG | EventType::EFI_VARIABLE_AUTHORITY => {
            Variable::parse(body).map(|variable| variable.describe())
        }
        EventType::EFI_VARIABLE_BOOT | EventType::EFI_VARIABLE_BOOT2 => {
            Variable::parse(body).map(|variable| variable.describe_boot())
        }
        EventType::EFI_BOOT_SERVICES_APPLICATION
        | EventType::EFI_BOOT_SERVICES_DRIVER
        | EventType::EFI_RUNTIME_SERVICES_DRIVER => image_load(body),
        EventType::EFI_PLATFORM_FIRMWARE_BLOB2 => firmware_blob(body),
        EventType::EFI_HANDOFF_TABLES2 => short_name(body).map(|(name, _)| name),
        EventType::EFI_GPT_EVENT | EventType::EFI_GPT_EVENT2 => partitions(body),
        EventType::EVENT_TAG => tagged(body),
        EventType::SEPARATOR => separator(body),
        EventType::PLATFORM_CONFIG_FLAGS => Some(configuration(body)),
        EventType::S_CRTM_VERSION => Some(utf16(body)),
        _ => None,
    };
    let text = text.unwrap_or_else(|| text_or_hex(body));
    match (event.label.is_empty(), text.is_empty()) {
        (true, _) => text,
        (false, true) => printable(event.label.as_bytes()),
        (false, false) => format!("{}: {text}", printable(event.label.as_bytes())),
    }
}

/// Escapes what is not printable ASCII, and cuts.
pub(super) fn printable(bytes: &[u8]) -> String {
    escaped(bytes.iter().map(|byte| char::from(*byte)), bytes.len())
}

/// UTF-16LE up to the first NUL, escaped in the same way.
pub(super) fn utf16(bytes: &[u8]) -> String {
    let units = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let text: Vec<char> = char::decode_utf16(units.take_while(|unit| *unit != 0).take(TEXT_CHARS_MAX + 1))
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    escaped(text.iter().copied(), text.len())
}

fn escaped(chars: impl Iterator<Item = char>, count: usize) -> String {
    let mut text = String::new();
    for char in chars.take(TEXT_CHARS_MAX) {
        match char {
            ' '..='[' | ']'..='~' => text.push(char),
            other => text.extend(other.escape_default()),
        }
    }
    if count > TEXT_CHARS_MAX {
        text.push_str("...");
    }
    text
}

/// Mixed-endian text form (UEFI 2.10, appendix A).
pub(super) fn guid(bytes: &[u8]) -> String {
    let Ok(b) = <&[u8; 16]>::try_from(bytes) else {
        return "(no GUID)".to_owned();
    };
    let first = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let second = u16::from_le_bytes([b[4], b[5]]);
    let third = u16::from_le_bytes([b[6], b[7]]);
    format!(
        "{first:08x}-{second:04x}-{third:04x}-{}-{}",
        hex::encode(&b[8..10]),
        hex::encode(&b[10..])
    )
}

fn text_or_hex(body: &[u8]) -> String {
    let text = body.strip_suffix(b"\0").unwrap_or(body);
    let readable = |byte: &u8| matches!(byte, b' '..=b'~' | b'\n' | b'\t' | b'\r');
    if text.iter().all(readable) {
        return printable(text);
    }
    let shown = hex::encode(&body[..body.len().min(32)]);
    let dots = if body.len() > 32 { "..." } else { "" };
    format!("{} bytes: {shown}{dots}", body.len())
}

/// UEFI_VARIABLE_DATA (PFP 1.06, section 10.2.6).
pub(super) struct Variable<'a> {
    name: &'a [u8],
    pub(super) data: &'a [u8],
}

impl<'a> Variable<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Option<Self> {
        let (_guid, rest) = body.split_at_checked(16)?;
        let (chars, rest) = split_u64(rest)?;
        let (data_bytes, rest) = split_u64(rest)?;
        let (name, data) = rest.split_at_checked(usize::try_from(chars).ok()?.checked_mul(2)?)?;
        (data.len() as u64 == data_bytes).then_some(Self { name, data })
    }

    fn describe(&self) -> String {
        let name = utf16(self.name);
        match self.data {
            [] => format!("{name}: not set"),
            [value] => format!("{name} = {value:02x}"),
            data if data.len() <= 64 && data.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n')) => {
                format!("{name} = {}", printable(data))
            }
            data => format!("{name}: {} bytes", data.len()),
        }
    }

    /// BootOrder, or EFI_LOAD_OPTION (UEFI 2.10, section 3.1.3): attributes u32, bytes of the path u16,
    /// description with its NUL, path.
    fn describe_boot(&self) -> String {
        let name = utf16(self.name);
        if name == "BootOrder" {
            let entries = self.data.chunks_exact(2).take(64);
            let order: Vec<_> = entries
                .map(|pair| format!("{:02x}{:02x}", pair[1], pair[0]))
                .collect();
            return format!("BootOrder = {}", order.join(" "));
        }
        let Some((header, rest)) = self.data.split_at_checked(6) else {
            return self.describe();
        };
        let path_bytes = usize::from(u16::from_le_bytes([header[4], header[5]]));
        let description = rest.chunks_exact(2).take_while(|pair| *pair != [0, 0]).count() * 2;
        let path = rest.get(description + 2..).unwrap_or_default();
        let path = &path[..path.len().min(path_bytes)];
        format!("{name} = \"{}\" {}", utf16(rest), device_path(path))
    }
}

fn split_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*head), rest))
}

/// UEFI_IMAGE_LOAD_EVENT (PFP 1.06, section 10.2.3): address, size, link address, bytes of the path, path.
fn image_load(body: &[u8]) -> Option<String> {
    let (_address, rest) = split_u64(body)?;
    let (size, rest) = split_u64(rest)?;
    let (_link, rest) = split_u64(rest)?;
    let (path_bytes, rest) = split_u64(rest)?;
    let path = rest.get(..usize::try_from(path_bytes).ok()?)?;
    Some(format!("image of {size} bytes from {}", device_path(path)))
}

/// One byte of length, then text.
fn short_name(body: &[u8]) -> Option<(String, &[u8])> {
    let (length, rest) = body.split_first()?;
    let (name, rest) = rest.split_at_checked((*length).into())?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Some((printable(name), rest))
}

/// UEFI_PLATFORM_FIRMWARE_BLOB2 (PFP 1.06, section 10.2.5): name, base u64, length u64.
fn firmware_blob(body: &[u8]) -> Option<String> {
    let (name, rest) = short_name(body)?;
    let (base, rest) = split_u64(rest)?;
    let (length, _) = split_u64(rest)?;
    Some(format!("{name} at 0x{base:x}, {length} bytes"))
}

/// UEFI_GPT_DATA (PFP 1.06, section 10.2.4): header of 92 bytes, u64 count, entries of 128 bytes with the name
/// in UTF-16 at 56 (UEFI 2.10, section 5.3.3).
fn partitions(body: &[u8]) -> Option<String> {
    const NAMES_MAX: usize = 16;
    let disk = guid(body.get(56..72)?);
    let (count, entries) = split_u64(body.get(92..)?)?;
    let names: Vec<_> = entries
        .chunks_exact(128)
        .take(NAMES_MAX)
        .map(|entry| format!("\"{}\"", utf16(&entry[56..])))
        .collect();
    Some(format!("disk {disk}, {count} partitions: {}", names.join(" ")))
}

/// TCG_PCClientTaggedEvent (PFP 1.06, section 10.2.7): identifier u32, length u32, data. An early kernel wrote
/// the text alone.
fn tagged(body: &[u8]) -> Option<String> {
    let (head, rest) = body.split_first_chunk::<8>()?;
    let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    if rest.len() != length {
        return None;
    }
    let tag = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    Some(format!("tag 0x{tag:08x} {}", text_or_hex(rest)))
}

fn separator(body: &[u8]) -> Option<String> {
    Some(match body {
        [] => String::new(),
        [0, 0, 0, 0] | [0xff, 0xff, 0xff, 0xff] => "end of this phase".to_owned(),
        other => format!("error {}", hex::encode(other.get(..4)?)),
    })
}

/// edk2 `QemuFwCfgCacheInit`: "QEMU FW CFG" with its NUL, and the item's name in 56 bytes. td-shim: a name of
/// 16 bytes, a length and a copy.
fn configuration(body: &[u8]) -> String {
    let until_nul = |bytes: &[u8]| printable(bytes.split(|byte| *byte == 0).next().unwrap_or_default());
    match body.strip_prefix(b"QEMU FW CFG\0") {
        Some(item) => format!("fw_cfg {}", until_nul(item)),
        None if body.starts_with(b"td_") => match body.get(20..) {
            Some(copy) if copy.first().is_some_and(|byte| matches!(byte, b' '..=b'~')) => {
                format!("{}: {}", until_nul(body), until_nul(copy))
            }
            _ => until_nul(body),
        },
        None => text_or_hex(body),
    }
}
