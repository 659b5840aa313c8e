//! `cocoon wallet`.

use cocoon::Wallet;

use super::Failure;
use crate::cli::WalletCommand;

pub(super) fn run(command: &WalletCommand) -> Result<(), Failure> {
    match command {
        WalletCommand::New { out } => {
            let wallet = Wallet::create(out).map_err(Failure::of)?;
            eprintln!(
                "wrote a new key to {}; whoever reads this file can spend its deposit, and a lost file is a lost \
                 deposit",
                out.display()
            );
            println!("{}", hex::encode(wallet.public_key()));
        }
        WalletCommand::Address { wallet, network } => {
            let wallet = Wallet::load(wallet).map_err(Failure::of)?;
            println!("{}", wallet.deposit(network.id()));
        }
    }
    Ok(())
}
