//! The TDX module's part: a TD's registers and its report (Intel TDX Module Base Architecture Specification
//! 1.5, "TDREPORT_STRUCT"; the quote's body is its TD_REPORT10 form).

use std::sync::Arc;

use cocoon_evidence::{Digest48, Register, Rtmr};
use cocoon_protocol::simulated::{FromPlatform, ToPlatform};

use crate::quoting::{QuotingEnclave, TD_REPORT_BYTES};

/// TD attributes of every simulated TD: SEPT_VE_DISABLE (bit 28) and nothing else.
pub const SIMULATED_TD_ATTRIBUTES: u64 = 0x1000_0000;

/// Extended features of every simulated TD: x87, SSE, AVX, AVX-512 (bits 0 to 2 and 5 to 7), PKRU (9) and
/// AMX (17, 18), as on a Sapphire Rapids server.
pub const SIMULATED_XFAM: u64 = 0x6_02e7;

/// Security versions of the simulated machine.
#[derive(Debug)]
pub(crate) struct Tcb {
    pub(crate) cpu_svn: [u8; 16],
    pub(crate) pce_svn: u8,
    pub(crate) pce_id: [u8; 2],
    pub(crate) fmspc: [u8; 6],
    /// Module's security version, module's version, microcode, 13 reserved.
    pub(crate) tee_tcb_svn: [u8; 16],
}

/// Shaped like those of a server of 2025. No Intel machine has this FMSPC: it spells "SIM".
pub(crate) const SIMULATED_TCB: Tcb = Tcb {
    cpu_svn: [3, 3, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0],
    pce_svn: 11,
    pce_id: [0, 0],
    fmspc: [b'S', b'I', b'M', 0, 0, 0],
    tee_tcb_svn: [5, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// What is measured before the kernel runs.
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

/// One running TD. Made by [`crate::SimulatedPlatform::start_td`]; a TD that starts again starts with RTMR3 at
/// its reset value.
#[derive(Debug)]
pub struct SimulatedTd {
    initial: InitialRegisters,
    rtmr3: Register,
    quoting: Arc<QuotingEnclave>,
}

impl SimulatedTd {
    pub(crate) fn new(initial: InitialRegisters, quoting: Arc<QuotingEnclave>) -> Self {
        Self {
            initial,
            rtmr3: Register::RESET,
            quoting,
        }
    }

    /// Answers one request of the guest.
    #[allow(clippy::needless_pass_by_value, reason = "a request is answered once")]
    pub fn handle(&mut self, request: ToPlatform) -> FromPlatform {
        match request {
            ToPlatform::Extend {
                register: Rtmr::Rtmr3,
                digest,
            } => {
                self.rtmr3.extend(&digest);
                FromPlatform::Extended
            }
            ToPlatform::Extend { register, .. } => FromPlatform::Failed {
                reason: format!("{register:?} is closed to the guest, only Rtmr3 can be extended"),
            },
            ToPlatform::Quote { report_data } => FromPlatform::Quote {
                quote: self.quoting.quote(&self.report(&report_data)),
            },
        }
    }

    /// MRSEAM is a digest that says what it is; MRSIGNERSEAM and SEAMATTRIBUTES are zero as for Intel's module;
    /// MRCONFIGID, MROWNER and MROWNERCONFIG are zero because nobody sets them.
    fn report(&self, report_data: &[u8; 64]) -> [u8; TD_REPORT_BYTES] {
        let mr_seam = Digest48::of(b"Cocoon SIMULATED TDX module");
        let zero = Digest48::ZERO;
        [
            SIMULATED_TCB.tee_tcb_svn.as_slice(),
            mr_seam.as_bytes(),
            zero.as_bytes(), // MRSIGNERSEAM
            &[0; 8],         // SEAMATTRIBUTES
            &SIMULATED_TD_ATTRIBUTES.to_le_bytes(),
            &SIMULATED_XFAM.to_le_bytes(),
            self.initial.mrtd.as_bytes(),
            zero.as_bytes(), // MRCONFIGID
            zero.as_bytes(), // MROWNER
            zero.as_bytes(), // MROWNERCONFIG
            self.initial.rtmr0.as_bytes(),
            self.initial.rtmr1.as_bytes(),
            self.initial.rtmr2.as_bytes(),
            self.rtmr3.value().as_bytes(),
            report_data,
        ]
        .concat()
        .try_into()
        .expect("the fields of a TD report have 584 bytes together")
    }
}
