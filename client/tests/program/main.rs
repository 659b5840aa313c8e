//! The program as people run it: against a node over loopback and a real local chain, judged by what it prints,
//! what it exits with and what it leaves on the chain.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "../hostile_host/mod.rs"]
mod hostile_host;
#[path = "../node/mod.rs"]
mod node;

mod conversation;
mod payment;
mod proxy;
mod tampering;
mod verify;
mod world;
