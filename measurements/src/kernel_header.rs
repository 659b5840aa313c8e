//! The setup header of a Linux kernel, as QEMU writes to it before the firmware measures the kernel.
//!
//! Follows `x86_load_linux` in QEMU's `hw/i386/x86-common.c` (until 9.0 `hw/i386/x86.c`); offsets are those of
//! the Linux kernel's `Documentation/arch/x86/boot.rst`. The kernel may come from anybody: every field is read
//! through a bounds check.

/// Why QEMU would not load a kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelHeaderError {
    /// No setup header.
    #[error(
        "the kernel has no Linux setup header (\"HdrS\" at offset 0x202), so QEMU does not boot it as Linux"
    )]
    NotLinux,
    /// setup_sects at offset 0x1f1.
    #[error(
        "the kernel's setup_sects (offset 0x1f1) says {setup_bytes} bytes of setup, the file has {bytes}"
    )]
    CutOff {
        /// What the header says.
        setup_bytes: usize,
        /// What there is.
        bytes: usize,
    },
    /// Too much memory below the address where it would go.
    #[error("an initrd of {bytes} bytes does not fit: QEMU puts it below {max:#x}")]
    Initrd {
        /// Its length.
        bytes: u64,
        /// One past the highest address.
        max: u32,
    },
    /// `vga=` on the command line.
    #[error("vga={0} on the command line is not a number, \"normal\", \"ext\" or \"ask\"; QEMU ends over it")]
    VideoMode(String),
}

/// What decides the fields that QEMU writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loading<'a> {
    pub(crate) memory_bytes: u64,
    pub(crate) command_line: &'a str,
    /// Length of the initrd.
    pub(crate) initrd_bytes: Option<u64>,
}

const SETUP_SECTS: usize = 0x1f1;
const VID_MODE: usize = 0x1fa;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const HEAP_END_PTR: usize = 0x224;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const XLOADFLAGS: usize = 0x236;

const LOADED_HIGH: u8 = 0x01;
const CAN_USE_HEAP: u8 = 0x80;
/// XLF_CAN_BE_LOADED_ABOVE_4G. Not bit 6, which is XLF_5LEVEL_ENABLED.
const CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
const LOADER_IS_QEMU: u8 = 0xb0;

/// QEMU reads this much of the file to look at the header.
const HEADER_BYTES_MAX: usize = 8192;
/// Kept free below the end of low memory: 128 KiB for ACPI tables and 32 KiB for what PC firmware adds.
const ACPI_DATA_BYTES: u64 = 0x2_0000 + 0x8000;
/// Before protocol 2.03 the header does not say.
const INITRD_ADDR_MAX_DEFAULT: u32 = 0x37ff_ffff;

/// The kernel as firmware gets it: the file with what QEMU wrote into its header.
pub(crate) fn patched(kernel: &[u8], loading: Loading<'_>) -> Result<Vec<u8>, KernelHeaderError> {
    let mut header = kernel[..kernel.len().min(HEADER_BYTES_MAX)].to_vec();
    check(&header, kernel.len())?;
    let protocol = read_u16(&header, VERSION);
    let addresses = Addresses::of(&header, protocol, loading.command_line);
    if protocol >= 0x202 {
        put(&mut header, CMD_LINE_PTR, &addresses.command_line.to_le_bytes());
    } else {
        put(&mut header, 0x20, &0xa33fu16.to_le_bytes());
        put(
            &mut header,
            0x22,
            &(addresses.command_line_offset() as u16).to_le_bytes(),
        );
    }
    if let Some(mode) = video_mode(loading.command_line)? {
        put(&mut header, VID_MODE, &mode.to_le_bytes());
    }
    if protocol >= 0x200 {
        header[TYPE_OF_LOADER] = LOADER_IS_QEMU;
    }
    if protocol >= 0x201 {
        header[LOADFLAGS] |= CAN_USE_HEAP;
        let heap_end = (addresses.command_line_offset() - 0x200) as u16;
        put(&mut header, HEAP_END_PTR, &heap_end.to_le_bytes());
    }
    if let Some(bytes) = loading.initrd_bytes {
        let (address, bytes) = initrd_place(&header, protocol, loading.memory_bytes, bytes)?;
        put(&mut header, RAMDISK_IMAGE, &address.to_le_bytes());
        put(&mut header, RAMDISK_SIZE, &bytes.to_le_bytes());
    }
    let mut patched = kernel.to_vec();
    let written = header.len().min(setup_bytes(kernel));
    patched[..written].copy_from_slice(&header[..written]);
    Ok(patched)
}

