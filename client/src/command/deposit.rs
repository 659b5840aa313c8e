//! `cocoon deposit`.

use anyhow::anyhow;
use cocoon::{Exit, PayError, Purse, Wallet};
use cocoon_evidence::Digest32;
use cocoon_settlement::{ChainError, DepositState, GrantState, Withdrawal};
use serde_json::{Value, json};

use super::{Failure, ton};
use crate::cli::{DepositArgs, StatusArgs, WithdrawArgs};

/// How long a withdrawal may be sent: long enough for a slow chain, too short to be forgotten.
const WITHDRAWAL_VALID_S: u64 = 600;

pub(super) async fn status(args: &StatusArgs) -> Result<(), Failure> {
    let purse = open(&args.deposit).await?;
    let (state, balance_nano) = purse.state().await.map_err(Failure::of)?;
    if args.json {
        super::print_json(&as_json(&purse, state.as_ref(), balance_nano));
    } else {
        print(&purse, state.as_ref(), balance_nano);
    }
    Ok(())
}

pub(super) async fn withdraw(args: &WithdrawArgs) -> Result<(), Failure> {
    let purse = open(&args.deposit).await?;
    let (state, balance_nano) = purse.state().await.map_err(Failure::of)?;
    let Some(state) = state else {
        return Err(Failure {
            exit: Exit::Payment,
            error: anyhow!(
                "nothing is deployed at {}, which holds {}: the contract is deployed with its first grant",
                purse.deposit(),
                ton(balance_nano)
            ),
        });
    };
    let now_s = cocoon::now_s();
    let order = Withdrawal {
        network: args.deposit.network.id(),
        contract: purse.deposit(),
        seqno: state.seqno,
        valid_until_s: u32::try_from(now_s.saturating_add(WITHDRAWAL_VALID_S)).unwrap_or(u32::MAX),
        destination: args.to,
        amount_nano: args.amount,
        release: expired(&state, now_s),
    };
    let signed = order.sign(purse.wallet().key());
    let sent = purse.withdraw(&signed).await;
    let after = sent.map_err(|error| unsure(error, &signed.withdrawal))?;
    print(&purse, Some(&after), after.balance_nano);
    Ok(())
}

/// Another order has another number, and would pay once more.
fn unsure(error: PayError, order: &Withdrawal) -> Failure {
    // What was sent may be kept for later, whatever a server says of it.
    let was_not_sent = matches!(
        error,
        PayError::Chain(ChainError::Invalid { .. } | ChainError::InsufficientFunds { .. })
    );
    let mut failure = Failure::of(error);
    if !was_not_sent {
        failure.error = failure.error.context(format!(
            "order {} may yet be carried out, until {} s: a second one would pay a second time; look at `cocoon deposit \
             status` first",
            order.seqno, order.valid_until_s
        ));
    }
    failure
}

async fn open(args: &DepositArgs) -> Result<Purse, Failure> {
    let config = super::load_ton_config(&args.ton_config)?;
    let wallet = Wallet::load(&args.wallet).map_err(Failure::of)?;
    Purse::open(wallet, &config, args.network.id())
        .await
        .map_err(Failure::of)
}

/// One order releases one grant; the one that has expired and reserves most.
fn expired(state: &DepositState, now_s: u64) -> Option<Digest32> {
    let expired = state
        .grants
        .iter()
        .filter(|(_, grant)| u64::from(grant.expires_s) <= now_s);
    expired
        .max_by_key(|(_, grant)| left_nano(grant))
        .map(|(id, _)| *id)
}

fn left_nano(grant: &GrantState) -> u64 {
    grant.cap_nano.saturating_sub(grant.paid_nano)
}

fn print(purse: &Purse, state: Option<&DepositState>, balance_nano: u64) {
    let reserved_nano = state.map_or(0, |state| state.reserved_nano);
    println!("deposit   {}", purse.deposit());
    println!("balance   {}", ton(balance_nano));
    println!("reserved  {}", ton(reserved_nano));
    for (id, grant) in state.into_iter().flat_map(|state| &state.grants) {
        println!(
            "grant     {id}: {} of {} paid to {}, for {} tokens in and {} out, until {} s",
            ton(grant.paid_nano),
            ton(grant.cap_nano),
            grant.payout_address,
            grant.served.input,
            grant.served.output,
            grant.expires_s
        );
    }
}

fn as_json(purse: &Purse, state: Option<&DepositState>, balance_nano: u64) -> Value {
    let grants: Vec<_> = state
        .into_iter()
        .flat_map(|state| &state.grants)
        .map(|(id, grant)| {
            json!({
                "id": id,
                "agent_key": hex::encode(grant.agent_key),
                "payout_address": grant.payout_address,
                "cap_nano": grant.cap_nano,
                "paid_nano": grant.paid_nano,
                "served": grant.served,
                "expires_s": grant.expires_s,
            })
        })
        .collect();
    json!({
        "deposit": purse.deposit(),
        "deployed": state.is_some(),
        "balance_nano": balance_nano,
        "reserved_nano": state.map_or(0, |state| state.reserved_nano),
        "grants": grants,
    })
}

#[cfg(test)]
mod tests {
    use cocoon_protocol::{AccountAddress, NetworkId};

    use super::*;

    #[test]
    fn an_order_that_may_yet_come_is_not_to_be_repeated() {
        let order = Withdrawal {
            network: NetworkId::LOCAL,
            contract: AccountAddress(Digest32::ZERO),
            seqno: 7,
            valid_until_s: 1_600,
            destination: AccountAddress(Digest32::ZERO),
            amount_nano: 1,
            release: None,
        };
        let timeout = ChainError::Timeout {
            operation: "withdraw",
            waited_s: 60,
        };
        let told = format!("{:#}", unsure(timeout.into(), &order).error);
        assert!(
            told.starts_with("order 7 may yet be carried out, until 1600 s"),
            "{told}"
        );
        assert!(!told.contains("harmless"), "{told}");
        let refused = ChainError::Refused {
            operation: "withdraw",
            exit_code: Some(215),
            meaning: "its number is used".into(),
        };
        let told = format!("{:#}", unsure(refused.into(), &order).error);
        assert!(told.contains("may yet"), "{told}");
        let invalid = ChainError::Invalid {
            operation: "withdraw",
            reason: "another network".into(),
        };
        let told = format!("{:#}", unsure(invalid.into(), &order).error);
        assert!(!told.contains("may yet"), "{told}");
    }
}
