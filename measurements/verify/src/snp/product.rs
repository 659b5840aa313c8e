//! The processors that speak SEV-SNP, and how each of them writes its security versions.

use std::fmt;

use serde::{Deserialize, Serialize};
use sev::Generation;

/// A processor family with a root key of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnpProduct {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004, 8004 and 97x4 (Genoa, Siena, Bergamo).
    Genoa,
    /// EPYC 9005.
    Turin,
}

impl SnpProduct {
    /// Every family, oldest first.
    pub const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];

    /// The name in the subjects of AMD's certificates.
    pub fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }

    /// From combined family and model, as a report of version 3 and later states them.
    pub(crate) fn from_cpuid(family: u8, model: u8) -> Option<Self> {
        match Generation::identify_cpu(family, model).ok()? {
            Generation::Milan => Some(Self::Milan),
            Generation::Genoa => Some(Self::Genoa),
            Generation::Turin => Some(Self::Turin),
            // No root key of a later family is pinned here.
            _ => None,
        }
    }

    /// From a certificate's product name: the family, and for a VCEK often a stepping (`Milan-B0`). AMD 57230,
    /// section 3.1, "productName".
    pub(crate) fn from_certificate(name: &str) -> Option<Self> {
        match name.split('-').next()? {
            "Milan" => Some(Self::Milan),
            "Genoa" | "Bergamo" | "Siena" => Some(Self::Genoa),
            "Turin" => Some(Self::Turin),
            _ => None,
        }
    }

    /// Bytes of the chip's identifier that mean something; the rest of the 64 are zero.
    pub(crate) fn chip_id_bytes(self) -> usize {
        match self {
            Self::Milan | Self::Genoa => 64,
            Self::Turin => 8,
        }
    }
}

impl fmt::Display for SnpProduct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Security version numbers of the parts of a platform's trusted computing base (AMD 56860, "TCB_VERSION").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpTcb {
    /// The boot ROM's successor that Turin brought; no other family has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fmc: Option<u8>,
    /// Boot loader of the secure processor.
    pub bootloader: u8,
    /// Operating system of the secure processor.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// Lowest microcode patch level of all cores.
    pub microcode: u8,
}

impl SnpTcb {
    /// Reads the eight bytes of a report: AMD 56860, tables "TCB_VERSION" for Milan and Genoa and for Turin.
    pub(crate) fn decode(raw: [u8; 8], product: SnpProduct) -> Self {
        match product {
            SnpProduct::Milan | SnpProduct::Genoa => Self {
                fmc: None,
                bootloader: raw[0],
                tee: raw[1],
                snp: raw[6],
                microcode: raw[7],
            },
            SnpProduct::Turin => Self {
                fmc: Some(raw[0]),
                bootloader: raw[1],
                tee: raw[2],
                snp: raw[3],
                microcode: raw[7],
            },
        }
    }

    /// Which of the eight bytes mean nothing and must be zero.
    pub(crate) fn reserved(product: SnpProduct) -> std::ops::Range<usize> {
        match product {
            SnpProduct::Milan | SnpProduct::Genoa => 2..6,
            SnpProduct::Turin => 4..7,
        }
    }

    /// Whether no part is older than in `floor`.
    pub(crate) fn at_least(&self, floor: &Self) -> bool {
        self.fmc >= floor.fmc
            && self.bootloader >= floor.bootloader
            && self.tee >= floor.tee
            && self.snp >= floor.snp
            && self.microcode >= floor.microcode
    }
}

impl fmt::Display for SnpTcb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fmc) = self.fmc {
            write!(f, "fmc {fmc} ")?;
        }
        write!(
            f,
            "bootloader {} tee {} snp {} microcode {}",
            self.bootloader, self.tee, self.snp, self.microcode
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_older_part_makes_the_whole_older() {
        let floor = SnpTcb::decode([1, 2, 3, 4, 0, 0, 0, 5], SnpProduct::Turin);
        assert!(floor.at_least(&floor));
        for part in [0, 1, 2, 3, 7] {
            let mut raw = [1, 2, 3, 4, 0, 0, 0, 5];
            raw[part] -= 1;
            assert!(
                !SnpTcb::decode(raw, SnpProduct::Turin).at_least(&floor),
                "part {part}"
            );
        }
        let legacy = SnpTcb::decode([9, 9, 0, 0, 0, 0, 9, 9], SnpProduct::Milan);
        assert!(
            !legacy.at_least(&floor),
            "a part that is not there has no version"
        );
    }

    #[test]
    fn a_family_without_a_pinned_root_is_none() {
        assert_eq!(SnpProduct::from_cpuid(0x19, 0x01), Some(SnpProduct::Milan));
        assert_eq!(SnpProduct::from_cpuid(0x19, 0xa0), Some(SnpProduct::Genoa));
        assert_eq!(SnpProduct::from_cpuid(0x1a, 0x02), Some(SnpProduct::Turin));
        assert_eq!(SnpProduct::from_cpuid(0x1a, 0x50), None);
        assert_eq!(SnpProduct::from_cpuid(0x17, 0x31), None);
        assert_eq!(SnpProduct::from_certificate("Rome-B0"), None);
        assert_eq!(
            SnpProduct::from_certificate("Bergamo-A1"),
            Some(SnpProduct::Genoa)
        );
    }
}
