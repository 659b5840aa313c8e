//! TON addresses, without a TVM: enough to name an account and to derive a deposit contract's address.

use std::{fmt, str::FromStr};

use cocoon_evidence::Digest32;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// TON's `global_id` of a network: -239 for mainnet, -3 for testnet. It is part of everything signed, so that
/// a signature made for one network is worth nothing on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetworkId(pub i32);

impl NetworkId {
    /// TON mainnet.
    pub const MAINNET: Self = Self(-239);
    /// TON testnet.
    pub const TESTNET: Self = Self(-3);
    /// The chain that the launcher embeds; its coins are worth nothing.
    pub const LOCAL: Self = Self(-417);
}

/// An account in the basechain (workchain 0), printed as `0:` and 64 hexadecimal characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AccountAddress(pub Digest32);

/// Text that is not a raw basechain address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an address is written 0: and 64 hexadecimal characters (raw form, basechain)")]
pub struct ParseAddressError;

impl fmt::Display for AccountAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0:{}", self.0)
    }
}

impl FromStr for AccountAddress {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hash = text.strip_prefix("0:").ok_or(ParseAddressError)?;
        hash.parse().map(Self).map_err(|_| ParseAddressError)
    }
}

impl Serialize for AccountAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AccountAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// The deposit contract's code, as a cell: its representation hash and depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContractCode {
    /// Representation hash of the code cell.
    pub hash: Digest32,
    /// Depth of the code cell.
    pub depth: u16,
}

impl ContractCode {
    /// The address of the deposit contract of one owner on one network: the representation hash of its
    /// StateInit (TON Blockchain, 3.1.4 to 3.1.7 and 4.1; TL-B `_ split_depth:(Maybe) special:(Maybe)
    /// code:(Maybe ^Cell) data:(Maybe ^Cell) library:(Maybe)`).
    ///
    /// The initial data cell is `network:int32 owner:uint256` followed by zero bits for the fields that start
    /// empty: `seqno:uint32 reserved:Coins grants:HashmapE`, that is 32 + 4 + 1 zero bits.
    ///
    /// With this the agent checks that a grant's contract belongs to the key that signed the grant, without
    /// asking the host.
    pub fn deposit_address(&self, network: NetworkId, owner: &[u8; 32]) -> AccountAddress {
        // 325 bits of data: 40 full bytes, then 5 bits and the completion tag (bits 00000 1 00).
        let mut data = [0; 41];
        data[..4].copy_from_slice(&network.0.to_be_bytes());
        data[4..36].copy_from_slice(owner);
        data[40] = 0b0000_0100;
        let data_hash = Digest32::of_parts([[0, 40 + 41].as_slice(), &data]);
        // StateInit: bits 0 0 1 1 0 and the completion tag, then two references: their depths, their hashes.
        let state_init = Digest32::of_parts([
            [2, 1, 0b0011_0100].as_slice(),
            &self.depth.to_be_bytes(),
            &0u16.to_be_bytes(),
            self.hash.as_bytes(),
            data_hash.as_bytes(),
        ]);
        AccountAddress(state_init)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_and_masterchain_is_refused() {
        let address = AccountAddress(Digest32::of(b"a"));
        assert_eq!(address.to_string().parse(), Ok(address));
        assert!(format!("-1:{}", address.0).parse::<AccountAddress>().is_err());
        assert!("0:12".parse::<AccountAddress>().is_err());
    }

    #[test]
    fn owner_network_and_code_each_change_the_address() {
        let code = ContractCode {
            hash: Digest32::of(b"code"),
            depth: 3,
        };
        let base = code.deposit_address(NetworkId::LOCAL, &[1; 32]);
        assert_ne!(base, code.deposit_address(NetworkId::MAINNET, &[1; 32]));
        assert_ne!(base, code.deposit_address(NetworkId::LOCAL, &[2; 32]));
        assert_ne!(
            base,
            ContractCode { depth: 4, ..code }.deposit_address(NetworkId::LOCAL, &[1; 32])
        );
    }
}
