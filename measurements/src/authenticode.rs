//! The Authenticode digest of a PE image, as edk2 takes it when it starts a kernel.
//!
//! Follows `MeasurePeImageAndExtend` in edk2's SecurityPkg (`MeasureBootPeCoff.c`) and, where both agree,
//! Microsoft's "Windows Authenticode Portable Executable Signature Format" (2008), "Calculating the PE Image
//! Hash". The image may come from anybody: each offset is checked, and no byte is hashed twice.

use cocoon_evidence::{Digest32, Digest48};
use sha2::{Digest, Sha256, Sha384};

/// Longer kernels are refused; a bzImage with everything built in has 4 to 20 MiB.
pub const KERNEL_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Why a file has no Authenticode digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// Over [`KERNEL_BYTES_MAX`].
    #[error("the kernel has {bytes} bytes, at most {KERNEL_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not a PE image that firmware would start.
    #[error("the kernel is not a bootable PE image (a Linux bzImage with CONFIG_EFI_STUB is one): {0}")]
    Malformed(&'static str),
}

/// The digest that RTMR1 gets.
pub(crate) fn authenticode(image: &[u8]) -> Result<Digest48, KernelError> {
    image_hash(image, Sha384::new()).map(|hash| Digest48(hash.into()))
}

/// The same over SHA-256: by it Secure Boot knows a kernel that is not signed.
pub(crate) fn image_sha256(image: &[u8]) -> Result<Digest32, KernelError> {
    image_hash(image, Sha256::new()).map(|hash| Digest32(hash.into()))
}

/// Whether the image carries signatures.
pub(crate) fn has_certificate(image: &[u8]) -> Result<bool, KernelError> {
    let headers = Headers::parse(image).map_err(KernelError::Malformed)?;
    Ok(headers.certificate_bytes > 0)
}

/// Steps 1 to 13 below are those of Microsoft's document; `hash` is new.
fn image_hash<H: Digest>(image: &[u8], mut hash: H) -> Result<sha2::digest::Output<H>, KernelError> {
    if image.len() > KERNEL_BYTES_MAX {
        return Err(KernelError::TooLarge { bytes: image.len() });
    }
    let headers = Headers::parse(image).map_err(KernelError::Malformed)?; // 1, 2
    hash.update(&image[..headers.checksum]); // 3
    let after_checksum = headers.checksum + 4; // 4
    match headers.certificate_entry {
        Some(entry) => {
            hash.update(&image[after_checksum..entry]); // 5
            hash.update(&image[entry + 8..headers.end]); // 6, 7
        }
        None => hash.update(&image[after_checksum..headers.end]),
    }
    let mut hashed = headers.end; // 8
    for section in sections_by_offset(image, &headers).map_err(KernelError::Malformed)? {
        let content = image
            .get(section.start..)
            .and_then(|rest| rest.get(..section.bytes))
            .ok_or(KernelError::Malformed("a section reaches outside the file"))?;
        hashed = hashed
            .checked_add(section.bytes)
            .filter(|hashed| *hashed <= image.len())
            .ok_or(KernelError::Malformed("its sections overlap"))?;
        hash.update(content); // 9 to 12
    }
    let trailing_end = image
        .len()
        .checked_sub(headers.certificate_bytes)
        .filter(|end| *end >= hashed)
        .ok_or(KernelError::Malformed(
            "its certificates are longer than what follows the sections",
        ))?;
    hash.update(&image[hashed..trailing_end]); // 13
    Ok(hash.finalize())
}

/// Where things are. All offsets lie in the file, in the order `checksum < certificate_entry < end`.
struct Headers {
    checksum: usize,
    /// The security entry of the data directory; absent when the directory is too short for one.
    certificate_entry: Option<usize>,
    certificate_bytes: usize,
    section_table: usize,
    section_count: usize,
    end: usize,
}

const PE_OFFSET_AT: usize = 0x3c;
const FILE_HEADER_BYTES: usize = 24;
const CHECKSUM_AT: usize = 64;
const HEADERS_BYTES_AT: usize = 60;
const SECURITY_DIRECTORY: u32 = 4;
const SECTION_HEADER_BYTES: usize = 40;

