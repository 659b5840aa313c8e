//! `cocoon chat`.

use std::{
    fs,
    io::{self, IsTerminal as _, Read, Write as _},
    path::Path,
    time::Instant,
};

use anyhow::{Context as _, anyhow};
use cocoon::{
    Account, Answer, ChatMessage, ChatOptions, ChatRole, Deadlines, Exit, PROMPT_BYTES_MAX, PaidSession,
    Purse, Session, Verifier, Wallet, need_nano,
};
use cocoon_settlement::GlobalConfig;
use cocoon_verify::Policy;
use serde_json::{Value, json};

use super::{Failure, conversation::Conversation, ton, verify};
use crate::cli::ChatArgs;

/// Milliseconds of each stage.
#[derive(Debug, Clone, Copy)]
struct Timings {
    verify_ms: u128,
    pay_ms: u128,
}

pub(super) async fn run(args: &ChatArgs) -> Result<(), Failure> {
    let policy = super::load_policy(&args.target.terms)?;
    let config = super::load_ton_config(&args.ton_config)?;
    let prompt = match &args.prompt {
        Some(argument) => Some(prompt(argument, io::stdin())?),
        None if args.json || args.receipt_out.is_some() => {
            return Err(Failure::usage(anyhow!(
                "--json and --receipt-out are for one answer: give a prompt, or `-`"
            )));
        }
        None => None,
    };
    let Some(prompt) = prompt else {
        return converse(args, policy, &config).await;
    };

    let started = Instant::now();
    let session = match verify::connect(&args.target, &policy).await? {
        Ok(session) => session,
        Err(error) => return Err(refuse(args, error)),
    };
    let verify_ms = started.elapsed().as_millis();
    if session.guest().is_simulated() {
        eprintln!(
            "SIMULATED platform: the guest meets the policy, but whoever runs the host can read this conversation."
        );
    }
    let verification = verify::as_json(session.verification(), None);

    if let Some(path) = &args.receipt_out {
        check_writable(path)
            .with_context(|| format!("the receipt could not be written to {}", path.display()))
            .map_err(Failure::usage)?;
    }
    let options = options(args, &session)?;
    let need_nano = need_nano(session.launch(), options.output_tokens_max).map_err(Failure::of)?;
    Purse::check_terms(session.proof()).map_err(Failure::of)?;
    let started = Instant::now();
    let wallet = Wallet::load(&args.wallet).map_err(Failure::of)?;
    let network = session.launch().settlement.network;
    let purse = Purse::open(wallet, &config, network).await.map_err(Failure::of)?;
    let account = Account::new(args.max_ton);
    let paid = purse.pay(session, need_nano, &account, cocoon::now_s()).await;
    let mut paid = paid.map_err(Failure::of)?;
    let timings = Timings {
        verify_ms,
        pay_ms: started.elapsed().as_millis(),
    };

    let message = ChatMessage {
        role: ChatRole::User,
        content: prompt,
    };
    let mut printer = Printer::new(!args.json);
    let asked = paid.chat(&[message], options, |text| printer.print(text)).await;
    printer.end();
    let answer = asked.map_err(Failure::of)?;
    let kept = match &args.receipt_out {
        Some(path) => write_receipt(path, &answer),
        None => Ok(()),
    };
    // What was paid for is shown, whether or not the disk had room for the receipt.
    if args.json {
        super::print_json(&as_json(&verification, &answer, &paid, timings));
    } else {
        print_receipt(&answer, &paid, timings);
    }
    kept
}

/// Found out before anything is paid, and without leaving a file behind where it is not.
fn check_writable(path: &Path) -> io::Result<()> {
    match fs::File::options().write(true).create_new(true).open(path) {
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::File::options().append(true).open(path).map(drop)
        }
        Err(error) => Err(error),
    }
}

/// Verifies first, says so, and opens the wallet only then.
async fn converse(args: &ChatArgs, policy: Policy, config: &GlobalConfig) -> Result<(), Failure> {
    let accepted = super::remembered(&args.target.terms, &policy)?;
    let url = &args.target.url;
    let verifier = Verifier::new(policy, accepted, Deadlines::default()).map_err(Failure::of)?;
    let session = verifier.connect(url).await.map_err(|error| refuse(args, error))?;
    let (verdict, warning) = if session.guest().is_simulated() {
        ("SIMULATED", ": whoever runs the host can read this conversation")
    } else {
        ("PASS", "")
    };
    let model = cocoon::plain(&session.launch().model.name, 80);
    eprintln!("{url}: {verdict}{warning}; model {model}");

    let options = options(args, &session)?;
    let need_nano = need_nano(session.launch(), options.output_tokens_max).map_err(Failure::of)?;
    Purse::check_terms(session.proof()).map_err(Failure::of)?;
    let wallet = Wallet::load(&args.wallet).map_err(Failure::of)?;
    let network = session.launch().settlement.network;
    let purse = Purse::open(wallet, config, network).await.map_err(Failure::of)?;
    let conversation = Conversation {
        args,
        verifier,
        purse,
        options,
        need_nano,
        said: vec![],
        spent_nano: 0,
        account: Account::new(args.max_ton),
        paid: None,
    };
    conversation.run().await
}

