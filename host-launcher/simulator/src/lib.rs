//! SIMULATED Intel TDX: a software TDX module and quoting enclave for machines without TDX.
//!
//! The launcher opens one [`SimulatedPlatform`] for each state directory, computes the initial registers from
//! the very bytes that QEMU is given, and answers the guest's requests (vsock port
//! [`cocoon_protocol::simulated::PLATFORM_PORT`]) with a [`SimulatedTd`]. Quotes have the layout of real ones and
//! verify like real ones, but under a test root made here, whose name says SIMULATED; only a policy that names
//! that very root accepts them.
//!
//! It protects nothing: whoever runs the host holds the keys. What it proves is that the rest of the system
//! treats evidence as it would treat Intel's.

mod certificates;
mod keys;
mod platform;
mod quoting;
mod td;

pub use platform::{
    COLLATERAL_LIFETIME_S, PlatformError, SIMULATED_TCB_EVALUATION_NUMBER, SimulatedPlatform,
};
pub use td::{InitialRegisters, SIMULATED_TD_ATTRIBUTES, SIMULATED_XFAM, SimulatedTd};