/// Whether QEMU loads this file as a Linux kernel at all.
pub(crate) fn check(kernel: &[u8], file_bytes: usize) -> Result<(), KernelHeaderError> {
    let head_ends = XLOADFLAGS + 2;
    if kernel.len() < head_ends || kernel[MAGIC..MAGIC + 4] != *b"HdrS" {
        return Err(KernelHeaderError::NotLinux);
    }
    let setup_bytes = setup_bytes(kernel);
    if setup_bytes > file_bytes {
        return Err(KernelHeaderError::CutOff {
            setup_bytes,
            bytes: file_bytes,
        });
    }
    Ok(())
}

fn setup_bytes(kernel: &[u8]) -> usize {
    let sectors = match kernel[SETUP_SECTS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    (sectors + 1) * 512
}

struct Addresses {
    real_mode: u32,
    command_line: u32,
}

impl Addresses {
    fn of(header: &[u8], protocol: u16, command_line: &str) -> Self {
        let high = protocol >= 0x200 && header[LOADFLAGS] & LOADED_HIGH != 0;
        if high && protocol >= 0x202 {
            return Self {
                real_mode: 0x1_0000,
                command_line: 0x2_0000,
            };
        }
        let line_bytes = (command_line.len() as u32 + 16) & !15;
        Self {
            real_mode: 0x9_0000,
            command_line: 0x9_a000 - line_bytes,
        }
    }

    fn command_line_offset(&self) -> u32 {
        self.command_line - self.real_mode
    }
}

fn initrd_place(
    header: &[u8],
    protocol: u16,
    memory_bytes: u64,
    bytes: u64,
) -> Result<(u32, u32), KernelHeaderError> {
    let mut max = if protocol >= 0x20c && read_u16(header, XLOADFLAGS) & CAN_BE_LOADED_ABOVE_4G != 0 {
        u32::MAX
    } else if protocol >= 0x203 {
        read_u32(header, INITRD_ADDR_MAX)
    } else {
        INITRD_ADDR_MAX_DEFAULT
    };
    let low_end = crate::tdvf::low_memory_bytes(memory_bytes) - ACPI_DATA_BYTES;
    if u64::from(max) >= low_end {
        max = (low_end - 1) as u32;
    }
    let size = u32::try_from(bytes).ok().filter(|size| *size < max);
    let size = size.ok_or(KernelHeaderError::Initrd { bytes, max })?;
    Ok(((max - size) & !4095, size))
}

/// The video mode of `vga=` as QEMU reads it: the first occurrence anywhere, by C's rules for numbers.
fn video_mode(command_line: &str) -> Result<Option<u16>, KernelHeaderError> {
    let Some((_, value)) = command_line.split_once("vga=") else {
        return Ok(None);
    };
    let named = [("normal", 0xffff), ("ext", 0xfffe), ("ask", 0xfffd)];
    if let Some((_, mode)) = named.iter().find(|(name, _)| value.starts_with(name)) {
        return Ok(Some(*mode));
    }
    let word = value.split(' ').next().unwrap_or_default();
    let digits = match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None if word.len() > 1 && word.starts_with('0') => u32::from_str_radix(&word[1..], 8),
        None => word.parse(),
    };
    // A sign is allowed in C and in no kernel documentation; refusing it is safer than imitating it.
    let mode = digits
        .ok()
        .filter(|_| word.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    mode.map(|mode| Some(mode as u16))
        .ok_or_else(|| KernelHeaderError::VideoMode(word.chars().take(32).collect()))
}

fn put(header: &mut [u8], at: usize, bytes: &[u8]) {
    header[at..at + bytes.len()].copy_from_slice(bytes);
}

fn read_u16(header: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([header[at], header[at + 1]])
}

fn read_u32(header: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    /// The first bytes of a bzImage, protocol 2.15, loaded high, 5 sectors of setup.
    fn kernel() -> Vec<u8> {
        let mut kernel = vec![0x11; 0x3000];
        make_linux(&mut kernel);
        kernel
    }

    /// Writes the setup header of a modern kernel.
    pub(crate) fn make_linux(kernel: &mut [u8]) {
        kernel[SETUP_SECTS] = 1;
        put(kernel, MAGIC, b"HdrS");
        put(kernel, VERSION, &0x20fu16.to_le_bytes());
        kernel[LOADFLAGS] = LOADED_HIGH;
        put(kernel, INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
        put(kernel, XLOADFLAGS, &0x7fu16.to_le_bytes());
    }

    fn loading(memory_bytes: u64, initrd_bytes: Option<u64>) -> Loading<'static> {
        Loading {
            memory_bytes,
            command_line: "ro quiet",
            initrd_bytes,
        }
    }

    /// Offset and new value of each byte that QEMU changes.
    fn changes(kernel: &[u8], loading: Loading<'_>) -> Vec<(usize, u8)> {
        let after = patched(kernel, loading).unwrap();
        assert_eq!(after.len(), kernel.len());
        let both = kernel.iter().zip(&after).enumerate();
        both.filter(|(_, (before, after))| before != after)
            .map(|(at, (_, after))| (at, *after))
            .collect()
    }

    #[test]
    fn a_modern_kernel_gets_loader_heap_and_command_line() {
        let expected = [
            (0x210, 0xb0),
            (0x211, 0x81),
            (0x224, 0x00),
            (0x225, 0xfe),
            (0x228, 0x00),
            (0x229, 0x00),
            (0x22a, 0x02),
            (0x22b, 0x00),
        ];
        assert_eq!(changes(&kernel(), loading(4 * GIB, None)), expected);
    }

    #[test]
    fn the_initrd_goes_as_high_as_header_and_memory_allow() {
        let place = |kernel: &[u8], memory, bytes| {
            let after = patched(kernel, loading(memory, Some(bytes))).unwrap();
            assert_eq!(u64::from(read_u32(&after, RAMDISK_SIZE)), bytes);
            read_u32(&after, RAMDISK_IMAGE)
        };
        let high = |below: u64, bytes: u64| ((below - 0x28000 - 1 - bytes) & !4095) as u32;
        let modern = kernel();
        assert_eq!(place(&modern, GIB, 0x12345), high(GIB, 0x12345));
        assert_eq!(place(&modern, 2 * GIB, 5), high(2 * GIB, 5));
        // From 0xb0000000 on the low memory ends at 2 GiB: the same value.
        assert_eq!(place(&modern, 2 << 40, 5), high(2 * GIB, 5));
        assert_eq!(place(&modern, 0xaff0_0000, 5), high(0xaff0_0000, 5));

        // Without XLF_CAN_BE_LOADED_ABOVE_4G the header's own limit holds, whatever XLF_5LEVEL_ENABLED says.
        let mut limited = kernel();
        put(&mut limited, XLOADFLAGS, &0x40u16.to_le_bytes());
        put(&mut limited, INITRD_ADDR_MAX, &0x3000_0000u32.to_le_bytes());
        assert_eq!(place(&limited, 2 * GIB, 0x1000), 0x2fff_f000);
        // With it, and without 5-level paging, the limit does not.
        put(&mut limited, XLOADFLAGS, &0x02u16.to_le_bytes());
        assert_eq!(place(&limited, 2 * GIB, 0x1000), high(2 * GIB, 0x1000));
        // Before 2.12 there are no such flags, before 2.03 there is no limit in the header.
        put(&mut limited, VERSION, &0x20bu16.to_le_bytes());
        assert_eq!(place(&limited, 2 * GIB, 0x1000), 0x2fff_f000);
        put(&mut limited, VERSION, &0x202u16.to_le_bytes());
        assert_eq!(place(&limited, 2 * GIB, 0x1000), 0x37ff_e000);
    }

    #[test]
    fn an_initrd_that_does_not_fit_is_refused() {
        for bytes in [GIB, GIB - 0x28000 - 1, 1 << 33] {
            assert!(matches!(
                patched(&kernel(), loading(GIB, Some(bytes))),
                Err(KernelHeaderError::Initrd { .. })
            ));
        }
    }

    #[test]
    fn old_kernels_have_the_command_line_low() {
        let mut low = kernel();
        low[LOADFLAGS] = 0;
        let after = patched(&low, loading(GIB, None)).unwrap();
        assert_eq!(read_u32(&after, CMD_LINE_PTR), 0x9_a000 - 16);
        assert_eq!(read_u16(&after, HEAP_END_PTR), 0xa000 - 16 - 0x200);
        let mut ancient = kernel();
        put(&mut ancient, VERSION, &0x201u16.to_le_bytes());
        let after = patched(&ancient, loading(GIB, None)).unwrap();
        assert_eq!(read_u16(&after, 0x20), 0xa33f);
        assert_eq!(read_u16(&after, 0x22), 0xa000 - 16);
        assert_eq!(read_u32(&after, CMD_LINE_PTR), read_u32(&ancient, CMD_LINE_PTR));
    }

    #[test]
    fn the_video_mode_is_read_from_the_command_line() {
        let mode = |command_line| {
            let line = Loading {
                command_line,
                ..loading(GIB, None)
            };
            patched(&kernel(), line).map(|after| read_u16(&after, VID_MODE))
        };
        for (line, expected) in [
            ("ro", 0x1111),
            ("ro vga=normal", 0xffff),
            ("vga=ext ro", 0xfffe),
            ("vga=ask", 0xfffd),
            ("vga=791 ro", 791),
            ("vga=0x317", 0x317),
            ("vga=017", 15),
        ] {
            assert_eq!(mode(line), Ok(expected), "{line}");
        }
        for line in ["vga=", "vga=x", "vga=-1", "vga=1x"] {
            assert!(
                matches!(mode(line), Err(KernelHeaderError::VideoMode(_))),
                "{line}"
            );
        }
    }

    #[test]
    fn what_is_no_linux_kernel_is_refused() {
        let mut other = kernel();
        other[MAGIC] = 0;
        assert_eq!(
            patched(&other, loading(GIB, None)),
            Err(KernelHeaderError::NotLinux)
        );
        assert_eq!(patched(&[], loading(GIB, None)), Err(KernelHeaderError::NotLinux));
        let mut cut = kernel();
        cut[SETUP_SECTS] = 0xff;
        assert!(matches!(
            patched(&cut, loading(GIB, None)),
            Err(KernelHeaderError::CutOff { .. })
        ));
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(
            bytes in prop::collection::vec((0x1f0usize..0x260, any::<u8>()), 0..32),
            cut in 0usize..0x3000,
            memory_mib in 256u64..(4 << 20),
            initrd in prop::option::of(any::<u64>()),
            line in "(vga=)?[ -~]{0,40}",
        ) {
            let mut kernel = kernel();
            for (at, byte) in bytes {
                kernel[at] = byte;
            }
            let loading = Loading { memory_bytes: memory_mib << 20, command_line: &line, initrd_bytes: initrd };
            for kernel in [&kernel[..], &kernel[..cut]] {
                if let Ok(after) = patched(kernel, loading) {
                    prop_assert_eq!(after.len(), kernel.len());
                }
            }
        }
    }
}