impl Headers {
    fn parse(image: &[u8]) -> Result<Self, &'static str> {
        const CUT_OFF: &str = "its headers are cut off";
        if !image.starts_with(b"MZ") {
            return Err("it does not start with MZ");
        }
        let pe = read_u32(image, PE_OFFSET_AT).ok_or(CUT_OFF)? as usize;
        if image.get(pe..).and_then(|rest| rest.first_chunk()) != Some(b"PE\0\0") {
            return Err("it has no PE signature");
        }
        let optional = pe + FILE_HEADER_BYTES;
        let directory = match read_u16(image, optional).ok_or(CUT_OFF)? {
            0x10b => optional + 96,
            0x20b => optional + 112,
            _ => return Err("its optional header is neither PE32 nor PE32+"),
        };
        let entries = read_u32(image, directory - 4).ok_or(CUT_OFF)?;
        let end = read_u32(image, optional + HEADERS_BYTES_AT).ok_or(CUT_OFF)? as usize;
        let certificate_entry =
            (entries > SECURITY_DIRECTORY).then_some(directory + 8 * SECURITY_DIRECTORY as usize);
        if end > image.len() || end < certificate_entry.map_or(directory, |entry| entry + 8) {
            return Err("SizeOfHeaders does not cover the headers");
        }
        let certificate_bytes = match certificate_entry {
            Some(entry) => read_u32(image, entry + 4).ok_or(CUT_OFF)? as usize,
            None => 0,
        };
        let optional_bytes = usize::from(read_u16(image, pe + 20).ok_or(CUT_OFF)?);
        Ok(Self {
            checksum: optional + CHECKSUM_AT,
            certificate_entry,
            certificate_bytes,
            section_table: optional + optional_bytes,
            section_count: usize::from(read_u16(image, pe + 6).ok_or(CUT_OFF)?),
            end,
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct SectionContent {
    start: usize,
    bytes: usize,
}

/// The sections that have content, as they follow each other in the file; equal offsets keep the table's order.
fn sections_by_offset(image: &[u8], headers: &Headers) -> Result<Vec<SectionContent>, &'static str> {
    let table = image
        .get(headers.section_table..)
        .and_then(|rest| rest.get(..headers.section_count * SECTION_HEADER_BYTES))
        .ok_or("its section table is cut off")?;
    let mut sections: Vec<_> = table
        .chunks_exact(SECTION_HEADER_BYTES)
        .filter_map(|header| {
            Some(SectionContent {
                start: read_u32(header, 20)? as usize,
                bytes: read_u32(header, 16)? as usize,
            })
        })
        .filter(|section| section.bytes > 0)
        .collect();
    sections.sort_by_key(|section| section.start);
    Ok(sections)
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    let word = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_le_bytes(*word))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*word))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    const PE: usize = 0x40;
    const OPTIONAL: usize = PE + FILE_HEADER_BYTES;
    const DIRECTORY: usize = OPTIONAL + 112;
    const TABLE: usize = OPTIONAL + 240;
    const HEADERS_END: usize = 0x200;

    fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A PE32+ image: two sections, the second of them first in the file, then `trailing`.
    pub(crate) fn image(trailing: &[u8]) -> Vec<u8> {
        let mut image = vec![0; HEADERS_END];
        put(&mut image, 0, b"MZ");
        put(&mut image, PE_OFFSET_AT, &(PE as u32).to_le_bytes());
        put(&mut image, PE, b"PE\0\0");
        put(&mut image, PE + 6, &2u16.to_le_bytes());
        put(&mut image, PE + 20, &240u16.to_le_bytes());
        put(&mut image, OPTIONAL, &0x20bu16.to_le_bytes());
        put(
            &mut image,
            OPTIONAL + HEADERS_BYTES_AT,
            &(HEADERS_END as u32).to_le_bytes(),
        );
        put(&mut image, DIRECTORY - 4, &16u32.to_le_bytes());
        for (index, (bytes, start)) in [(0x100u32, 0x300u32), (0x100, 0x200)].into_iter().enumerate() {
            let header = TABLE + index * SECTION_HEADER_BYTES;
            put(&mut image, header + 16, &bytes.to_le_bytes());
            put(&mut image, header + 20, &start.to_le_bytes());
        }
        image.extend([1; 0x100]);
        image.extend([2; 0x100]);
        image.extend(trailing);
        image
    }

    fn skip(image: &[u8], ranges: &[std::ops::Range<usize>]) -> Vec<u8> {
        let kept = |at: &usize| !ranges.iter().any(|range| range.contains(at));
        (0..image.len()).filter(kept).map(|at| image[at]).collect()
    }

    /// Says that the certificates are the image's last bytes from `at` on, and adds 16 bytes of them.
    pub(crate) fn sign(image: &mut Vec<u8>, at: u32) {
        put(image, CERTIFICATE.start, &at.to_le_bytes());
        put(image, CERTIFICATE.start + 4, &16u32.to_le_bytes());
        image.extend([7; 16]);
    }

    const CHECKSUM: std::ops::Range<usize> = OPTIONAL + 64..OPTIONAL + 68;
    const CERTIFICATE: std::ops::Range<usize> = DIRECTORY + 32..DIRECTORY + 40;

    #[test]
    fn the_file_is_hashed_without_checksum_and_certificate_entry() {
        // Unpadded trailing bytes count even though there is no certificate.
        let image = image(b"trailing");
        let expected = Digest48::of(&skip(&image, &[CHECKSUM, CERTIFICATE]));
        assert_eq!(authenticode(&image), Ok(expected));
    }

    #[test]
    fn signing_does_not_change_the_digest() {
        let unsigned = image(b"");
        let mut signed = unsigned.clone();
        put(&mut signed, CHECKSUM.start, &[9; 4]);
        sign(&mut signed, unsigned.len() as u32);
        assert_eq!(authenticode(&signed), authenticode(&unsigned));
    }

    #[test]
    fn without_a_security_entry_nothing_but_the_checksum_is_skipped() {
        let mut image = image(b"");
        put(&mut image, DIRECTORY - 4, &4u32.to_le_bytes());
        put(&mut image, CERTIFICATE.start, &[3; 8]);
        assert_eq!(authenticode(&image), Ok(Digest48::of(&skip(&image, &[CHECKSUM]))));
    }

    #[test]
    fn every_other_byte_changes_the_digest() {
        let image = image(b"trailing");
        let digest = authenticode(&image).unwrap();
        for at in (0..image.len()).filter(|at| !CHECKSUM.contains(at) && !CERTIFICATE.contains(at)) {
            let mut other = image.clone();
            other[at] ^= 0x80;
            assert_ne!(authenticode(&other), Ok(digest), "byte {at:#x}");
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        let check = |at: usize, bytes: &[u8], says: &str| {
            let mut image = image(b"");
            put(&mut image, at, bytes);
            let error = authenticode(&image).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        check(0, b"XX", "does not start with MZ");
        check(PE_OFFSET_AT, &[0xff; 4], "no PE signature");
        check(OPTIONAL, &[0; 2], "neither PE32 nor PE32+");
        check(OPTIONAL + HEADERS_BYTES_AT, &[0xff; 4], "SizeOfHeaders");
        check(OPTIONAL + HEADERS_BYTES_AT, &[0; 4], "SizeOfHeaders");
        check(PE + 6, &[0xff; 2], "section table is cut off");
        check(TABLE + 16, &[0xff; 4], "section reaches outside");
        check(TABLE + 20, &[0xff; 4], "section reaches outside");
        check(CERTIFICATE.start + 4, &[0xff; 4], "certificates are longer");
        let overlapping = {
            let mut image = image(b"");
            put(&mut image, TABLE + 16, &0x200u32.to_le_bytes());
            put(&mut image, TABLE + 20, &0x200u32.to_le_bytes());
            image
        };
        assert_eq!(
            authenticode(&overlapping),
            Err(KernelError::Malformed("its sections overlap"))
        );
    }

    #[test]
    fn truncation_is_refused() {
        let image = image(b"");
        for cut in 0..image.len() {
            assert!(authenticode(&image[..cut]).is_err(), "cut at {cut:#x}");
        }
    }

    proptest! {
        #[test]
        fn hostile_images_never_panic(changes in prop::collection::vec((0usize..0x250, any::<u8>()), 0..24)) {
            let mut image = image(b"trailing");
            for (at, byte) in changes {
                image[at] = byte;
            }
            let _ = authenticode(&image);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..800)) {
            let _ = authenticode(&[b"MZ".as_slice(), &bytes].concat());
        }
    }
}
