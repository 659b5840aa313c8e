//! UEFI device paths as text (UEFI 2.10, section 10.3 "Device Path Nodes" and 10.6 "Device Path Generation").

use super::describe::{guid, printable, utf16};

/// Paths of boot options have a handful of nodes.
const NODES_MAX: usize = 32;

/// Nodes that are understood by name, others as `Path(type,subtype,hex)`, joined by slashes.
pub(super) fn device_path(mut bytes: &[u8]) -> String {
    let mut nodes = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<4>() {
        let [kind, subtype, low, high] = *header;
        let length = usize::from(u16::from_le_bytes([low, high]));
        let Some(data) = length.checked_sub(4).and_then(|data| rest.get(..data)) else {
            nodes.push("(cut off)".to_owned());
            break;
        };
        if kind == END || nodes.len() == NODES_MAX {
            break;
        }
        nodes.push(node(kind, subtype, data));
        bytes = &rest[data.len()..];
    }
    nodes.join("/")
}

const END: u8 = 0x7f;

fn node(kind: u8, subtype: u8, data: &[u8]) -> String {
    let u32_at = |at: usize| {
        let bytes = data.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let text = match (kind, subtype, data.len()) {
        (0x01, 0x01, 2) => Some(format!("Pci(0x{:x},0x{:x})", data[1], data[0])),
        (0x01, 0x04, 16..) => Some(format!("VenHw({})", guid(&data[..16]))),
        (0x02, 0x01, 8) => match (u32_at(0), u32_at(4)) {
            // EISA identifiers PNP0A03 and PNP0A08.
            (Some(0x0a03_41d0), Some(uid)) => Some(format!("PciRoot(0x{uid:x})")),
            (Some(0x0a08_41d0), Some(uid)) => Some(format!("PcieRoot(0x{uid:x})")),
            (Some(hid), Some(uid)) => Some(format!("Acpi(0x{hid:08x},0x{uid:x})")),
            _ => None,
        },
        (0x03, 0x02, 4) => Some(format!(
            "Scsi({},{})",
            u16::from_le_bytes([data[0], data[1]]),
            u16::from_le_bytes([data[2], data[3]])
        )),
        (0x03, 0x0a, 16..) => Some(format!("VenMsg({})", guid(&data[..16]))),
        (0x03, 0x0b, 33) => Some(format!("MAC({})", hex::encode(&data[..6]))),
        (0x03, 0x17, 12) => u32_at(0).map(|namespace| format!("NVMe({namespace})")),
        (0x04, 0x01, 38) => u32_at(0).map(|number| format!("HD({number},{})", guid(&data[20..36]))),
        (0x04, 0x03, 16..) => Some(format!("VenMedia({})", guid(&data[..16]))),
        (0x04, 0x04, _) => Some(utf16(data)),
        (0x04, 0x06, 16) => Some(format!("FvFile({})", guid(data))),
        (0x04, 0x07, 16) => Some(format!("Fv({})", guid(data))),
        (0x01, 0x03, 20) => u32_at(0).map(|kind| format!("MemoryMapped(0x{kind:x})")),
        _ => None,
    };
    let shown = || printable(hex::encode(&data[..data.len().min(16)]).as_bytes());
    text.unwrap_or_else(|| format!("Path({kind},{subtype},{})", shown()))
}
