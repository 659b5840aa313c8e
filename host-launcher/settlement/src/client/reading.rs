//! Reading an account: proven against the block that the server names, and not from long ago.
//!
//! A server that stands still proves every word of an old state, so the state's own time is held against this machine's
//! clock; the next server shows which of the two is wrong. A server that lies makes up a block with any time.

use cocoon_evidence::Digest32;
use cocoon_protocol::{AccountAddress, NetworkId};
use ton_liteapi::tl::{
    common::{AccountId, Int256},
    request::{GetAccountState, Request},
    response::{self, Response},
};
use tycho_types::models::Account;

use super::{ChainClient, ChainError, bad_answer, now_s, unexpected};
use crate::{
    connection::{Connection, error_text},
    proof,
};

const REQUEST: &str = "getAccountState";

/// TON makes a block every few seconds; so much more covers clocks that are a little off and a network in trouble.
const BEHIND_MAX_S: u64 = 5 * 60;

impl ChainClient {
    /// An account as of the last block, proven against it. A server whose answer is of no use is left for the next one,
    /// until all have been asked once.
    pub(super) async fn account(&self, address: &AccountAddress) -> Result<Option<Account>, ChainError> {
        let mut connection = self.connection.lock().await;
        let mut tries = connection.servers();
        loop {
            let read = self.read_account(&mut connection, address).await;
            if !matches!(
                read,
                Err(ChainError::BadAnswer { .. } | ChainError::WrongNetwork { .. })
            ) {
                return read;
            }
            let server = connection.server();
            connection.leave_server(server);
            tries -= 1;
            if tries == 0 {
                return read;
            }
        }
    }

    async fn read_account(
        &self,
        connection: &mut Connection,
        address: &AccountAddress,
    ) -> Result<Option<Account>, ChainError> {
        let last = match connection.ask(Request::GetMasterchainInfo).await? {
            Response::MasterchainInfo(info) => info.last,
            Response::Error(error) => return Err(server_error("getMasterchainInfo", &error)),
            _ => return Err(unexpected("getMasterchainInfo")),
        };
        let account = AccountId {
            workchain: 0,
            id: Int256(*address.0.as_bytes()),
        };
        let state = match connection
            .ask(Request::GetAccountState(GetAccountState { id: last, account }))
            .await?
        {
            Response::AccountState(state) => state,
            Response::Error(error) => return Err(server_error(REQUEST, &error)),
            _ => return Err(unexpected(REQUEST)),
        };
        let block = Digest32(state.shardblk.root_hash.0);
        let proven = proof::check(&block, address, &state.proof, &state.state)
            .map_err(|error| bad_answer(REQUEST, &error))?;
        if proven.network != self.network.0 {
            return Err(ChainError::WrongNetwork {
                expected: self.network.0,
                found: proven.network,
            });
        }
        check_freshness(proven.gen_utime_s, now_s(), self.network)?;
        Ok(proven.account)
    }
}

fn check_freshness(gen_utime_s: u32, now_s: u64, network: NetworkId) -> Result<(), ChainError> {
    let behind_s = now_s.saturating_sub(gen_utime_s.into());
    // The local chain makes blocks only when there are messages.
    if network == NetworkId::LOCAL || behind_s <= BEHIND_MAX_S {
        return Ok(());
    }
    let reason =
        format!("its state is {behind_s} s old: the server is behind, or this machine's clock is ahead");
    Err(bad_answer(REQUEST, &reason))
}

fn server_error(request: &'static str, error: &response::Error) -> ChainError {
    bad_answer(request, &format!("the liteserver says: {}", error_text(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_of_long_ago_is_no_answer_but_on_the_local_chain() {
        const NOW_S: u32 = 1_800_000_000;
        let check = |gen_utime_s, network| check_freshness(gen_utime_s, NOW_S.into(), network);
        for network in [NetworkId::MAINNET, NetworkId::TESTNET] {
            for gen_utime_s in [NOW_S - 300, NOW_S, NOW_S + 1, u32::MAX] {
                check(gen_utime_s, network).unwrap();
            }
            for gen_utime_s in [0, NOW_S - 301] {
                let error = check(gen_utime_s, network).unwrap_err();
                let behind = format!("is {} s old: the server is behind", NOW_S - gen_utime_s);
                assert!(error.to_string().contains(&behind), "{error}");
            }
        }
        check(0, NetworkId::LOCAL).unwrap();
    }
}
