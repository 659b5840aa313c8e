//! TDX quotes: public quotes and collateral that nobody in this project wrote, from the folder that `COCOON_VECTORS`
//! names, and quotes of a simulated platform. Without that folder the tests of public quotes pass with a message; if
//! it is set, a missing file fails.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod agreement;
mod attacks;
mod bits;
mod inputs;
mod judgements;
#[path = "../public_vectors/mod.rs"]
mod public_vectors;
#[path = "../simulated_vendor/mod.rs"]
mod simulated_vendor;
