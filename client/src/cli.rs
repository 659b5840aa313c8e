//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use cocoon::{Endpoint, Exit};
use cocoon_protocol::{AccountAddress, NetworkId};
use cocoon_verify::PolicyKey;

/// Verify a Cocoon guest, then talk to it.
///
/// A Cocoon node runs AI models inside a confidential virtual machine (Intel TDX), so that whoever owns the
/// machine cannot read your prompts. This program makes the node prove that, value by value, against a policy
/// file before it sends anything.
#[derive(Debug, Parser)]
#[command(version, after_help = Exit::HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check a node against a policy and print every value: expected, actual, verdict
    ///
    /// Connects, reads the evidence in the node's TLS certificate, asks for fresh evidence under a random nonce
    /// for this connection, and compares each register and event with the policy. Sends no prompt and uses no
    /// wallet.
    #[command(after_help = Exit::HELP)]
    Verify(VerifyArgs),
    /// Verify a node, pay for a request and print the answer; or talk with it, line by line
    ///
    /// Verifies as `cocoon verify` does. Then locks a grant in your deposit (on the local chain the deposit is
    /// filled from its faucet; elsewhere send coins to the address that `cocoon wallet address` prints for that
    /// network), sends the prompt, prints the answer as it comes and checks the node's signed receipt. Without a
    /// prompt it goes on with one question after the other from standard input; the conversation is kept in memory
    /// only.
    #[command(after_help = Exit::HELP)]
    Chat(ChatArgs),
    /// Serve OpenAI's API on this machine for any program, through verified nodes only
    ///
    /// Verifies every node first, and again when a node's certificate changes and every ten minutes. Then programs
    /// that speak OpenAI's API use it unchanged: set their base URL to http://127.0.0.1:8080/v1 and any API key.
    /// It pays with your wallet, so everybody who can reach this machine's loopback can spend up to --max-ton.
    /// GET /verification shows what was judged, GET /receipts the last receipts, GET /metrics counters.
    #[command(after_help = Exit::HELP)]
    Proxy(ProxyArgs),
    /// Make a key that owns a deposit, or show its address
    #[command(subcommand)]
    Wallet(WalletCommand),
    /// Look at your deposit, or take coins out of it
    #[command(subcommand)]
    Deposit(DepositCommand),
}

