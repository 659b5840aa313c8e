//! Access to a chain through its liteservers: the same for mainnet, testnet and the local chain.
//!
//! Reading proves what the server says against the block that it names (see the crate's documentation for what
//! is not proven). Writing sends a signed message and then reads until its effect is there: a server's word that
//! it took a message is a hint, the account's state is the fact.

mod reading;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cocoon_evidence::Digest32;
use cocoon_protocol::{AccountAddress, NetworkId, SignedGrant, SignedVoucher};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};
use ton_liteapi::tl::{
    request::{Request, SendMessage},
    response::Response,
};
use tycho_types::models::Account;

use crate::{
    DepositState, GlobalConfig, GrantState, RESERVE_NANO, SignedWithdrawal,
    connection::{Connection, error_text},
    contract::{
        self, LOCK_FEES_NANO, deposit_code, lock_message, nano, settle_message, settle_minimum_nano,
        withdraw_message,
    },
    local::genesis::{GIVE_NANO_MAX, give_message, giver_address},
};

/// How long a write waits for its effect. On mainnet a message takes 5 to 20 s.
const EFFECT_TIMEOUT: Duration = Duration::from_secs(60);

/// The first and the longest pause between two looks at the state.
const POLL_MIN: Duration = Duration::from_millis(20);
const POLL_MAX: Duration = Duration::from_secs(2);

/// How long a request to the giver stays valid.
const GIVE_LIFETIME_S: u64 = 600;

/// Gas of receiving a plain transfer and rent since the last one, with room.
const RECEIVING_NANO_MAX: u64 = 20_000_000;

/// Why a chain could not be asked, or did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// No liteserver answers.
    #[error(
        "no liteserver of the TON config answers ({tried} tried): {last}; check the config and the network"
    )]
    Unreachable {
        /// How many were tried.
        tried: usize,
        /// What the last one said.
        last: String,
    },
    /// The answer contradicts its own proof, or is not understood.
    #[error("the liteserver's answer to {request} is not acceptable: {reason}")]
    BadAnswer {
        /// Which request.
        request: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The servers are those of another network.
    #[error("the TON config leads to network {found}, expected network {expected}")]
    WrongNetwork {
        /// As configured.
        expected: i32,
        /// As the block says.
        found: i32,
    },
    /// The contract refused the message before accepting it; nothing has changed and nothing was paid.
    #[error("the contract refused to {operation}: {meaning}")]
    Refused {
        /// What was attempted.
        operation: &'static str,
        /// TVM exit code, where the server told it.
        exit_code: Option<i32>,
        /// In words, with what to do.
        meaning: String,
    },
    /// The message was taken and the chain does not show its effect in time. It may still come.
    #[error("{operation}: the chain does not show it after {waited_s} s; it may yet come")]
    Timeout {
        /// What was attempted.
        operation: &'static str,
        /// How long was waited.
        waited_s: u64,
    },
    /// The account holds too little.
    #[error("{address} holds {available_nano} nanoTON free, {needed_nano} are needed; fund it and try again")]
    InsufficientFunds {
        /// Which account.
        address: AccountAddress,
        /// What it has beside reserved caps.
        available_nano: u64,
        /// What it would need.
        needed_nano: u64,
    },
    /// What was asked cannot work, and was not sent.
    #[error("cannot {operation}: {reason}")]
    Invalid {
        /// What was attempted.
        operation: &'static str,
        /// Why, with what to do.
        reason: String,
    },
    /// Only the local chain has a faucet.
    #[error("there is no faucet on network {0}; send coins to the deposit's address from a wallet")]
    NoFaucet(i32),
}

/// A connection to one network. Cheap to clone; reconnects by itself.
#[derive(Debug, Clone)]
pub struct ChainClient {
    network: NetworkId,
    connection: Arc<Mutex<Connection>>,
}

impl ChainClient {
    /// Connects to the first liteserver that answers and checks that it serves this network.
    ///
    /// # Errors
    /// [`ChainError::Unreachable`], [`ChainError::WrongNetwork`], [`ChainError::BadAnswer`].
    pub async fn connect(config: &GlobalConfig, network: NetworkId) -> Result<Self, ChainError> {
        let connection = Arc::new(Mutex::new(Connection::new(config.clone())));
        let client = Self { network, connection };
        // Any account's proof names the network; this one need not exist.
        client.account(&giver_address()).await?;
        Ok(client)
    }

