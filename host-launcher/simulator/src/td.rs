//! x
use cocoon_evidence::{Digest48, Register, Rtmr};
use cocoon_protocol::simulated::{FromPlatform, ToPlatform};

/// TD attributes of every simulated TD: SEPT_VE_DISABLE (bit 28) and nothing else, as Cocoon's launcher sets
/// them on real TDX.
pub const SIMULATED_TD_ATTRIBUTES: u64 = 0x1000_0000;

/// Extended features of every simulated TD: x87, SSE, AVX, AVX-512 (bits 0-2, 5-7), PKRU (9), AMX (17, 18),
/// as QEMU's `-cpu host` sets on a Sapphire Rapids server.
pub const SIMULATED_XFAM: u64 = 0x6_02e7;

/// What a TDX module and firmware measure before the kernel runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitialRegisters {
    /// The firmware.
    pub mrtd: Digest48,
    /// Firmware configuration and virtual hardware.
    pub rtmr0: Digest48,
    /// The kernel.
    pub rtmr1: Digest48,
    /// The command line.
    pub rtmr2: Digest48,
}

/// One running TD: its registers, and the platform's keys to quote them.
#[derive(Debug, Clone)]
pub struct SimulatedTd {
    initial: InitialRegisters,
    rtmr3: Register,
}

impl SimulatedTd {
    pub(crate) fn new(initial: InitialRegisters) -> Self {
        Self {
            initial,
            rtmr3: Register::RESET,
        }
    }

    /// Answers one request of the guest.
    pub fn handle(&mut self, request: ToPlatform) -> FromPlatform {
        let _ = (&self.initial, Rtmr::Rtmr3, &self.rtmr3, request);
        FromPlatform::Failed {
            reason: "the simulated platform has no keys".into(),
        }
    }
}