impl Command {
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Verify(args) => args.json,
            Self::Chat(args) => args.json,
            Self::Proxy(_) | Self::Wallet(_) => false,
            Self::Deposit(DepositCommand::Status(args)) => args.json,
            Self::Deposit(DepositCommand::Withdraw(_)) => false,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Target {
    /// The node: https://HOST:PORT
    pub(crate) url: Endpoint,
    #[command(flatten)]
    pub(crate) terms: Terms,
}

#[derive(Debug, Args)]
pub(crate) struct Terms {
    /// What to accept, as `cocoon-measure predict` writes it
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: PathBuf,
    /// Accept the policy only if this key signed it, in FILE.sig beside it (`cocoon-measure policy sign`); may be
    /// given several times. Without it the file is taken as your own
    #[arg(long, value_name = "HEX")]
    pub(crate) policy_key: Vec<PolicyKey>,
    /// Where the highest policy and TCB evaluation numbers that were accepted are remembered; lower ones are refused
    /// [default: $XDG_STATE_HOME/cocoon/seen.json, or ~/.local/state/cocoon/seen.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,
    /// Refuse policies with a lower number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) policy_number_min: u64,
    /// Refuse endorsements with a lower TCB evaluation data number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) tcb_evaluation_min: u32,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The node: https://HOST:PORT
    #[arg(required_unless_present = "offline")]
    pub(crate) url: Option<Endpoint>,
    #[command(flatten)]
    pub(crate) terms: Terms,
    /// Keep everything that the verdict rests upon in a new folder, for --offline
    #[arg(long, value_name = "DIR", conflicts_with = "offline")]
    pub(crate) save: Option<PathBuf>,
    /// Judge what --save kept, as of when it was kept; connects to nobody
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    pub(crate) offline: Option<PathBuf>,
    /// Say what each row means
    #[arg(long, conflicts_with = "json")]
    pub(crate) explain: bool,
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Your key, as `cocoon wallet new` writes it; opened only after the node is verified
    #[arg(long, value_name = "FILE")]
    pub(crate) wallet: PathBuf,
    /// Where the chain's liteservers are: a global.config.json
    #[arg(long, value_name = "FILE")]
    pub(crate) ton_config: PathBuf,
    /// What this guest can draw at most, gas included, from a new grant and those that are open; and the most that a
    /// conversation costs. What is not used of a grant serves later requests, and can be withdrawn after a day
    #[arg(long, value_name = "TON", default_value = "1", value_parser = parse_ton)]
    pub(crate) max_ton: u64,
    /// Generated tokens at most; the node's own limit if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: Option<u32>,
    /// 0 always picks the likeliest word
    #[arg(long, value_name = "T", default_value = "0", value_parser = parse_temperature)]
    pub(crate) temperature: f32,
    /// Write the node's signed receipt to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) receipt_out: Option<PathBuf>,
    /// Print one JSON object (verification, answer, receipt, amount, timings) instead of the answer's text
    #[arg(long)]
    pub(crate) json: bool,
    /// What to say; `-` reads it from standard input; without it every line of standard input is a question. Other
    /// users of this machine can see command lines, and shells keep them: pass what is private through standard input
    pub(crate) prompt: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    /// A node: https://HOST:PORT; may be given several times
    #[arg(long, value_name = "URL", required = true)]
    pub(crate) upstream: Vec<Endpoint>,
    /// Where programs connect to; has to be on this machine's loopback
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = parse_loopback)]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) terms: Terms,
    /// Your key, as `cocoon wallet new` writes it; opened only after a node is verified
    #[arg(long, value_name = "FILE")]
    pub(crate) wallet: PathBuf,
    /// Where the chain's liteservers are: a global.config.json
    #[arg(long, value_name = "FILE")]
    pub(crate) ton_config: PathBuf,
    /// What may be spent while this proxy runs, together with what can still be drawn from grants that it locked, in
    /// equal shares for each --upstream. Half of what is left is locked at a time. Grants that are locked already are
    /// used first
    #[arg(long, value_name = "TON", default_value = "1", value_parser = parse_ton)]
    pub(crate) max_ton: u64,
    /// Serve a page for your browser too, with the verification, the receipts and a chat. Its URL goes to standard
    /// error; whoever has it can spend as you can
    #[arg(long)]
    pub(crate) ui: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WalletCommand {
    /// Make a key in a new file that only you can read
    New {
        /// The file; must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Print the address of this key's deposit: send coins there
    Address {
        /// Your key
        #[arg(long, value_name = "FILE")]
        wallet: PathBuf,
        /// Which chain: on another one the address is another, and what is sent to it is lost
        #[arg(long)]
        network: Network,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DepositCommand {
    /// Balance, what grants reserve, and every grant
    Status(StatusArgs),
    /// Send what no grant reserves to an address
    #[command(after_help = Exit::HELP)]
    Withdraw(WithdrawArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DepositArgs {
    /// Your key
    #[arg(long, value_name = "FILE")]
    pub(crate) wallet: PathBuf,
    /// Where the chain's liteservers are: a global.config.json
    #[arg(long, value_name = "FILE")]
    pub(crate) ton_config: PathBuf,
    /// Which chain
    #[arg(long)]
    pub(crate) network: Network,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) deposit: DepositArgs,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WithdrawArgs {
    #[command(flatten)]
    pub(crate) deposit: DepositArgs,
    /// Who gets the coins: 0: and 64 hexadecimal digits
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) to: AccountAddress,
    /// How much, in TON, or `all`
    #[arg(long, value_name = "TON", value_parser = parse_amount)]
    pub(crate) amount: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// The chain that cocoon-launch embeds; its coins are worth nothing
    Local,
    /// TON testnet
    Testnet,
    /// TON mainnet
    Mainnet,
}

impl Network {
    pub(crate) fn id(self) -> NetworkId {
        match self {
            Self::Local => NetworkId::LOCAL,
            Self::Testnet => NetworkId::TESTNET,
            Self::Mainnet => NetworkId::MAINNET,
        }
    }
}

fn parse_loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "write it as 127.0.0.1:8080".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("whoever reaches the proxy spends your coins, so it listens on loopback only (127.0.0.1 or [::1])".into())
    }
}

fn parse_amount(text: &str) -> Result<u64, String> {
    if text == "all" {
        Ok(cocoon_settlement::WITHDRAW_ALL)
    } else {
        parse_ton(text)
    }
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=2.0).contains(&value) {
        Ok(value)
    } else {
        Err("it has to be from 0 to 2".into())
    }
}

/// Coins as people write them (`1`, `0.25`), in nanoTON. No floating point: coins are counted exactly.
fn parse_ton(text: &str) -> Result<u64, String> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return Err("write coins as 1 or 0.25, with at most nine digits after the point".into());
    }
    let nano = format!("{whole}{fraction:0<9}");
    nano.parse().map_err(|_| "more coins than there are".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_proxy_is_not_offered_to_the_network() {
        assert!(parse_loopback("127.0.0.1:8080").is_ok() && parse_loopback("[::1]:0").is_ok());
        for wrong in [
            "0.0.0.0:8080",
            "[::]:8080",
            "192.168.0.1:80",
            "localhost:8080",
            "8080",
        ] {
            assert!(parse_loopback(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn coins_are_counted_exactly() {
        assert_eq!(parse_ton("1"), Ok(1_000_000_000));
        assert_eq!(parse_ton("0.25"), Ok(250_000_000));
        assert_eq!(parse_ton("0.000000001"), Ok(1));
        for wrong in ["", ".", "1.", ".5", "-1", "1e3", "0.0000000001", "99999999999999"] {
            assert!(parse_ton(wrong).is_err(), "{wrong}");
        }
    }
}
