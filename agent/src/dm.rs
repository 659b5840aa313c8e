//! Device-mapper, just enough to put dm-verity over the model disk (include/uapi/linux/dm-ioctl.h).
//!
//! The table comes from the measured launch document, never from a superblock on the disk.

use std::{
    ffi::c_char,
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

const CONTROL: &str = "/dev/mapper/control";
const NAME: &[u8] = b"model";
const VERSION: [u32; 3] = [4, 0, 0];
const READ_ONLY: u32 = 1;

/// `struct dm_ioctl`, 312 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [c_char; 128],
    uuid: [c_char; 129],
    data: [c_char; 7],
}

/// `struct dm_target_spec`, 40 bytes; the parameters follow, NUL-terminated, padded to eight bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Target {
    sector_start: u64,
    length: u64,
    status: i32,
    next: u32,
    target_type: [c_char; 16],
}

const HEADER_BYTES: usize = size_of::<Header>();
const TARGET_BYTES: usize = size_of::<Target>();

/// No verity table is longer: two device names, four numbers, two digests.
const PARAMETERS_BYTES_MAX: usize = 487;

/// What is passed to every call; big enough for one target.
#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    header: Header,
    target: Target,
    parameters: [u8; PARAMETERS_BYTES_MAX + 1],
}

/// Which step of mapping failed.
#[derive(Debug, thiserror::Error)]
#[error("device-mapper: {step} failed")]
pub struct MapError {
    step: &'static str,
    #[source]
    source: io::Error,
}

/// Maps a read-only verity device and returns its path.
///
/// # Errors
/// The kernel refuses, for example because the disk is smaller than the table says.
pub(crate) fn map_verity(table: &str, sectors: u64) -> Result<PathBuf, MapError> {
    let step = |step| move |source| MapError { step, source };
    let mut load = Request::new();
    load.put_verity(table, sectors)
        .map_err(step("encoding the table"))?;
    let control = File::options()
        .read(true)
        .write(true)
        .open(CONTROL)
        .map_err(step("opening its control device"))?;
    let created = call::dev_create(&control, Request::new()).map_err(step("creating the device"))?;
    call::table_load(&control, load).map_err(step("loading the table"))?;
    call::dev_suspend(&control, Request::new()).map_err(step("activating the table"))?;
    Ok(Path::new("/dev").join(format!("dm-{}", minor(created.header.dev))))
}

/// The kernel's `huge_encode_dev`: minor in bits 0-7 and 20-31.
fn minor(device: u64) -> u64 {
    (device & 0xff) | ((device >> 12) & 0xfff00)
}

impl Request {
    fn new() -> Self {
        Self {
            header: Header {
                version: VERSION,
                data_size: size_of::<Self>() as u32,
                data_start: HEADER_BYTES as u32,
                target_count: 0,
                open_count: 0,
                flags: READ_ONLY,
                event_nr: 0,
                padding: 0,
                dev: 0,
                name: c_chars(NAME),
                uuid: [0; 129],
                data: [0; 7],
            },
            target: Target {
                sector_start: 0,
                length: 0,
                status: 0,
                next: 0,
                target_type: [0; 16],
            },
            parameters: [0; PARAMETERS_BYTES_MAX + 1],
        }
    }

    fn put_verity(&mut self, table: &str, sectors: u64) -> io::Result<()> {
        let fits = table.len() <= PARAMETERS_BYTES_MAX && !table.contains('\0');
        if !fits {
            return Err(io::Error::other("the table is too long"));
        }
        self.header.target_count = 1;
        self.target.length = sectors;
        self.target.next = (TARGET_BYTES + self.parameters.len()) as u32;
        self.target.target_type = c_chars(b"verity");
        self.parameters[..table.len()].copy_from_slice(table.as_bytes());
        Ok(())
    }
}

fn c_chars<const N: usize>(text: &[u8]) -> [c_char; N] {
    let mut chars = [0; N];
    for (to, from) in chars.iter_mut().zip(text) {
        *to = *from as c_char;
    }
    chars
}

/// The three ioctls. Each takes the request by value, so that the kernel writes into memory that nothing else
/// refers to.
#[allow(unsafe_code, reason = "ioctls have no safe interface")]
mod call {
    use super::{AsRawFd, File, Header, Request, io};

    const DM: u8 = 0xfd;

    nix::ioctl_readwrite!(raw_dev_create, DM, 3, Header);
    nix::ioctl_readwrite!(raw_dev_suspend, DM, 6, Header);
    nix::ioctl_readwrite!(raw_table_load, DM, 9, Header);

    macro_rules! call {
        ($name:ident, $raw:ident) => {
            pub(super) fn $name(control: &File, mut request: Request) -> io::Result<Request> {
                let pointer = (&raw mut request).cast::<Header>();
                // SAFETY: the pointer is to a whole `Request` that lives across the call, its `data_size` is
                // its size, and the kernel reads and writes no more than that.
                unsafe { $raw(control.as_raw_fd(), pointer) }?;
                Ok(request)
            }
        };
    }

    call!(dev_create, raw_dev_create);
    call!(dev_suspend, raw_dev_suspend);
    call!(table_load, raw_table_load);
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use cocoon_evidence::Digest32;
    use cocoon_protocol::VerityVolume;

    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!((HEADER_BYTES, TARGET_BYTES), (312, 40));
        assert_eq!(offset_of!(Header, dev), 40);
        assert_eq!(offset_of!(Header, name), 48);
        assert_eq!(offset_of!(Header, uuid), 176);
        assert_eq!(offset_of!(Target, target_type), 24);
        assert_eq!(offset_of!(Request, target), 312);
        assert_eq!(offset_of!(Request, parameters), 352);
        assert_eq!(size_of::<Request>() % 8, 0);
    }

    #[test]
    fn the_longest_table_fits_and_a_longer_one_is_refused() {
        let volume = VerityVolume {
            data_blocks: u64::MAX,
            salt: Digest32::ZERO,
            root_hash: Digest32::ZERO,
        };
        let mut request = Request::new();
        request
            .put_verity(&volume.table(&format!("/dev/{}", "v".repeat(32))), 8)
            .unwrap();
        assert_eq!(request.parameters.last(), Some(&0));
        assert!(
            request
                .put_verity(&"x".repeat(PARAMETERS_BYTES_MAX + 1), 8)
                .is_err()
        );
    }

    #[test]
    fn minors_beyond_one_byte_are_put_together() {
        assert_eq!(minor(0xfe01), 1);
        assert_eq!(minor((1 << 20) | 0xfe02), 0x102);
    }
}
