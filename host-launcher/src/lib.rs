//! Boots the guest, relays to it and gets paid.
//!
//! The provider's program. It starts QEMU from the LaunchSpec that everybody predicts from, gives the guest its
//! launch document over vsock, copies ciphertext between TCP and the guest, journals what the agent signs, and
//! settles it on TON. On a machine without TDX it also plays the platform ([`cocoon_simulator`]) and runs a
//! chain of its own.
//!
//! Nothing here is trusted by clients: a launcher that lies makes a guest that measures to something else, or
//! cheats itself. It trusts its own configuration and files. The guest's bytes are bounded and checked, because
//! a guest runs other people's requests.
//!
//! Entry points: [`config::Config::load`] reads node.toml, [`node::run`] is the supervisor, [`status::ask`]
//! talks to a running one.

pub mod boot;
pub mod child;
pub mod config;
pub mod detach;
pub mod exit;
pub mod guest;
pub mod guest_socket;
pub mod journal;
pub mod node;
pub mod platform;
pub mod programs;
pub mod progress;
pub mod qemu;
pub mod qmp;
pub mod relay;
pub mod services;
pub mod settler;
pub mod state_dir;
pub mod status;
