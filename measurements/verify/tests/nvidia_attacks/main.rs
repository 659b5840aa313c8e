//! One test for each rule by which evidence of an NVIDIA device is refused, named for the attack that it stops. The
//! devices and their vendor are made here; `nvidia_vectors` has real ones.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../nvidia_lab/mod.rs"]
mod nvidia_lab;

mod devices;
mod firmware;
mod revocation;
mod terms;
