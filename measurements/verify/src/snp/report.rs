//! The attestation report: 1184 bytes, of which 672 are signed. AMD 56860, "SEV Secure Nested Paging Firmware ABI
//! Specification", table "ATTESTATION_REPORT Structure"; the signature's form is that of chapter "ECDSA P-384 with
//! SHA-384 Signature". Offsets below are that table's.

use std::ops::Range;

use super::product::{SnpProduct, SnpTcb};

/// The only length that a report has.
pub const SNP_REPORT_BYTES: usize = 1184;

/// The signature covers what precedes it.
const SIGNATURE_AT: usize = 0x2a0;
/// R and S have room for 576 bits each; P-384 needs 384.
const SCALAR_ROOM: usize = 72;
const SCALAR_BYTES: usize = 48;
/// Family, model and stepping came with version 3.
const CPUID_AT: usize = 0x188;
/// ECDSA P-384 with SHA-384, the only algorithm there is.
const ECDSA_P384_SHA384: u32 = 1;

/// A report that does not have the form that AMD's firmware gives it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnpReportError {
    /// Cut short, or with something behind it.
    #[error("{found} bytes, where a report has {SNP_REPORT_BYTES}")]
    Length {
        /// Bytes given.
        found: usize,
    },
    /// A form that nobody described.
    #[error("version {found} at offset 0x0; 2 to 5 are known")]
    Version {
        /// The report's version.
        found: u32,
    },
    /// Another signature algorithm.
    #[error("signature algorithm {found} at offset 0x34; only 1 (ECDSA P-384 with SHA-384) is known")]
    SignatureAlgorithm {
        /// The report's number.
        found: u32,
    },
    /// Neither VCEK nor VLEK.
    #[error("signing key {found} at offset 0x48; only 0 (VCEK) and 1 (VLEK) sign")]
    SigningKey {
        /// The report's number; 7 says that nothing signed.
        found: u32,
    },
    /// A byte that must be zero is not.
    #[error("byte {found:#04x} at offset {offset:#x}, which version {version} reserves as zero")]
    Reserved {
        /// Where.
        offset: usize,
        /// What.
        found: u8,
        /// The report's version.
        version: u32,
    },
}

/// Which key signed a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningKey {
    /// The chip's own, for one security version.
    Vcek,
    /// One that AMD gave to a cloud provider, for one security version.
    Vlek,
}

impl SigningKey {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vcek => "VCEK",
            Self::Vlek => "VLEK",
        }
    }
}

/// Version of the SNP firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FirmwareVersion {
    pub(crate) major: u8,
    pub(crate) minor: u8,
    pub(crate) build: u8,
}

impl std::fmt::Display for FirmwareVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.build)
    }
}

/// A well-formed report. What it says is only true once its signature is verified.
#[derive(Debug, Clone)]
pub struct SnpReport {
    bytes: [u8; SNP_REPORT_BYTES],
    signing_key: SigningKey,
}

impl SnpReport {
    /// Checks length, version, algorithm and every byte that the version reserves.
    pub fn parse(bytes: &[u8]) -> Result<Self, SnpReportError> {
        let bytes: [u8; SNP_REPORT_BYTES] = bytes
            .try_into()
            .map_err(|_| SnpReportError::Length { found: bytes.len() })?;
        let mut report = Self {
            bytes,
            signing_key: SigningKey::Vcek,
        };
        let version = report.version();
        if !(2..=5).contains(&version) {
            return Err(SnpReportError::Version { found: version });
        }
        if report.u32_at(0x34) != ECDSA_P384_SHA384 {
            return Err(SnpReportError::SignatureAlgorithm {
                found: report.u32_at(0x34),
            });
        }
        report.check_reserved()?;
        report.signing_key = match report.key_info() >> 2 & 7 {
            0 => SigningKey::Vcek,
            1 => SigningKey::Vlek,
            found => return Err(SnpReportError::SigningKey { found }),
        };
        Ok(report)
    }

