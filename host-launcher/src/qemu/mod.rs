//! QEMU: its arguments from the same LaunchSpec that was predicted from, and whether KVM is of use.

mod argv;
mod probe;

pub use argv::{Accelerator, Machine, Sockets, TCG_CPU};
pub use probe::{accelerator, kvm_works, open_kvm};
