//! The status of a security version, by Intel's names, and how those of several components add up.

use serde::{Deserialize, Serialize};

/// Intel PCS API version 4, "Get TDX TCB Info", `tcbStatus`; the last two are Intel's verification library's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TcbStatus {
    /// Nothing known is missing.
    UpToDate,
    /// Software on it has to work around something.
    SWHardeningNeeded,
    /// The platform has to be configured in another way.
    ConfigurationNeeded,
    /// Both of these.
    ConfigurationAndSWHardeningNeeded,
    /// An update is missing.
    OutOfDate,
    /// An update is missing, and another configuration is needed.
    OutOfDateConfigurationNeeded,
    /// Its keys are known to others. Never accepted.
    Revoked,
    /// The TDX module was updated since the TD started; a new start would make it up to date.
    TDRelaunchAdvised,
    /// Likewise, and another configuration is needed.
    TDRelaunchAdvisedConfigurationNeeded,
}

impl TcbStatus {
    /// Every status.
    pub const ALL: [Self; 9] = [
        Self::UpToDate,
        Self::SWHardeningNeeded,
        Self::ConfigurationNeeded,
        Self::ConfigurationAndSWHardeningNeeded,
        Self::OutOfDate,
        Self::OutOfDateConfigurationNeeded,
        Self::Revoked,
        Self::TDRelaunchAdvised,
        Self::TDRelaunchAdvisedConfigurationNeeded,
    ];

    /// By Intel's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::UpToDate => "UpToDate",
            Self::SWHardeningNeeded => "SWHardeningNeeded",
            Self::ConfigurationNeeded => "ConfigurationNeeded",
            Self::ConfigurationAndSWHardeningNeeded => "ConfigurationAndSWHardeningNeeded",
            Self::OutOfDate => "OutOfDate",
            Self::OutOfDateConfigurationNeeded => "OutOfDateConfigurationNeeded",
            Self::Revoked => "Revoked",
            Self::TDRelaunchAdvised => "TDRelaunchAdvised",
            Self::TDRelaunchAdvisedConfigurationNeeded => "TDRelaunchAdvisedConfigurationNeeded",
        }
    }

    /// Whether an update is missing.
    pub(crate) fn is_out_of_date(self) -> bool {
        matches!(self, Self::OutOfDate | Self::OutOfDateConfigurationNeeded)
    }

    /// The platform's status together with a component's (TDX module or quoting enclave), as Intel's
    /// `convergeTcbStatuses` has it.
    pub(crate) fn with_component(self, component: Self) -> Self {
        match (component, self) {
            (Self::Revoked, _) => Self::Revoked,
            (Self::OutOfDate, Self::UpToDate | Self::SWHardeningNeeded) => Self::OutOfDate,
            (Self::OutOfDate, Self::ConfigurationNeeded | Self::ConfigurationAndSWHardeningNeeded) => {
                Self::OutOfDateConfigurationNeeded
            }
            _ => self,
        }
    }

    /// The status at launch together with that of now, as Intel's `checkForRelaunch` has it.
    pub(crate) fn with_current(self, current: Self) -> Self {
        let updated = matches!(
            current,
            Self::UpToDate
                | Self::SWHardeningNeeded
                | Self::ConfigurationNeeded
                | Self::ConfigurationAndSWHardeningNeeded
        );
        if !self.is_out_of_date() || !updated {
            return self;
        }
        let configuration = self == Self::OutOfDateConfigurationNeeded
            || matches!(
                current,
                Self::ConfigurationNeeded | Self::ConfigurationAndSWHardeningNeeded
            );
        if configuration {
            Self::TDRelaunchAdvisedConfigurationNeeded
        } else {
            Self::TDRelaunchAdvised
        }
    }
}

impl std::fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
