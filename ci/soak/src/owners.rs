//! Depositors whose grants the clients share: an account each, with many connections, as a proxy's.

use anyhow::Result;
use cocoon_protocol::{Grant, SignedGrant};
use ed25519_dalek::SigningKey;

use crate::node::{CREDIT_NANO, launch_document};

const OWNERS: u8 = 16;

/// They and their grants.
pub(crate) struct Owners {
    agent_key: [u8; 32],
    grants: Vec<(SigningKey, SignedGrant)>,
}

impl Owners {
    /// Grants for the agent of that usage key.
    pub(crate) fn for_agent(agent_key: [u8; 32], streams: usize) -> Result<Self> {
        let launch = launch_document(streams)?;
        let settlement = launch.settlement;
        let grant = |number| {
            let owner = SigningKey::from_bytes(&[number; 32]);
            let grant = Grant {
                network: settlement.network,
                contract: settlement
                    .contract_code
                    .deposit_address(settlement.network, owner.verifying_key().as_bytes()),
                agent_key,
                payout_address: settlement.payout_address,
                prices: launch.prices,
                cap_nano: CREDIT_NANO,
                expires_s: u32::MAX,
            };
            let signed = grant.sign(&owner);
            (owner, signed)
        };
        Ok(Self {
            agent_key,
            grants: (0..OWNERS).map(grant).collect(),
        })
    }

    /// Whose grant this client uses.
    pub(crate) fn of(&self, number: u64) -> (&SigningKey, &SignedGrant) {
        let (owner, grant) = &self.grants[(number % u64::from(OWNERS)) as usize];
        (owner, grant)
    }

    /// Signs receipts.
    pub(crate) fn agent_key(&self) -> &[u8; 32] {
        &self.agent_key
    }
}