    fn check_reserved(&self) -> Result<(), SnpReportError> {
        let version = self.version();
        let cpuid_end = if version >= 3 { CPUID_AT + 3 } else { CPUID_AT };
        let launch_end = if version >= 5 { 0x208 } else { 0x1f8 };
        let scalars_end = SIGNATURE_AT + 2 * SCALAR_ROOM;
        let reserved: [Range<usize>; 9] = [
            // KEY_INFO has five bits; the sixth to eighth are checked below.
            0x49..0x4c,
            0x4c..0x50,
            cpuid_end..0x1a0,
            0x1eb..0x1ec,
            0x1ef..0x1f0,
            launch_end..SIGNATURE_AT,
            SIGNATURE_AT + SCALAR_BYTES..SIGNATURE_AT + SCALAR_ROOM,
            SIGNATURE_AT + SCALAR_ROOM + SCALAR_BYTES..scalars_end,
            scalars_end..SNP_REPORT_BYTES,
        ];
        let first = reserved.into_iter().flatten().find(|at| self.bytes[*at] != 0);
        let first = first.or((self.bytes[0x48] & 0xe0 != 0).then_some(0x48));
        match first {
            Some(offset) => Err(self.reserved(offset)),
            None => Ok(()),
        }
    }

    fn reserved(&self, offset: usize) -> SnpReportError {
        SnpReportError::Reserved {
            offset,
            found: self.bytes[offset],
            version: self.version(),
        }
    }

    /// The first security version that has a byte which `product` reserves.
    pub(crate) fn check_tcbs(&self, product: SnpProduct) -> Result<(), SnpReportError> {
        let tcbs = [0x38, 0x180, 0x1e0, 0x1f0];
        let mut reserved = tcbs
            .into_iter()
            .flat_map(|at| SnpTcb::reserved(product).map(move |byte| at + byte));
        match reserved.find(|at| self.bytes[*at] != 0) {
            Some(offset) => Err(self.reserved(offset)),
            None => Ok(()),
        }
    }

    /// The bytes that the signature covers.
    pub(crate) fn signed(&self) -> &[u8] {
        &self.bytes[..SIGNATURE_AT]
    }

    /// R and S, little-endian in their rooms, as the report has them.
    pub(crate) fn scalars(&self) -> ([u8; SCALAR_ROOM], [u8; SCALAR_ROOM]) {
        (self.array(SIGNATURE_AT), self.array(SIGNATURE_AT + SCALAR_ROOM))
    }

    pub(crate) fn version(&self) -> u32 {
        self.u32_at(0)
    }

    pub(crate) fn guest_svn(&self) -> u32 {
        self.u32_at(0x4)
    }

    /// GUEST_POLICY.
    pub(crate) fn policy(&self) -> u64 {
        u64::from_le_bytes(self.array(0x8))
    }

    pub(crate) fn family_id(&self) -> [u8; 16] {
        self.array(0x10)
    }

    pub(crate) fn image_id(&self) -> [u8; 16] {
        self.array(0x20)
    }

    pub(crate) fn vmpl(&self) -> u32 {
        self.u32_at(0x30)
    }

    /// PLATFORM_INFO.
    pub(crate) fn platform_info(&self) -> u64 {
        u64::from_le_bytes(self.array(0x40))
    }

    fn key_info(&self) -> u32 {
        self.u32_at(0x48)
    }

    pub(crate) fn has_author_key(&self) -> bool {
        self.key_info() & 1 != 0
    }

    pub(crate) fn signing_key(&self) -> SigningKey {
        self.signing_key
    }

    pub(crate) fn report_data(&self) -> [u8; 64] {
        self.array(0x50)
    }

    pub(crate) fn measurement(&self) -> [u8; 48] {
        self.array(0x90)
    }

    pub(crate) fn host_data(&self) -> [u8; 32] {
        self.array(0xc0)
    }

