//! RTMR0: the firmware's configuration and the virtual hardware, in the order of edk2's PEI-less start
//! (OvmfPkg/Library/PeilessStartupLib) and OvmfPkg/Tcg/TdTcg2Dxe.

use cocoon_evidence::Digest48;

use super::{LaunchInputs, MeasureError, boot_variables, secure_boot};
use crate::{
    EventLayout, Firmware, FwCfgFiles, LaunchSpec, SecureBoot,
    prediction::{
        Events, PredictedRegister,
        event_type::{
            HANDOFF_TABLES, HANDOFF_TABLES2, PLATFORM_CONFIG_FLAGS, PLATFORM_FIRMWARE_BLOB2, SEPARATOR,
        },
    },
};

const REGISTER: &str = "RTMR0";

pub(super) fn rtmr0(
    firmware: &Firmware<'_>,
    inputs: &LaunchInputs<'_>,
) -> Result<PredictedRegister, MeasureError> {
    let spec = inputs.spec;
    let layout = spec.firmware.layout;
    let tables = inputs.tables.ok_or_else(|| {
        MeasureError::unpredictable(
            REGISTER,
            "it holds the ACPI tables that QEMU makes for this machine, and none were given",
            "make them with `cocoon-measure acpi` or take the published ones, and pass them with --tables",
        )
    })?;
    let mut events = Events::default();
    if !hand_off_block(&mut events, firmware, spec)? || !configuration_volume(&mut events, firmware) {
        return Err(MeasureError::unpredictable(
            REGISTER,
            "the firmware has no section for the TD hand-off block or none for its variables",
            "use a build of edk2's OvmfPkg/IntelTdx or OvmfPkgX64",
        ));
    }
    if layout == EventLayout::B {
        fw_cfg_items(&mut events, tables)?;
    }
    secure_boot::variables(&mut events, firmware, spec.firmware.secure_boot)?;
    events.measure(SEPARATOR, "after the Secure Boot variables", &[0; 4]);
    acpi(&mut events, tables)?;
    if spec.firmware.secure_boot == SecureBoot::On {
        secure_boot::authority(&mut events, firmware, inputs)?;
    }
    if layout == EventLayout::B {
        events.push(HANDOFF_TABLES, "SMBIOS tables", smbios(inputs)?);
    }
    if layout != EventLayout::A0 {
        boot_variables::measure(&mut events, layout);
    }
    if matches!(layout, EventLayout::A0 | EventLayout::A1) {
        events.measure(SEPARATOR, "before the boot option", &[0; 4]);
    }
    let when = format!("layout {}, for these tables", layout.name());
    Ok(PredictedRegister::sole(when, events.finish()))
}

/// Whether the firmware has a place for one.
pub(super) fn hand_off_block(
    events: &mut Events,
    firmware: &Firmware<'_>,
    spec: &LaunchSpec,
) -> Result<bool, MeasureError> {
    let Some(block) = firmware.hand_off_block(spec.memory_mib.bytes())? else {
        return Ok(false);
    };
    let name = format!("TD hand-off block, {} MiB", spec.memory_mib.get());
    events.measure(HANDOFF_TABLES2, name, &block);
    Ok(true)
}

/// Whether the firmware has one.
pub(super) fn configuration_volume(events: &mut Events, firmware: &Firmware<'_>) -> bool {
    let Some(volume) = firmware.configuration_volume() else {
        return false;
    };
    events.measure(PLATFORM_FIRMWARE_BLOB2, "configuration volume", volume);
    true
}

/// Name, and the length without which the firmware takes no notice of it (edk2 OvmfPkg/Library/QemuFwCfgLib/
/// QemuFwCfgCacheInit.c).
const FW_CFG_ITEMS: [(&str, Option<usize>); 6] = [
    ("etc/extra-pci-roots", Some(8)),
    (FwCfgFiles::BOOT_MENU, Some(2)),
    ("etc/boot-menu-wait", Some(2)),
    ("etc/reserved-memory-end", Some(8)),
    ("opt/ovmf/X-PciMmio64Mb", None),
    ("bootorder", None),
];

fn fw_cfg_items(events: &mut Events, tables: &FwCfgFiles) -> Result<(), MeasureError> {
    for name in [FwCfgFiles::BOOT_MENU, "bootorder"] {
        if tables.get(name).is_none() {
            return Err(MeasureError::unpredictable(
                REGISTER,
                format!("the tables have no item {name:?}, which every machine started with -kernel has"),
                "make them with this version's `cocoon-measure acpi`",
            ));
        }
    }
    for (name, length) in FW_CFG_ITEMS {
        let item = tables.get(name).filter(|item| match length {
            Some(length) => item.len() == length,
            None => !item.is_empty(),
        });
        if let Some(item) = item {
            events.measure(PLATFORM_CONFIG_FLAGS, format!("QEMU FW CFG {name}"), item);
        }
    }
    Ok(())
}

/// Each whole, as QEMU has it before the firmware links them.
fn acpi(events: &mut Events, tables: &FwCfgFiles) -> Result<(), MeasureError> {
    for name in [
        FwCfgFiles::TABLE_LOADER,
        FwCfgFiles::ACPI_RSDP,
        FwCfgFiles::ACPI_TABLES,
    ] {
        let table = tables.get(name).ok_or_else(|| {
            MeasureError::unpredictable(
                REGISTER,
                format!("the tables have no item {name:?}"),
                "make them with `cocoon-measure acpi`",
            )
        })?;
        events.measure(PLATFORM_CONFIG_FLAGS, format!("ACPI DATA {name}"), table);
    }
    Ok(())
}

fn smbios(inputs: &LaunchInputs<'_>) -> Result<Digest48, MeasureError> {
    inputs.smbios.ok_or_else(|| {
        MeasureError::unpredictable(
            REGISTER,
            "layout b measures SMBIOS structures, and none were given",
            "pass tables with --tables that hold them, or use firmware of layout a2",
        )
    })
}
