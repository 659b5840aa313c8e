//! A TDX measurement register and its one operation.

use serde::{Deserialize, Serialize};

use crate::Digest48;

/// Which of the four run-time measurement registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rtmr {
    /// Firmware configuration and virtual hardware.
    Rtmr0,
    /// What the firmware started: the kernel.
    Rtmr1,
    /// What the kernel was told: the command line.
    Rtmr2,
    /// The application: written by the agent only.
    Rtmr3,
}

/// The value of a run-time measurement register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Register(Digest48);

impl Register {
    /// The value at reset.
    pub const RESET: Self = Self(Digest48::ZERO);

    /// `R' = SHA-384(R || digest)` (Intel TDX Module Base Architecture Specification 1.5, "RTMR: Run-Time
    /// Measurement Registers").
    pub fn extend(&mut self, digest: &Digest48) {
        self.0 = Digest48::of_parts([self.0.as_bytes().as_slice(), digest.as_bytes()]);
    }

    /// The value after extending each digest in turn, from reset.
    pub fn replay<'a>(digests: impl IntoIterator<Item = &'a Digest48>) -> Self {
        let mut register = Self::RESET;
        digests.into_iter().for_each(|digest| register.extend(digest));
        register
    }

    /// The current value.
    pub fn value(&self) -> Digest48 {
        self.0
    }
}

impl Default for Register {
    fn default() -> Self {
        Self::RESET
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_matters() {
        let (a, b) = (Digest48::of(b"a"), Digest48::of(b"b"));
        assert_ne!(Register::replay([&a, &b]), Register::replay([&b, &a]));
    }

    #[test]
    fn one_extend_is_sha384_of_both() {
        let digest = Digest48::of(b"event");
        let expected = Digest48::of(&[&[0u8; 48][..], digest.as_bytes()].concat());
        assert_eq!(Register::replay([&digest]).value(), expected);
    }
}
