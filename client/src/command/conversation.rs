//! `cocoon chat` without a prompt: a conversation, line by line, from a terminal or a pipe.
//!
//! The conversation is sent again with each question and kept in memory only: nothing of it is written to disk.
//! Lines are edited by the terminal itself, so there is no line editor that could keep a history file. Each question
//! is paid for on its own, and all of them together cost at most `--max-ton`.

use std::{
    io::{self, BufRead as _, IsTerminal as _},
    thread,
};

use anyhow::anyhow;
use cocoon::{
    Account, ChatMessage, ChatOptions, ChatRole, Exit, PROMPT_BYTES_MAX, PaidSession, PayError, Purse,
    Verifier,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::{Failure, chat::Printer, ton, verify};
use crate::cli::ChatArgs;

const HELP: &str = "/new      forget the conversation
/verify   what was verified, row by row
/quit     end (so does Ctrl-D)
Ctrl-C stops an answer. A line that begins with a space is sent even if / follows.";

/// What a line of input asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    Help,
    New,
    Verify,
    Quit,
    Unknown(&'a str),
    Say(&'a str),
}

/// A conversation with one node.
pub(super) struct Conversation<'a> {
    pub(super) args: &'a ChatArgs,
    pub(super) verifier: Verifier,
    pub(super) purse: Purse,
    pub(super) options: ChatOptions,
    pub(super) need_nano: u64,
    pub(super) said: Vec<ChatMessage>,
    /// What was charged, and the worst case of what may yet be.
    pub(super) spent_nano: u64,
    /// What may be locked for the node.
    pub(super) account: Account,
    /// The connection of the question before, if another one can be asked on it.
    pub(super) paid: Option<PaidSession>,
}

impl Conversation<'_> {
    /// Until the input ends. What fails ends it only where nobody is there to try again.
    pub(super) async fn run(mut self) -> Result<(), Failure> {
        let attended = io::stdin().is_terminal();
        let listen = signal(SignalKind::interrupt());
        let mut interrupt =
            listen.map_err(|error| Failure::usage(anyhow!(error).context("cannot wait for Ctrl-C")))?;
        let mut lines = lines();
        if attended {
            eprintln!("/help says what else there is; the conversation is kept in memory only");
        }
        loop {
            if attended {
                eprint!("> ");
            }
            let line = tokio::select! {
                line = lines.recv() => line,
                _ = interrupt.recv() => {
                    if !attended {
                        return Ok(());
                    }
                    eprintln!("\nCtrl-D ends");
                    continue;
                }
            };
            let Some(line) = line else { return Ok(()) };
            let done = match line {
                Ok(line) => match parse(&line) {
                    Line::Quit => return Ok(()),
                    Line::Say(text) => self.ask(text, &mut interrupt).await,
                    other => self.obey(&other),
                },
                Err(error) => Err(Failure::usage(anyhow!(error).context("the input cannot be read"))),
            };
            match done {
                Err(failure) if attended => super::say(&failure),
                done => done?,
            }
        }
    }

    fn obey(&mut self, line: &Line<'_>) -> Result<(), Failure> {
        match line {
            Line::Help => eprintln!("{HELP}"),
            Line::New => self.said.clear(),
            Line::Verify => self.show_verification(),
            Line::Unknown(command) => {
                let command = cocoon::plain(command, 80);
                return Err(Failure::usage(anyhow!(
                    "there is no {command}; /help says what there is"
                )));
            }
            Line::Nothing | Line::Quit | Line::Say(_) => {}
        }
        Ok(())
    }

    fn show_verification(&self) {
        // The newest stands last.
        if let Some(proof) = self.verifier.proofs().last() {
            let colour = io::stderr().is_terminal();
            verify::print_table(&mut io::stderr(), colour, proof.verification(), true);
        }
    }

    /// One question. It joins the conversation only with its whole answer and a receipt that is true.
    async fn ask(&mut self, text: &str, interrupt: &mut Signal) -> Result<(), Failure> {
        let message = |role, content: &str| ChatMessage {
            role,
            content: content.to_owned(),
        };
        self.said.push(message(ChatRole::User, text));
        let mut printer = Printer::new(true);
        let answered = tokio::select! {
            answered = self.answer(&mut printer) => Some(answered),
            _ = interrupt.recv() => None,
        };
        printer.end();
        match answered {
            Some(Ok(answer)) => {
                self.said.push(message(ChatRole::Assistant, &answer));
                Ok(())
            }
            Some(Err(failure)) => {
                self.said.pop();
                Err(failure)
            }
            None => {
                self.said.pop();
                Err(Failure {
                    exit: Exit::Request,
                    error: anyhow!("stopped; what was generated may yet be charged, and is forgotten"),
                })
            }
        }
    }

    async fn answer(&mut self, printer: &mut Printer) -> Result<String, Failure> {
        loop {
            let mut paid = self.paid_session().await?;
            // Whatever ends this early has not shown what it cost: it counts in full until a receipt says less.
            self.spent_nano = self.spent_nano.saturating_add(self.need_nano);
            let asked = paid
                .chat(&self.said, self.options, |text| printer.print(text))
                .await;
            match asked {
                Ok(answer) => {
                    self.account.paid(&paid);
                    self.spent_nano = self.spent_nano - self.need_nano + answer.amount_nano;
                    eprintln!("\n[{} of {}]", ton(self.spent_nano), ton(self.args.max_ton));
                    self.paid = Some(paid);
                    return Ok(answer.text);
                }
                Err(error) if error.is_too_long() && self.said.len() > 2 => {
                    self.spent_nano -= self.need_nano;
                    self.paid = Some(paid);
                    self.said.drain(..2);
                    eprintln!("(the oldest question and its answer do not fit any more and are left out)");
                }
                Err(error) => return Err(Failure::of(error)),
            }
        }
    }

    /// A connection on which one question is paid for, within what is left of `--max-ton`.
    async fn paid_session(&mut self) -> Result<PaidSession, Failure> {
        let left_nano = self.args.max_ton.saturating_sub(self.spent_nano);
        if left_nano < self.need_nano {
            return Err(Failure::of(PayError::CapTooLow {
                need_nano: self.need_nano,
                cap_nano: left_nano,
            }));
        }
        let usable = |paid: &PaidSession| paid.is_usable() && paid.standing().left_nano() >= self.need_nano;
        if let Some(paid) = self.paid.take().filter(usable) {
            return Ok(paid);
        }
        let session = self
            .verifier
            .connect(&self.args.target.url)
            .await
            .map_err(Failure::of)?;
        let now_s = cocoon::now_s();
        let paid = self
            .purse
            .pay(session, self.need_nano, &self.account, now_s)
            .await;
        paid.map_err(Failure::of)
    }
}

