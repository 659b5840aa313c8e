//! The descriptor that the agent leaves to the engine.

#![allow(unsafe_code, reason = "a number has to be taken for a descriptor")]

use std::{
    io,
    os::{fd::BorrowedFd, unix::net::UnixStream},
};

use cocoon_protocol::engine::ENGINE_SOCKET_FD;

/// The engine's end of the socketpair.
pub(crate) fn from_agent() -> io::Result<UnixStream> {
    // SAFETY: nothing in this process opens or closes this number: it is looked at before anything is opened,
    // and only duplicated, which fails if the agent left nothing there.
    let inherited = unsafe { BorrowedFd::borrow_raw(ENGINE_SOCKET_FD) };
    let stream = UnixStream::from(inherited.try_clone_to_owned()?);
    // A file or a terminal is no socket.
    stream.peer_addr().map(|_| stream)
}