    pub(crate) fn id_key_digest(&self) -> [u8; 48] {
        self.array(0xe0)
    }

    pub(crate) fn author_key_digest(&self) -> [u8; 48] {
        self.array(0x110)
    }

    pub(crate) fn report_id(&self) -> [u8; 32] {
        self.array(0x140)
    }

    pub(crate) fn report_id_ma(&self) -> [u8; 32] {
        self.array(0x160)
    }

    pub(crate) fn chip_id(&self) -> [u8; 64] {
        self.array(0x1a0)
    }

    /// Combined family and model, and stepping; none before version 3.
    pub(crate) fn cpuid(&self) -> Option<[u8; 3]> {
        (self.version() >= 3).then(|| self.array(CPUID_AT))
    }

    pub(crate) fn current_tcb(&self) -> [u8; 8] {
        self.array(0x38)
    }

    pub(crate) fn reported_tcb(&self) -> [u8; 8] {
        self.array(0x180)
    }

    pub(crate) fn committed_tcb(&self) -> [u8; 8] {
        self.array(0x1e0)
    }

    pub(crate) fn launch_tcb(&self) -> [u8; 8] {
        self.array(0x1f0)
    }

    pub(crate) fn current_firmware(&self) -> FirmwareVersion {
        self.firmware_at(0x1e8)
    }

    pub(crate) fn committed_firmware(&self) -> FirmwareVersion {
        self.firmware_at(0x1ec)
    }

    /// Mitigation vectors at launch and now; none before version 5.
    pub(crate) fn mitigation_vectors(&self) -> Option<[u64; 2]> {
        (self.version() >= 5).then(|| [0x1f8, 0x200].map(|at| u64::from_le_bytes(self.array(at))))
    }

    fn firmware_at(&self, at: usize) -> FirmwareVersion {
        let [build, minor, major] = self.array(at);
        FirmwareVersion { major, minor, build }
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[at..at + N]);
        array
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zeroed(version: u8) -> [u8; SNP_REPORT_BYTES] {
        let mut bytes = [0; SNP_REPORT_BYTES];
        bytes[0] = version;
        bytes[0x34] = 1;
        bytes
    }

    #[test]
    fn each_version_has_the_fields_that_it_brought() {
        for (version, family, mitigation) in [(2, false, false), (3, true, false), (5, true, true)] {
            let parses = |at: usize| {
                let mut bytes = zeroed(version);
                bytes[at] = 1;
                SnpReport::parse(&bytes).is_ok()
            };
            assert!(SnpReport::parse(&zeroed(version)).is_ok());
            assert_eq!(parses(0x188), family, "version {version}");
            assert_eq!(parses(0x18a), family, "version {version}");
            assert_eq!(parses(0x1f8), mitigation, "version {version}");
            assert_eq!(parses(0x207), mitigation, "version {version}");
            assert!(!parses(0x18b) && !parses(0x208), "version {version}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_offset() {
        let error = |change: fn(&mut [u8; SNP_REPORT_BYTES])| {
            let mut bytes = zeroed(3);
            change(&mut bytes);
            SnpReport::parse(&bytes).unwrap_err().to_string()
        };
        assert!(error(|bytes| bytes[0] = 6).starts_with("version 6 at offset 0x0"));
        assert!(error(|bytes| bytes[0x34] = 2).contains("algorithm 2 at offset 0x34"));
        assert!(error(|bytes| bytes[0x48] = 7 << 2).contains("signing key 7 at offset 0x48"));
        assert!(error(|bytes| bytes[0x48] = 0x20).contains("byte 0x20 at offset 0x48"));
        assert!(error(|bytes| bytes[0x49f] = 1).contains("byte 0x01 at offset 0x49f"));
        let short = SnpReport::parse(&[0; 1183]).unwrap_err();
        assert_eq!(short.to_string(), "1183 bytes, where a report has 1184");
    }
}
