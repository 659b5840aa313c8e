//! Money in signed bytes: the grant that a client signs, the voucher that the agent signs, and the proof that
//! a TLS session belongs to the grant's owner.
//!
//! Grant and voucher fit one TVM slice (at most 127 bytes), so the contract checks the Ed25519 signature over
//! the very same bytes (`CHKSIGNS`). All integers are big-endian, as TVM stores them.

use cocoon_evidence::Digest32;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::{AccountAddress, ContractCode, LaunchDocument, NetworkId, Prices, TokenCounts};

const GRANT_TAG: u32 = 0xc0c0_0001;
const VOUCHER_TAG: u32 = 0xc0c0_0002;
const SESSION_TAG: &[u8] = b"cocoon-session-v1";

/// A client's promise to pay one agent up to a cap out of one deposit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Which chain.
    pub network: NetworkId,
    /// The client's deposit contract.
    pub contract: AccountAddress,
    /// The agent's usage key; in the evidence, so that only this guest, at this boot, can draw.
    #[serde(with = "hex::serde")]
    pub agent_key: [u8; 32],
    /// Where the contract pays to.
    pub payout_address: AccountAddress,
    /// At these prices.
    pub prices: Prices,
    /// At most this, gas included, nanoTON.
    pub cap_nano: u64,
    /// No voucher is accepted after this, seconds since 1970.
    pub expires_s: u32,
}

/// A grant with its owner's key and signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedGrant {
    /// What is signed.
    pub grant: Grant,
    /// Ed25519 key that owns the deposit contract.
    #[serde(with = "hex::serde")]
    pub owner: [u8; 32],
    /// Ed25519 over [`Grant::signed_bytes`].
    #[serde(with = "hex::serde")]
    pub signature: [u8; 64],
}

/// Why an agent refuses a grant. Each is the client's to mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The signature is not the owner's.
    #[error("the grant's signature is not by its owner")]
    Signature,
    /// Another chain than the launch document's.
    #[error("the grant is for network {granted}, this node settles on network {served}")]
    Network {
        /// The grant's.
        granted: i32,
        /// The launch document's.
        served: i32,
    },
    /// The contract is not the published code owned by this key.
    #[error("the grant's contract {contract} is not the deposit contract of its owner, which is {expected}")]
    Contract {
        /// The grant's.
        contract: AccountAddress,
        /// Derived from code and owner.
        expected: AccountAddress,
    },
    /// For another agent, or for this one before it restarted.
    #[error("the grant is for another agent key; agents make a new key at every boot, so sign a new grant")]
    AgentKey,
    /// Pays somebody else.
    #[error("the grant pays {granted}, this node is paid at {served}")]
    PayoutAddress {
        /// The grant's.
        granted: AccountAddress,
        /// The launch document's.
        served: AccountAddress,
    },
    /// Other prices than the launch document's.
    #[error("the grant's prices are not those of the launch document")]
    Prices,
    /// No longer valid, or not long enough to settle what is served on it.
    #[error("the grant expires at {expires_s} s, it is now {now_s} s")]
    Expired {
        /// The grant's.
        expires_s: u32,
        /// The agent's clock.
        now_s: u64,
    },
}

impl Grant {
    /// What vouchers, receipts and the contract name this grant by: SHA-256 of [`Grant::signed_bytes`].
    pub fn id(&self) -> Digest32 {
        Digest32::of(&self.signed_bytes())
    }

    /// The 124 bytes that the owner signs: tag, network, contract, agent key, payout address, prices, cap,
    /// expiry.
    pub fn signed_bytes(&self) -> Vec<u8> {
        [
            GRANT_TAG.to_be_bytes().as_slice(),
            &self.network.0.to_be_bytes(),
            self.contract.0.as_bytes(),
            &self.agent_key,
            self.payout_address.0.as_bytes(),
            &self.prices.input_nano_per_kilotoken.to_be_bytes(),
            &self.prices.output_nano_per_kilotoken.to_be_bytes(),
            &self.cap_nano.to_be_bytes(),
            &self.expires_s.to_be_bytes(),
        ]
        .concat()
    }

    /// Signs with the deposit owner's key.
    pub fn sign(self, owner: &SigningKey) -> SignedGrant {
        let signature = owner.sign(&self.signed_bytes()).to_bytes();
        SignedGrant {
            grant: self,
            owner: owner.verifying_key().to_bytes(),
            signature,
        }
    }
}