fn refuse(args: &ChatArgs, error: cocoon::ConnectError) -> Failure {
    if let Some(verification) = verify::judged(&error) {
        if args.json {
            super::print_json(&json!({"verification": verify::as_json(verification, Some(&error))}));
        } else {
            verify::print_table(&mut io::stderr(), io::stderr().is_terminal(), verification, false);
        }
    }
    verify::explain(&error);
    Failure::of(error)
}

/// `-` stands for standard input, whose last line feed is its own and not the prompt's.
fn prompt(argument: &str, input: impl Read) -> Result<String, Failure> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut bytes = vec![];
    let read = input.take(PROMPT_BYTES_MAX as u64 + 2).read_to_end(&mut bytes);
    read.context("standard input cannot be read")
        .map_err(Failure::usage)?;
    if bytes.ends_with(b"\n") {
        bytes.pop();
    }
    if bytes.is_empty() {
        return Err(Failure::usage(anyhow!("standard input holds no prompt")));
    }
    if bytes.len() > PROMPT_BYTES_MAX {
        return Err(Failure::usage(anyhow!(
            "the prompt is over {PROMPT_BYTES_MAX} bytes: shorten it"
        )));
    }
    String::from_utf8(bytes).map_err(|_| Failure::usage(anyhow!("the prompt has to be text in UTF-8")))
}

fn options(args: &ChatArgs, session: &Session) -> Result<ChatOptions, Failure> {
    let limit = session.launch().limits.output_tokens_max;
    let wanted = args.max_tokens.unwrap_or(limit);
    if wanted > limit {
        return Err(Failure::usage(anyhow!(
            "--max-tokens is {wanted}, this node generates at most {limit} tokens: ask for fewer"
        )));
    }
    Ok(ChatOptions {
        output_tokens_max: wanted,
        temperature: args.temperature,
    })
}

/// Prints an answer while it comes.
pub(super) struct Printer {
    active: bool,
    terminal: bool,
    at_line_start: bool,
}

impl Printer {
    pub(super) fn new(active: bool) -> Self {
        Self {
            active,
            terminal: io::stdout().is_terminal(),
            at_line_start: true,
        }
    }

    pub(super) fn print(&mut self, text: &str) {
        if !self.active || text.is_empty() {
            return;
        }
        self.at_line_start = text.ends_with('\n');
        let mut out = io::stdout();
        // A file gets the answer as it is; a terminal must not act upon what a model says.
        let written = if self.terminal {
            out.write_all(cocoon::plain(text, usize::MAX).as_bytes())
        } else {
            out.write_all(text.as_bytes())
        };
        // A reader that went away does not stop the request: its receipt is still to be checked.
        self.active = written.and_then(|()| out.flush()).is_ok();
    }

    pub(super) fn end(&mut self) {
        if !self.at_line_start {
            self.print("\n");
        }
    }
}

fn write_receipt(path: &Path, answer: &Answer) -> Result<(), Failure> {
    let text =
        serde_json::to_string_pretty(&answer.receipt).expect("a receipt holds nothing that JSON cannot");
    fs::write(path, text + "\n")
        .with_context(|| format!("the receipt is good, but {} cannot be written", path.display()))
        .map_err(|error| Failure {
            // Not a matter of the command line any more: the prompt was sent.
            exit: Exit::Request,
            error,
        })
}

fn print_receipt(answer: &Answer, paid: &PaidSession, timings: Timings) {
    let receipt = &answer.receipt.receipt;
    let standing = paid.standing();
    eprintln!(
        "receipt {}: signature, request, answer and amount are right\n  tokens    {} in, {} out ({})\n  amount    \
         {}\n  grant     {}: {} of {} served\n  time      verified in {} ms, paid in {} ms, first text after {} \
         ms, answer after {} ms",
        cocoon::plain(&receipt.request_id, 80),
        receipt.tokens.input,
        receipt.tokens.output,
        cocoon::plain(&receipt.finish_reason, 20),
        ton(answer.amount_nano),
        receipt.grant,
        ton(standing.served_nano),
        ton(standing.credit_nano),
        timings.verify_ms,
        timings.pay_ms,
        answer.first_text.as_millis(),
        answer.total.as_millis(),
    );
}

fn as_json(verification: &Value, answer: &Answer, paid: &PaidSession, timings: Timings) -> Value {
    json!({
        "verification": verification,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "receipt": answer.receipt,
        "content_key": answer.content_key,
        "tokens": answer.receipt.receipt.tokens,
        "amount_nano": answer.amount_nano,
        "grant": paid.standing(),
        "timings_ms": {
            "verify": timings.verify_ms as u64,
            "pay": timings.pay_ms as u64,
            "first_text": answer.first_text.as_millis() as u64,
            "answer": answer.total.as_millis() as u64,
        },
        "exit_code": Exit::Ok as u8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_prompt_comes_through_standard_input() {
        let read = |argument: &str, input: &[u8]| prompt(argument, input).ok();
        assert_eq!(
            read("-", b"my record\nline two\n").unwrap(),
            "my record\nline two"
        );
        assert_eq!(read("hello", b"not read").unwrap(), "hello");
        assert!(read("-", b"").is_none());
        assert!(read("-", b"\xff").is_none());
        assert!(read("-", "x".repeat(PROMPT_BYTES_MAX).as_bytes()).is_some());
        assert!(read("-", "x".repeat(PROMPT_BYTES_MAX + 1).as_bytes()).is_none());
    }
}
