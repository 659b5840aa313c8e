//! Where edk2 lets the window for 64-bit PCI memory begin (OvmfPkg/Library/PlatformInitLib/MemDetect.c).
//!
//! QEMU writes this address into the DSDT, because the firmware has placed the devices' memory there before it
//! reads the tables. A reader that starts QEMU without doing what the firmware does gets other tables than the
//! ones that are measured.

/// `PlatformDynamicMmioWindow`, from edk2-stable202211 on, for a processor with 46 or more address bits in a
/// guest with four-level paging, as every TDX guest so far is: the last eighth of 2^46 bytes.
pub const EDK2_WINDOW_GIB: u32 = 56 << 10;

/// PcdPciExpressBaseAddress of OVMF 2025.02 and 2026.08: 0xe000_0000. In 2022.11 it was 0xb000_0000.
pub const EDK2_CONFIG_WINDOW_MIB: u32 = 3584;

/// `PlatformDynamicMmioWindow` for other widths. The firmware takes the width from CPUID 0x8000_0008, at most 46
/// without five-level paging.
pub fn dynamic_window_gib(address_bits: u32) -> Option<u32> {
    let eighth = 1u32.checked_shl(address_bits.checked_sub(33)?)?;
    eighth.checked_mul(7)
}

/// `PlatformGetFirstNonAddress`: before edk2-stable202211, or with a width that the firmware does not believe
/// (40 bits on Intel, QEMU's default): 32 GiB that begin at the first multiple of 32 GiB after the memory.
pub fn classic_window_gib(memory_mib: u32) -> u32 {
    let below_4g = if memory_mib < HIGH_MEMORY_FROM_MIB {
        memory_mib
    } else {
        LOW_MEMORY_MIB
    };
    let end_mib = 4096 + (memory_mib - below_4g);
    end_mib.div_ceil(CLASSIC_WINDOW_GIB << 10) * CLASSIC_WINDOW_GIB
}

const CLASSIC_WINDOW_GIB: u32 = 32;

/// QEMU `hw/i386/pc_q35.c`: from 2.75 GiB on, all beyond 2 GiB lies above 4 GiB.
const HIGH_MEMORY_FROM_MIB: u32 = 2816;
const LOW_MEMORY_MIB: u32 = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_where_ovmf_2025_02_and_2026_08_put_them() {
        // Read with `info pci` from booted machines, QEMU 11.1.3: 0x3800_0000_0000 with phys-bits=46,
        // 0x8_0000_0000 with 512 MiB and the 40 bits of an Intel processor model.
        assert_eq!(dynamic_window_gib(46), Some(EDK2_WINDOW_GIB));
        assert_eq!(u64::from(EDK2_WINDOW_GIB) << 30, 0x3800_0000_0000);
        assert_eq!(classic_window_gib(512), 32);
    }

    #[test]
    fn the_classic_window_follows_the_memory() {
        for (memory_mib, window_gib) in [
            (2814, 32),
            (2816, 32),
            (30 << 10, 32),
            ((30 << 10) + 2, 64),
            (2 << 20, 2080),
        ] {
            assert_eq!(classic_window_gib(memory_mib), window_gib, "{memory_mib} MiB");
        }
    }

    #[test]
    fn widths_without_a_window_have_none() {
        assert_eq!(dynamic_window_gib(32), None);
        assert_eq!(dynamic_window_gib(33), Some(7));
        assert_eq!(dynamic_window_gib(64), None);
        assert_eq!(dynamic_window_gib(65), None);
    }
}