impl SignedGrant {
    /// What the agent checks before it serves on a grant: everything but the chain, which it cannot see.
    ///
    /// # Errors
    /// See [`GrantError`].
    pub fn check(&self, agent_key: &[u8; 32], launch: &LaunchDocument, now_s: u64) -> Result<(), GrantError> {
        let Self {
            grant,
            owner,
            signature,
        } = self;
        let settlement = &launch.settlement;
        verify(owner, &grant.signed_bytes(), signature).ok_or(GrantError::Signature)?;
        if grant.network != settlement.network {
            return Err(GrantError::Network {
                granted: grant.network.0,
                served: settlement.network.0,
            });
        }
        let code: &ContractCode = &settlement.contract_code;
        let expected = code.deposit_address(grant.network, owner);
        if grant.contract != expected {
            return Err(GrantError::Contract {
                contract: grant.contract,
                expected,
            });
        }
        if grant.agent_key != *agent_key {
            return Err(GrantError::AgentKey);
        }
        if grant.payout_address != settlement.payout_address {
            return Err(GrantError::PayoutAddress {
                granted: grant.payout_address,
                served: settlement.payout_address,
            });
        }
        if grant.prices != launch.prices {
            return Err(GrantError::Prices);
        }
        if u64::from(grant.expires_s) <= now_s {
            return Err(GrantError::Expired {
                expires_s: grant.expires_s,
                now_s,
            });
        }
        Ok(())
    }
}

/// The agent's cumulative claim on one grant. A later one replaces every earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Voucher {
    /// Which chain.
    pub network: NetworkId,
    /// The client's deposit contract.
    pub contract: AccountAddress,
    /// The grant's agent key, which also signs.
    #[serde(with = "hex::serde")]
    pub agent_key: [u8; 32],
    /// [`Grant::id`]. One agent key can serve several grants of one deposit, one after the other or at the
    /// same time: without this, a voucher for one could be cashed again on the next.
    pub grant: Digest32,
    /// All tokens served on this grant so far.
    pub served: TokenCounts,
}

/// A voucher with the agent's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedVoucher {
    /// What is signed.
    pub voucher: Voucher,
    /// Ed25519 by `voucher.agent_key` over [`Voucher::signed_bytes`].
    #[serde(with = "hex::serde")]
    pub signature: [u8; 64],
}

impl Voucher {
    /// The 120 bytes that the agent signs: tag, network, contract, agent key, grant, input tokens, output
    /// tokens.
    pub fn signed_bytes(&self) -> Vec<u8> {
        [
            VOUCHER_TAG.to_be_bytes().as_slice(),
            &self.network.0.to_be_bytes(),
            self.contract.0.as_bytes(),
            &self.agent_key,
            self.grant.as_bytes(),
            &self.served.input.to_be_bytes(),
            &self.served.output.to_be_bytes(),
        ]
        .concat()
    }

    /// Signs with the agent's usage key.
    pub fn sign(self, agent: &SigningKey) -> SignedVoucher {
        let signature = agent.sign(&self.signed_bytes()).to_bytes();
        SignedVoucher {
            voucher: self,
            signature,
        }
    }
}

impl SignedVoucher {
    /// Whether the agent key in the voucher signed it.
    pub fn is_genuine(&self) -> bool {
        verify(
            &self.voucher.agent_key,
            &self.voucher.signed_bytes(),
            &self.signature,
        )
        .is_some()
    }
}

/// Shows that whoever holds this TLS session owns the deposit: grants are public on the chain, so a grant
/// alone must not buy anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionProof {
    /// Ed25519 by the deposit's owner over tag, TLS exporter and the hash of the grant.
    #[serde(with = "hex::serde")]
    pub signature: [u8; 64],
}

impl SessionProof {
    /// Label of the TLS exporter (RFC 8446, 7.5; 32 bytes, no context).
    pub const EXPORTER_LABEL: &'static [u8] = b"EXPORTER-Cocoon-session-v1";

    /// Signs for this session.
    pub fn sign(owner: &SigningKey, exporter: &[u8; 32], grant: &Grant) -> Self {
        Self {
            signature: owner.sign(&Self::signed_bytes(exporter, grant)).to_bytes(),
        }
    }

    /// Whether the grant's owner signed for this session.
    pub fn is_genuine(&self, exporter: &[u8; 32], grant: &SignedGrant) -> bool {
        verify(
            &grant.owner,
            &Self::signed_bytes(exporter, &grant.grant),
            &self.signature,
        )
        .is_some()
    }

