//! PID 1 of the guest: fetches the launch document, measures itself into RTMR3, runs the engine, serves
//! attested TLS and meters what it serves.
//!
//! It trusts the processor and the kernel it was measured with. The host (documents, disks, credit, time) and
//! the engine (counts, liveness) are not trusted; see each module for how far they are believed.

pub mod console;
pub mod host;
pub mod system;
pub mod transport;
