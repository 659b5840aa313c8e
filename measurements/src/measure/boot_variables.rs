//! BootOrder and the boot options that firmware has when it starts a kernel from QEMU's `-kernel`: only its own,
//! because disks and network cards are looked for after that (edk2 OvmfPkg/Library/PlatformBootManagerLib).

use crate::{
    EventLayout,
    prediction::{Events, event_type::VARIABLE_BOOT},
};

const ACTIVE: u32 = 0x1;
const HIDDEN: u32 = 0x8;
const CATEGORY_APP: u32 = 0x100;

/// 7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1: the volume of OVMF's drivers.
const DXE_VOLUME: [u8; 16] = [
    0xc9, 0xbd, 0xb8, 0x7c, 0xeb, 0xf8, 0x34, 0x4f, 0xaa, 0xea, 0x3e, 0xe4, 0xaf, 0x65, 0x16, 0xa1,
];
/// 462caa21-7614-4503-836e-8ab6f4662331.
const UI_APP: [u8; 16] = [
    0x21, 0xaa, 0x2c, 0x46, 0x14, 0x76, 0x03, 0x45, 0x83, 0x6e, 0x8a, 0xb6, 0xf4, 0x66, 0x23, 0x31,
];
/// eec25bdc-67f2-4d95-b1d5-f81b2039d11d.
const BOOT_MANAGER_MENU_APP: [u8; 16] = [
    0xdc, 0x5b, 0xc2, 0xee, 0xf2, 0x67, 0x95, 0x4d, 0xb1, 0xd5, 0xf8, 0x1b, 0x20, 0x39, 0xd1, 0x1d,
];

/// Of these variables the firmware measures the data alone, without name and vendor.
pub(super) fn measure(events: &mut Events, layout: EventLayout) {
    let hidden_app = ACTIVE | HIDDEN | CATEGORY_APP;
    let options = match layout {
        EventLayout::A0 | EventLayout::A1 | EventLayout::A2 => {
            vec![("UiApp", load_option(hidden_app, "UiApp", &UI_APP))]
        }
        // The boot manager's menu became an application of its own in edk2-stable202505.
        EventLayout::B => vec![
            (
                "BootManagerMenuApp",
                load_option(hidden_app, "BootManagerMenuApp", &BOOT_MANAGER_MENU_APP),
            ),
            (
                "EFI Firmware Setup",
                load_option(ACTIVE | CATEGORY_APP, "EFI Firmware Setup", &UI_APP),
            ),
        ],
    };
    let order: Vec<u8> = (0..options.len() as u16).flat_map(u16::to_le_bytes).collect();
    events.measure(VARIABLE_BOOT, "BootOrder", &order);
    for (number, (name, option)) in options.iter().enumerate() {
        events.measure(VARIABLE_BOOT, format!("Boot{number:04x}: {name}"), option);
    }
}

/// EFI_LOAD_OPTION of a file in a firmware volume (UEFI 2.10, sections 3.1.3, 10.3.5.6 and 10.3.5.7).
fn load_option(attributes: u32, description: &str, file: &[u8; 16]) -> Vec<u8> {
    let volume_node = [[4, 7, 20, 0].as_slice(), &DXE_VOLUME].concat();
    let file_node = [[4, 6, 20, 0].as_slice(), file].concat();
    let path = [volume_node, file_node, vec![0x7f, 0xff, 4, 0]].concat();
    let mut option = attributes.to_le_bytes().to_vec();
    option.extend((path.len() as u16).to_le_bytes());
    option.extend(description.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
    option.extend(path);
    option
}