/// Reading a terminal blocks, so a thread does it; it ends with the input, or with the program.
fn lines() -> mpsc::Receiver<io::Result<String>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        let mut input = io::stdin().lock();
        while let Some(line) = next_line(&mut input) {
            // What follows an error would be read from the middle of something.
            let broken = line.is_err();
            if sender.blocking_send(line).is_err() || broken {
                return;
            }
        }
    });
    receiver
}

/// A line that is too long is refused, not cut into two questions.
fn next_line(input: &mut impl io::BufRead) -> Option<io::Result<String>> {
    let mut line = String::new();
    let mut bounded = io::Read::take(input, PROMPT_BYTES_MAX as u64 + 1);
    let read = bounded.read_line(&mut line);
    match read {
        Ok(0) => None,
        Ok(_) if line.len() > PROMPT_BYTES_MAX => Some(Err(io::Error::other(format!(
            "a line is over {PROMPT_BYTES_MAX} bytes"
        )))),
        Ok(_) => Some(Ok(line)),
        Err(error) => Some(Err(error)),
    }
}

fn parse(line: &str) -> Line<'_> {
    let line = line.trim_end();
    match line {
        _ if line.trim().is_empty() => Line::Nothing,
        "/help" => Line::Help,
        "/new" => Line::New,
        "/verify" => Line::Verify,
        "/quit" => Line::Quit,
        _ if line.starts_with('/') => Line::Unknown(line),
        _ => Line::Say(line.trim_start()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endless_line_is_not_cut_into_questions() {
        let mut input = io::Cursor::new("x".repeat(PROMPT_BYTES_MAX + 5) + "\nshort\n");
        assert!(next_line(&mut input).unwrap().is_err());
        let mut input = io::Cursor::new("one\ntwo");
        assert_eq!(next_line(&mut input).unwrap().unwrap(), "one\n");
        assert_eq!(next_line(&mut input).unwrap().unwrap(), "two");
        assert!(next_line(&mut input).is_none());
        assert!(next_line(&mut io::Cursor::new(b"\xff\n")).unwrap().is_err());
    }

    #[test]
    fn commands_are_not_sent_to_the_model() {
        assert_eq!(parse("\n"), Line::Nothing);
        assert_eq!(parse("  \t\n"), Line::Nothing);
        assert_eq!(parse("/quit\n"), Line::Quit);
        assert_eq!(parse("/verify"), Line::Verify);
        assert_eq!(parse("/quitt\n"), Line::Unknown("/quitt"));
        assert_eq!(
            parse(" /etc/passwd is what?\n"),
            Line::Say("/etc/passwd is what?")
        );
        assert_eq!(parse("hello there\r\n"), Line::Say("hello there"));
    }
}
