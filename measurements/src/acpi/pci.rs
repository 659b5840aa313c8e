//! What firmware does to the q35 chipset and to PCI devices before it reads the tables. QEMU builds them at the
//! first read, from the registers as they are then.

use super::{
    GenerateError,
    qtest::{Qtest, QtestError, Width},
};

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;

/// Function 0 of a device on bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Device(u8);

const HOST_BRIDGE: Device = Device(0);
const LPC_BRIDGE: Device = Device(0x1f);

/// The chipset's registers as edk2 sets them (OvmfPkg/Library/PlatformInitLib/Platform.c,
/// `PlatformMiscInitialization` and `PlatformPciExBarInitialization`): they decide the tables MCFG and FADT.
pub(super) fn set_up_chipset(qtest: &mut Qtest, config_window_mib: u32) -> Result<(), GenerateError> {
    let at = config_window_mib.checked_mul(1 << 20).ok_or(GenerateError::Pci(
        "the configuration space does not lie below 4 GiB",
    ))?;
    // PCIEXBAR: 256 buses, enabled.
    write(qtest, HOST_BRIDGE, PCIEXBAR + 4, 0)?;
    write(qtest, HOST_BRIDGE, PCIEXBAR, at | 1)?;
    // PMBASE, then ACPI_EN in ACPI_CNTL.
    write(qtest, LPC_BRIDGE, 0x40, 0x600)?;
    write(qtest, LPC_BRIDGE, 0x44, 0x80)?;
    Ok(())
}

const PCIEXBAR: u8 = 0x60;

/// Where a booted firmware has put the configuration space.
#[cfg(test)]
pub(super) fn config_window_mib(qtest: &mut Qtest) -> u32 {
    read(qtest, HOST_BRIDGE, PCIEXBAR).unwrap() >> 20
}

/// Gives every 64-bit memory region on bus 0 an address from `base` on, as edk2's PciBusDxe does. QEMU's tables
/// state the window for such regions, which begins at the lowest of them; without one it begins after the
/// guest's memory. Where the others lie does not matter as long as they fit into `pci-hole64-size`.
pub(super) fn assign_memory(qtest: &mut Qtest, base: u64) -> Result<(), GenerateError> {
    let mut next = base;
    for device in (0..32).map(Device) {
        let id = read(qtest, device, 0)?;
        if id & 0xffff == 0xffff {
            continue;
        }
        let header = read(qtest, device, 0x0c)? >> 16 & 0x7f;
        match header {
            0 => next = assign_regions(qtest, device, next)?,
            1 => next = open_bridge(qtest, device, next)?,
            _ => return Err(GenerateError::Pci("a device has an unknown header")),
        }
    }
    Ok(())
}

const COMMAND: u8 = 0x04;
const COMMAND_MEMORY: u32 = 1 << 1;

/// PCI 3.0, section 6.2.5.1: bits 0 to 3 say what a region is, and which address bits stick says how long.
fn assign_regions(qtest: &mut Qtest, device: Device, mut next: u64) -> Result<u64, GenerateError> {
    let mut register = 0x10;
    while register < 0x28 {
        let low = read(qtest, device, register)?;
        let is_64_bit_memory = low & 0b111 == 0b100;
        if !is_64_bit_memory || register == 0x24 {
            register += 4;
            continue;
        }
        write(qtest, device, register, u32::MAX)?;
        write(qtest, device, register + 4, u32::MAX)?;
        let mask = u64::from(read(qtest, device, register)? & !0xf)
            | u64::from(read(qtest, device, register + 4)?) << 32;
        let length = mask.wrapping_neg();
        if !length.is_power_of_two() {
            return Err(GenerateError::Pci("a region's length is not a power of two"));
        }
        let outside = GenerateError::Pci("the regions do not fit below 2^64");
        let at = next.checked_next_multiple_of(length).ok_or(outside)?;
        write(qtest, device, register, low_half(at))?;
        write(qtest, device, register + 4, high_half(at))?;
        let command = read(qtest, device, COMMAND)? & 0xffff;
        write(qtest, device, COMMAND, command | COMMAND_MEMORY)?;
        next = at
            .checked_add(length)
            .ok_or(GenerateError::Pci("the regions do not fit below 2^64"))?;
        register += 8;
    }
    Ok(next)
}

const MIB: u64 = 1 << 20;

/// PCI-to-PCI Bridge 1.2, section 3.2.5.9: the prefetchable window, in units of 1 MiB. What lies behind the
/// bridge needs no address of its own: QEMU looks at the window.
fn open_bridge(qtest: &mut Qtest, device: Device, next: u64) -> Result<u64, GenerateError> {
    let outside = || GenerateError::Pci("the regions do not fit below 2^64");
    let at = next.checked_next_multiple_of(MIB).ok_or_else(outside)?;
    let end = at.checked_add(MIB).ok_or_else(outside)?;
    let unit = low_half(at) >> 16 & 0xfff0;
    write(qtest, device, 0x24, unit << 16 | unit)?;
    write(qtest, device, 0x28, high_half(at))?;
    write(qtest, device, 0x2c, high_half(at))?;
    Ok(end)
}

fn low_half(address: u64) -> u32 {
    (address & u64::from(u32::MAX)) as u32
}

fn high_half(address: u64) -> u32 {
    (address >> 32) as u32
}

fn select(qtest: &mut Qtest, device: Device, register: u8) -> Result<(), QtestError> {
    let address = 1 << 31 | u32::from(device.0) << 11 | u32::from(register);
    qtest.out(Width::Long, ADDRESS_PORT, address)
}

fn read(qtest: &mut Qtest, device: Device, register: u8) -> Result<u32, QtestError> {
    select(qtest, device, register)?;
    qtest.input(Width::Long, DATA_PORT)
}

fn write(qtest: &mut Qtest, device: Device, register: u8, value: u32) -> Result<(), QtestError> {
    select(qtest, device, register)?;
    qtest.out(Width::Long, DATA_PORT, value)
}