    /// An account's balance, nanoTON; 0 if there is no such account.
    ///
    /// # Errors
    /// [`ChainError::Unreachable`], [`ChainError::BadAnswer`].
    pub async fn balance(&self, address: &AccountAddress) -> Result<u64, ChainError> {
        read_balance(self.account(address).await?.as_ref())
    }

    /// A deposit's state; `None` while nothing is deployed there.
    ///
    /// # Errors
    /// [`ChainError::Unreachable`]; [`ChainError::BadAnswer`], also if other code than ours is deployed there.
    pub async fn deposit(&self, address: &AccountAddress) -> Result<Option<DepositState>, ChainError> {
        read_deposit(self.account(address).await?.as_ref())
    }

    /// A grant locked in a deposit, by [`cocoon_protocol::Grant::id`].
    ///
    /// # Errors
    /// As [`Self::deposit`].
    pub async fn grant(
        &self,
        deposit: &AccountAddress,
        grant: &Digest32,
    ) -> Result<Option<GrantState>, ChainError> {
        let deposit = self.deposit(deposit).await?;
        Ok(deposit.and_then(|deposit| deposit.grant(grant).copied()))
    }

    /// Locks a grant, deploying the deposit where needed, and waits until the chain shows it. A grant that is
    /// locked already is returned as it is.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub async fn lock_grant(&self, grant: &SignedGrant) -> Result<GrantState, ChainError> {
        const OPERATION: &str = "lock the grant";
        let terms = &grant.grant;
        let (address, id) = (&terms.contract, terms.id());
        self.check_network(OPERATION, terms.network)?;
        let expected = deposit_code().deposit_address(terms.network, &grant.owner);
        let minimum_nano = settle_minimum_nano();
        let invalid = if *address != expected {
            Some(format!(
                "{address} is not the deposit of the grant's owner, which is {expected}"
            ))
        } else if terms.cap_nano < minimum_nano {
            Some(format!(
                "its cap must be at least {minimum_nano} nanoTON, less cannot be settled"
            ))
        } else {
            None
        };
        if let Some(reason) = invalid {
            return Err(ChainError::Invalid {
                operation: OPERATION,
                reason,
            });
        }
        let deposit = self.deposit(address).await?;
        if let Some(state) = deposit.as_ref().and_then(|deposit| deposit.grant(&id)) {
            return Ok(*state);
        }
        let available_nano = match &deposit {
            Some(deposit) => deposit.balance_nano.saturating_sub(deposit.reserved_nano),
            None => self.balance(address).await?,
        };
        let needed_nano = terms.cap_nano.saturating_add(RESERVE_NANO + LOCK_FEES_NANO);
        if available_nano < needed_nano {
            return Err(ChainError::InsufficientFunds {
                address: *address,
                available_nano,
                needed_nano,
            });
        }
        let message = lock_message(grant, deposit.is_none());
        self.send_until(OPERATION, message, address, |account| {
            Ok(read_deposit(account)?.and_then(|deposit| deposit.grant(&id).copied()))
        })
        .await
    }

    /// Settles a voucher and waits until the chain shows it. One that was settled already, or a later one, is
    /// success without a message.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub async fn settle(&self, voucher: &SignedVoucher) -> Result<GrantState, ChainError> {
        const OPERATION: &str = "settle the voucher";
        let claim = &voucher.voucher;
        self.check_network(OPERATION, claim.network)?;
        let settled = |account: Option<&Account>| {
            let deposit = read_deposit(account)?;
            let grant = deposit.and_then(|deposit| deposit.grant(&claim.grant).copied());
            let grant = grant.ok_or_else(|| refused(OPERATION, Some(210)))?;
            let is_settled =
                grant.served.input >= claim.served.input && grant.served.output >= claim.served.output;
            Ok(is_settled.then_some(grant))
        };
        if let Some(grant) = settled(self.account(&claim.contract).await?.as_ref())? {
            return Ok(grant);
        }
        self.send_until(OPERATION, settle_message(voucher), &claim.contract, settled)
            .await
    }

    /// Sends a voucher without looking whether it is settled already: what a host that replays it does, so that
    /// a test can see the contract refuse. [`Self::settle`] is for everything else.
    ///
    /// # Errors
    /// [`ChainError::Refused`] with the contract's exit code, and see [`ChainError`].
    pub async fn submit(&self, voucher: &SignedVoucher) -> Result<(), ChainError> {
        let (_, sent) = self.send(settle_message(voucher)).await?;
        sent.map_err(|text| refused("submit the voucher", exit_code(&text)))
    }

    /// Withdraws and waits until the chain shows it.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub async fn withdraw(&self, withdrawal: &SignedWithdrawal) -> Result<DepositState, ChainError> {
        const OPERATION: &str = "withdraw";
        let order = &withdrawal.withdrawal;
        self.check_network(OPERATION, order.network)?;
        let message = withdraw_message(withdrawal);
        self.send_until(OPERATION, message, &order.contract, |account| {
            Ok(read_deposit(account)?.filter(|deposit| deposit.seqno > order.seqno))
        })
        .await
    }

    /// Asks the local chain's giver for coins and waits until they are there; the new balance, nanoTON. At most
    /// 1000 TON at once; a deployed deposit pays a little for receiving them.
    ///
    /// # Errors
    /// [`ChainError::NoFaucet`] elsewhere, and see [`ChainError`].
    pub async fn request_faucet(&self, address: &AccountAddress, nano: u64) -> Result<u64, ChainError> {
        const OPERATION: &str = "ask the local chain for coins";
        if self.network != NetworkId::LOCAL {
            return Err(ChainError::NoFaucet(self.network.0));
        }
        if nano == 0 || nano > GIVE_NANO_MAX {
            let reason = format!("it gives 1 to {GIVE_NANO_MAX} nanoTON at once, not {nano}");
            return Err(ChainError::Invalid {
                operation: OPERATION,
                reason,
            });
        }
        let before = self.balance(address).await?;
        let mut salt = [0; 8];
        getrandom::fill(&mut salt).map_err(|error| ChainError::Invalid {
            operation: OPERATION,
            reason: format!("the system gives no random numbers: {error}"),
        })?;
        let valid_until = u32::try_from(now_s() + GIVE_LIFETIME_S).unwrap_or(u32::MAX);
        let message = give_message(address, nano, valid_until, u64::from_be_bytes(salt));
        self.send_until(OPERATION, message, address, |account| {
            let balance = read_balance(account)?;
            // A deposit that is deployed pays for running its code and its rent out of what arrives.
            let arrived = balance.saturating_add(RECEIVING_NANO_MAX) >= before.saturating_add(nano);
            Ok(arrived.then_some(balance))
        })
        .await
    }

    /// Sends a message once and looks at an account until `effect` is there.
    async fn send_until<T>(
        &self,
        operation: &'static str,
        message: Vec<u8>,
        address: &AccountAddress,
        effect: impl Fn(Option<&Account>) -> Result<Option<T>, ChainError>,
    ) -> Result<T, ChainError> {
        let started = Instant::now();
        let (server, sent) = self.send(message).await?;
        let seen = match sent {
            Ok(()) => self.watch(operation, started, address, effect).await,
            // The same message may have been taken before, by another server or another run.
            Err(text) => match effect(self.account(address).await?.as_ref())? {
                Some(found) => Ok(found),
                None => Err(match exit_code(&text) {
                    Some(code) => refused(operation, Some(code)),
                    None => ChainError::Refused {
                        operation,
                        exit_code: None,
                        meaning: format!("the liteserver says: {text}"),
                    },
                }),
            },
        };
        // Another server may bring to the chain what this one did not, whatever it says.
        if let Err(ChainError::Timeout { .. } | ChainError::Refused { .. }) = seen {
            self.connection.lock().await.leave_server(server);
        }
        seen
    }

    /// Looks at an account until `effect` is there.
    async fn watch<T>(
        &self,
        operation: &'static str,
        started: Instant,
        address: &AccountAddress,
        effect: impl Fn(Option<&Account>) -> Result<Option<T>, ChainError>,
    ) -> Result<T, ChainError> {
        let mut pause = POLL_MIN;
        loop {
            if let Some(found) = effect(self.account(address).await?.as_ref())? {
                return Ok(found);
            }
            if started.elapsed() > EFFECT_TIMEOUT {
                let waited_s = started.elapsed().as_secs();
                return Err(ChainError::Timeout { operation, waited_s });
            }
            sleep(pause).await;
            pause = (pause * 2).min(POLL_MAX);
        }
    }

    /// Which server was asked, and what it says against the message.
    async fn send(&self, body: Vec<u8>) -> Result<(usize, Result<(), String>), ChainError> {
        let request = Request::SendMessage(SendMessage { body });
        let mut connection = self.connection.lock().await;
        let sent = match connection.ask(request).await? {
            Response::SendMsgStatus(_) => Ok(()),
            Response::Error(error) => Err(error_text(&error)),
            _ => Err("an answer to something else".to_owned()),
        };
        Ok((connection.server(), sent))
    }

    fn check_network(&self, operation: &'static str, network: NetworkId) -> Result<(), ChainError> {
        if network == self.network {
            return Ok(());
        }
        let reason = format!(
            "it is signed for network {}, this is network {}",
            network.0, self.network.0
        );
        Err(ChainError::Invalid { operation, reason })
    }
}

