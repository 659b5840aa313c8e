//! node.toml as it is written: sections and names, nothing of what they mean.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use cocoon_protocol::{AccountAddress, Limits, NumericProfile, Prices};
use serde::Deserialize;

use super::{ConfigError, Network, VsockChoice, read_text};
use crate::boot::Deadlines;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) state_dir: PathBuf,
    pub(super) spec: PathBuf,
    pub(super) image: ImageSection,
    pub(super) model: ModelSection,
    pub(super) prices: Prices,
    pub(super) limits: Limits,
    pub(super) settlement: SettlementSection,
    pub(super) listen: ListenSection,
    #[serde(default)]
    pub(super) chain: ChainSection,
    #[serde(default)]
    pub(super) tdx: TdxSection,
    #[serde(default)]
    pub(super) tools: ToolsSection,
    #[serde(default)]
    pub(super) deadlines: Deadlines,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageSection {
    pub(super) manifest: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelSection {
    pub(super) name: String,
    pub(super) volume: PathBuf,
    pub(super) numeric_profile: NumericProfile,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SettlementSection {
    pub(super) network: Network,
    pub(super) payout_address: AccountAddress,
    #[serde(default)]
    pub(super) delay_s: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListenSection {
    pub(super) address: SocketAddr,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChainSection {
    pub(super) address: Option<SocketAddr>,
    pub(super) global_config: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TdxSection {
    pub(super) collateral: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ToolsSection {
    pub(super) qemu: Option<PathBuf>,
    pub(super) vhost_device_vsock: Option<PathBuf>,
    #[serde(default)]
    pub(super) vsock: VsockChoice,
}

/// Reads one; what does not belong in it is refused.
pub(super) fn parse(path: &Path) -> Result<File, ConfigError> {
    let text = read_text("configuration", path)?;
    toml::from_str(&text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        message: error.to_string().trim_end().to_owned(),
        hint: suggestion(error.message()),
    })
}

/// For serde's "unknown field `x`, expected one of `a`, `b`": the expected one that looks most like it.
fn suggestion(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let (true, Some(found)) = (message.starts_with("unknown field"), quoted.next()) else {
        return String::new();
    };
    let closest = quoted.min_by_key(|expected| distance(found, expected));
    match closest {
        Some(expected) if distance(found, expected) <= 2.max(found.len() / 3) => {
            format!("\ndid you mean `{expected}`?")
        }
        _ => String::new(),
    }
}

/// Levenshtein's distance, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}
