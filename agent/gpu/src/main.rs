//! Speaks to the GPUs for the agent: evidence, then ready, then watch. See `cocoon_protocol::gpu`.
//!
//! A program of its own, because NVIDIA's library must be loaded at run time, which a static program cannot, and
//! because so much foreign code does not belong into the process that holds the keys. It believes nothing but the
//! driver; whether the evidence is any good is for the client to judge.

mod nvml;

use std::{
    env,
    io::{self, Read, Write},
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::ExitCode,
    time::Duration,
};

use cocoon_protocol::{
    FrameError,
    gpu::{FromGpu, GPU_SOCKET_FD, ToGpu},
    read_frame, write_frame,
};

use crate::nvml::{Gpus, NvmlError};

/// The library's name on every Linux, by NVIDIA's NVML API Reference, "NVML API".
const LIBRARY: &str = "libnvidia-ml.so.1";

/// How long a lost GPU may stay unnoticed, where the driver does not tell.
const WATCH_STEP: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let library = arguments.next().unwrap_or_else(|| LIBRARY.into());
    if arguments.next().is_some() {
        eprintln!("usage: cocoon-gpu [LIBRARY], with a socket to the agent as descriptor {GPU_SOCKET_FD}");
        return ExitCode::from(2);
    }
    let mut socket = UnixStream::from(agent_socket());
    match serve(&mut socket, || Gpus::open(&library)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cocoon-gpu: the agent does not answer: {error}");
            ExitCode::FAILURE
        }
    }
}

#[allow(unsafe_code, reason = "takes the descriptor that the agent left open")]
fn agent_socket() -> OwnedFd {
    // SAFETY: the agent starts this program with its socket as this descriptor, and nothing else here owns it. If
    // it is not open, the first read fails.
    unsafe { OwnedFd::from_raw_fd(GPU_SOCKET_FD) }
}

/// Ends when there is nothing (more) to watch, and says why.
fn serve(
    socket: &mut (impl Read + Write),
    open: impl FnOnce() -> Result<Gpus, NvmlError>,
) -> Result<(), FrameError> {
    let last = match converse(socket, open) {
        Ok(ended) => return ended,
        Err(error @ (NvmlError::NoLibrary(_) | NvmlError::NoDriver(_) | NvmlError::NoGpu)) => {
            FromGpu::Nothing {
                reason: error.to_string(),
            }
        }
        Err(error) => FromGpu::Failed {
            reason: error.to_string(),
        },
    };
    write_frame(socket, &last)
}

/// The outer error is the driver's, the inner one the socket's.
fn converse(
    socket: &mut (impl Read + Write),
    open: impl FnOnce() -> Result<Gpus, NvmlError>,
) -> Result<Result<(), FrameError>, NvmlError> {
    let nonce = match read_frame(socket) {
        Ok(ToGpu::Collect { nonce }) => nonce,
        Ok(ToGpu::SetReady) => return Ok(Err(out_of_order())),
        Err(error) => return Ok(Err(error)),
    };
    let gpus = open()?;
    let items = gpus.evidence(&nonce)?;
    if let Err(error) = write_frame(socket, &FromGpu::Evidence { items }) {
        return Ok(Err(error));
    }
    match read_frame(socket) {
        Ok(ToGpu::SetReady) => {}
        Ok(ToGpu::Collect { .. }) => return Ok(Err(out_of_order())),
        Err(error) => return Ok(Err(error)),
    }
    let watch = gpus.set_ready()?;
    if let Err(error) = write_frame(socket, &FromGpu::Ready) {
        return Ok(Err(error));
    }
    loop {
        watch.wait(WATCH_STEP)?;
    }
}

fn out_of_order() -> FrameError {
    FrameError::Io(io::Error::new(
        io::ErrorKind::InvalidData,
        "a message came out of order",
    ))
}
