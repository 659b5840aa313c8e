//! PID 1 of the guest: fetches the launch document, measures itself into RTMR3, runs the engine, serves
//! attested TLS and meters what it serves.
//!
//! It trusts the processor and the kernel it was measured with. The host (documents, disks, credit, time) and
//! the engine (counts, liveness) are not trusted; see each module for how far they are believed.

mod answer;
pub mod attest;
mod body;
pub mod boot;
pub mod certificate;
pub mod closing;
pub mod console;
pub mod control;
#[cfg(feature = "simulated")]
pub mod danger;
mod dm;
pub mod driver;
pub mod endorsements;
pub mod engine;
#[cfg(feature = "simulated")]
pub mod firmware_log;
pub mod fresh;
pub mod gpu;
pub mod guest;
pub mod host;
pub mod meter;
pub mod modules;
pub mod openai;
mod places;
pub mod platform;
pub mod process;
mod prompts;
pub mod records;
pub mod resident;
pub mod serve;
mod shape;
pub mod system;
mod tls_key;
pub mod transport;
mod wire;