    fn signed_bytes(exporter: &[u8; 32], grant: &Grant) -> Vec<u8> {
        [SESSION_TAG, exporter, grant.id().as_bytes()].concat()
    }
}

fn verify(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> Option<()> {
    let key = VerifyingKey::from_bytes(key).ok()?;
    key.verify_strict(message, &Signature::from_bytes(signature)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::tests::document;

    fn owner() -> SigningKey {
        SigningKey::from_bytes(&[3; 32])
    }

    fn grant() -> Grant {
        let launch = document();
        let network = launch.settlement.network;
        let owner = owner().verifying_key().to_bytes();
        Grant {
            network,
            contract: launch.settlement.contract_code.deposit_address(network, &owner),
            agent_key: [5; 32],
            payout_address: launch.settlement.payout_address,
            prices: launch.prices,
            cap_nano: 1_000_000,
            expires_s: 2_000,
        }
    }

    fn check(change: impl FnOnce(&mut Grant)) -> Result<(), GrantError> {
        let mut grant = grant();
        change(&mut grant);
        grant.sign(&owner()).check(&[5; 32], &document(), 1_000)
    }

    #[test]
    fn a_matching_grant_is_served() {
        assert_eq!(check(|_| ()), Ok(()));
    }

    #[test]
    fn a_grant_for_somebody_or_something_else_is_refused() {
        assert!(matches!(
            check(|g| g.network = NetworkId::MAINNET),
            Err(GrantError::Network { .. })
        ));
        assert_eq!(check(|g| g.agent_key = [6; 32]), Err(GrantError::AgentKey));
        assert_eq!(
            check(|g| g.prices.output_nano_per_kilotoken -= 1),
            Err(GrantError::Prices)
        );
        assert!(matches!(
            check(|g| g.expires_s = 1_000),
            Err(GrantError::Expired { .. })
        ));
        let other = AccountAddress(Digest32::of(b"other"));
        assert!(matches!(
            check(|g| g.contract = other),
            Err(GrantError::Contract { .. })
        ));
        assert!(matches!(
            check(|g| g.payout_address = other),
            Err(GrantError::PayoutAddress { .. })
        ));
    }

    #[test]
    fn raising_the_cap_of_a_signed_grant_breaks_its_signature() {
        let mut signed = grant().sign(&owner());
        signed.grant.cap_nano += 1;
        assert_eq!(
            signed.check(&[5; 32], &document(), 1_000),
            Err(GrantError::Signature)
        );
    }

    #[test]
    fn a_grant_seen_on_chain_does_not_open_another_session() {
        let signed = grant().sign(&owner());
        let proof = SessionProof::sign(&owner(), &[1; 32], &signed.grant);
        assert!(proof.is_genuine(&[1; 32], &signed));
        assert!(!proof.is_genuine(&[2; 32], &signed), "another session's exporter");
        let thief = SessionProof::sign(&SigningKey::from_bytes(&[4; 32]), &[1; 32], &signed.grant);
        assert!(!thief.is_genuine(&[1; 32], &signed), "another key");
    }

    #[test]
    fn signed_bytes_fit_one_tvm_slice() {
        let agent = SigningKey::from_bytes(&[5; 32]);
        let voucher = Voucher {
            network: NetworkId::LOCAL,
            contract: grant().contract,
            agent_key: agent.verifying_key().to_bytes(),
            grant: grant().id(),
            served: TokenCounts { input: 1, output: 2 },
        };
        assert_eq!(grant().signed_bytes().len(), 124);
        assert_eq!(voucher.signed_bytes().len(), 120);
        let mut signed = voucher.sign(&agent);
        assert!(signed.is_genuine());
        signed.voucher.served.output += 1;
        assert!(!signed.is_genuine());
    }

    #[test]
    fn a_voucher_moved_to_the_next_grant_is_not_genuine() {
        let agent = SigningKey::from_bytes(&[5; 32]);
        let voucher = Voucher {
            network: NetworkId::LOCAL,
            contract: grant().contract,
            agent_key: agent.verifying_key().to_bytes(),
            grant: grant().id(),
            served: TokenCounts { input: 1, output: 2 },
        };
        let mut signed = voucher.sign(&agent);
        let next = Grant {
            expires_s: 3_000,
            ..grant()
        };
        signed.voucher.grant = next.id();
        assert!(!signed.is_genuine());
    }
}