fn now_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

fn read_balance(account: Option<&Account>) -> Result<u64, ChainError> {
    account.map_or(Ok(0), |account| {
        nano(account.balance.tokens).map_err(|error| bad_account(&error))
    })
}

fn read_deposit(account: Option<&Account>) -> Result<Option<DepositState>, ChainError> {
    account.map_or(Ok(None), |account| {
        DepositState::read(account).map_err(|error| bad_account(&error))
    })
}

/// The exit code in a liteserver's words: `... exitcode=214, steps=...`.
fn exit_code(text: &str) -> Option<i32> {
    let (_, after) = text.split_once("exitcode=")?;
    let end = after
        .find(|c: char| c != '-' && !c.is_ascii_digit())
        .unwrap_or(after.len());
    after[..end].parse().ok()
}

fn refused(operation: &'static str, exit_code: Option<i32>) -> ChainError {
    ChainError::Refused {
        operation,
        exit_code,
        meaning: exit_code.map_or_else(String::new, |code| contract::meaning(code).to_owned()),
    }
}

fn bad_answer(request: &'static str, reason: &dyn std::fmt::Display) -> ChainError {
    ChainError::BadAnswer {
        request,
        reason: reason.to_string(),
    }
}

fn bad_account(error: &tycho_types::error::Error) -> ChainError {
    bad_answer(
        "getAccountState",
        &format!("the account is not a deposit of this version ({error})"),
    )
}

fn unexpected(request: &'static str) -> ChainError {
    bad_answer(request, &"an answer to something else")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The launcher settles in spawned tasks.
    #[allow(dead_code, reason = "compiling it is the test")]
    fn writes_can_be_spawned(
        client: &ChainClient,
        grant: &SignedGrant,
        voucher: &SignedVoucher,
        order: &SignedWithdrawal,
    ) {
        fn spawnable<T: Send>(_: T) {}
        spawnable(client.lock_grant(grant));
        spawnable(client.settle(voucher));
        spawnable(client.withdraw(order));
        spawnable(client.request_faucet(&order.withdrawal.contract, 1));
    }

    #[test]
    fn exit_codes_are_found_in_a_liteservers_words() {
        let text = "cannot apply external message to current state : External message was not accepted\n\
                    Cannot run message on account: inbound external message rejected by transaction ABC:\n\
                    exitcode=214, steps=31, gas_used=0\nVM Log (truncated):";
        assert_eq!(exit_code(text), Some(214));
        assert_eq!(exit_code("exitcode=-14"), Some(-14));
        assert_eq!(exit_code("rate limit"), None);
        assert_eq!(exit_code("exitcode="), None);
    }
}
