//! Evidence of real NVIDIA devices and NVIDIA's own RIM files, from the folder that `COCOON_VECTORS` names. Without
//! it the tests pass with a message; if it is set, a missing file fails.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod bits;
mod inputs;
#[path = "../public_vectors/mod.rs"]
mod public_vectors;
mod reports;
mod rims;
