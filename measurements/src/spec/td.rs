//! `[td]`: the attributes and extended features with which the TDX module makes the TD. Neither is measured; both are
//! in the quote, and a policy states them.
//!
//! They follow from the processor and from QEMU's `-cpu` and `-object tdx-guest`, which no file here holds, so they
//! are stated. What is stated wrongly is not found in any quote: the policy refuses every guest, and says which.

use cocoon_verify::Bits64;
use serde::{Deserialize, Serialize};

use super::{LaunchPlatform, LaunchSpec};

/// `[td]`, for `platform = "tdx"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdSpec {
    /// ATTRIBUTES; [`TD_ATTRIBUTES_DEFAULT`] if left out. QEMU adds PKS (bit 30) where the guest's processor has it,
    /// and PERFMON (bit 63) with `-cpu ...,pmu=on`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Bits64>,
    /// XFAM: the state components that the processor has and QEMU's `-cpu` leaves on. No default: it differs from one
    /// generation of processors to the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xfam: Option<Bits64>,
}

/// SEPT_VE_DISABLE (bit 28) alone, which no policy should do without: the host could inject exceptions.
pub const TD_ATTRIBUTES_DEFAULT: Bits64 = Bits64(0x1000_0000);

/// TD attributes of a simulated TD.
pub const SIMULATED_TD_ATTRIBUTES: u64 = TD_ATTRIBUTES_DEFAULT.0;

/// Extended features of a simulated TD: x87, SSE, AVX, AVX-512 (bits 0-2, 5-7), PKRU (9), AMX (17, 18).
pub const SIMULATED_XFAM: u64 = 0x6_02e7;

/// What the quote of a launch has to say about its TD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PredictedTd {
    /// ATTRIBUTES.
    pub attributes: Bits64,
    /// Where they come from.
    pub attributes_from: TdSource,
    /// XFAM; unknown if the LaunchSpec does not state it.
    pub xfam: Option<Bits64>,
}

/// Where attributes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TdSource {
    /// `[td]`.
    LaunchSpec,
    /// [`TD_ATTRIBUTES_DEFAULT`].
    Default,
    /// The simulated TD has no others.
    Simulated,
}

/// `[td]` where there is nothing to state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("[td] is for platform = \"tdx\": leave it out of this LaunchSpec")]
pub struct TdSpecError;

impl LaunchSpec {
    /// Attributes and extended features of the TD; `None` if it is none.
    ///
    /// # Errors
    /// They are stated for another platform than TDX.
    pub fn td(&self) -> Result<Option<PredictedTd>, TdSpecError> {
        let TdSpec { attributes, xfam } = self.td;
        match self.platform {
            LaunchPlatform::Tdx => Ok(Some(PredictedTd {
                attributes: attributes.unwrap_or(TD_ATTRIBUTES_DEFAULT),
                attributes_from: match attributes {
                    Some(_) => TdSource::LaunchSpec,
                    None => TdSource::Default,
                },
                xfam,
            })),
            _ if self.td != TdSpec::default() => Err(TdSpecError),
            LaunchPlatform::Simulated => Ok(Some(PredictedTd {
                attributes: Bits64(SIMULATED_TD_ATTRIBUTES),
                attributes_from: TdSource::Simulated,
                xfam: Some(Bits64(SIMULATED_XFAM)),
            })),
            LaunchPlatform::Snp => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(platform: &str, td: &str) -> LaunchSpec {
        let head = format!("platform = \"{platform}\"\nmachine = \"q35-1\"\nvcpus = 1\nmemory_mib = 1024\n");
        toml::from_str(&(head + td)).unwrap()
    }

    #[test]
    fn the_simulated_tds_values_are_never_those_of_a_real_one() {
        let td = spec("tdx", "").td().unwrap().unwrap();
        assert_eq!(td.attributes_from, TdSource::Default);
        assert_eq!((td.attributes, td.xfam), (TD_ATTRIBUTES_DEFAULT, None));
        let simulated = spec("simulated", "").td().unwrap().unwrap();
        assert_eq!(simulated.xfam, Some(Bits64(SIMULATED_XFAM)));
        assert_eq!(spec("snp", "").td(), Ok(None));
    }

    #[test]
    fn what_is_stated_counts_and_only_for_tdx() {
        let stated = "[td]\nattributes = \"0x0000000050000000\"\nxfam = \"0x00000000000618e7\"\n";
        let td = spec("tdx", stated).td().unwrap().unwrap();
        assert_eq!(td.attributes_from, TdSource::LaunchSpec);
        assert_eq!(
            (td.attributes, td.xfam),
            (Bits64(0x5000_0000), Some(Bits64(0x6_18e7)))
        );
        for platform in ["simulated", "snp"] {
            assert_eq!(spec(platform, stated).td(), Err(TdSpecError));
        }
    }
}
