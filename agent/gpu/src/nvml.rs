//! NVML, as far as it is needed: evidence, the ready state, and events.
//!
//! Source: NVIDIA, NVML API Reference Guide, "Confidential Computing" and "Event Handling Methods". Every length
//! that the library returns is checked against its array: the GPU behind it is not trusted yet.
#![allow(unsafe_code, reason = "calls NVIDIA's library")]

use std::{
    ffi::{CStr, OsStr},
    mem, ptr,
    time::Duration,
};

use cocoon_evidence::{GpuEvidence, NONCE_BYTES};
use nvml_wrapper_sys::bindings::{
    NVML_CC_ACCEPTING_CLIENT_REQUESTS_FALSE, NVML_CC_ACCEPTING_CLIENT_REQUESTS_TRUE,
    NVML_CC_SYSTEM_DEVTOOLS_MODE_OFF, NVML_CC_SYSTEM_ENVIRONMENT_PROD, NVML_CC_SYSTEM_FEATURE_ENABLED,
    NvmlLib, nvmlConfComputeGpuAttestationReport_t, nvmlConfComputeGpuCertificate_t,
    nvmlConfComputeSystemState_t, nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t,
    nvmlEventTypeXidCriticalError, nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED as DRIVER_NOT_LOADED,
    nvmlReturn_enum_NVML_ERROR_TIMEOUT as TIMEOUT, nvmlReturn_enum_NVML_SUCCESS as SUCCESS, nvmlReturn_t,
};

/// More GPUs than any machine passes to one guest.
const GPUS_MAX: u32 = 16;

/// Why GPUs cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NvmlError {
    /// The image has no such library, or it is not one.
    #[error("there is no NVIDIA library: {0}")]
    NoLibrary(String),
    /// The kernel modules are not loaded.
    #[error("the NVIDIA driver is not loaded: {0}")]
    NoDriver(String),
    /// No GPU is passed to this guest.
    #[error("the NVIDIA driver knows no GPU")]
    NoGpu,
    /// The library is older than what is needed of it.
    #[error("the NVIDIA library has no function {0}; confidential computing needs driver 550 or later")]
    NoFunction(&'static str),
    /// A call failed.
    #[error("{attempt}: NVML says: {cause}")]
    Call {
        /// What was attempted.
        attempt: &'static str,
        /// The library's words.
        cause: String,
    },
    /// Something that no honest driver returns.
    #[error("the NVIDIA driver returned {what} of {length}, at most {max} can be")]
    Length {
        /// Of what.
        what: &'static str,
        /// The length or number.
        length: u32,
        /// The bound.
        max: usize,
    },
    /// The driver took the GPUs out of service, which it does when one is reset.
    #[error("a GPU was reset: the GPUs are not ready any more")]
    Reset,
    /// An error that makes a GPU unusable (NVIDIA, "XID Errors").
    #[error("a GPU reported critical error XID {0}")]
    Critical(u64),
}

/// A call of a function that may be missing.
macro_rules! call {
    ($nvml:expr, $attempt:expr, $name:ident ( $($argument:expr),* )) => {{
        let function = $nvml.functions.$name.as_ref().map_err(|_| NvmlError::NoFunction(stringify!($name)))?;
        // SAFETY: the types are those of NVIDIA's header; every pointer is to a value that lives through the call.
        let code = unsafe { function($($argument),*) };
        $nvml.check($attempt, code)
    }};
}

/// The library, initialised.
struct Nvml {
    functions: NvmlLib,
}

impl Nvml {
    fn check(&self, attempt: &'static str, code: nvmlReturn_t) -> Result<(), NvmlError> {
        if code == SUCCESS {
            return Ok(());
        }
        Err(NvmlError::Call {
            attempt,
            cause: self.words(code),
        })
    }

    fn words(&self, code: nvmlReturn_t) -> String {
        let Ok(function) = self.functions.nvmlErrorString.as_ref() else {
            return format!("error {code}");
        };
        // SAFETY: takes a number, and returns a static string or null.
        let words = unsafe { function(code) };
        if words.is_null() {
            return format!("error {code}");
        }
        // SAFETY: not null, and static and terminated by NVIDIA's header.
        let words = unsafe { CStr::from_ptr(words) };
        format!("{} ({code})", words.to_string_lossy())
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        if let Ok(shutdown) = &self.functions.nvmlShutdown {
            // SAFETY: takes nothing; no handle of the library is used afterwards.
            unsafe { shutdown() };
        }
    }
}

/// The GPUs of this machine, none of them trusted or in use.
pub(crate) struct Gpus {
    nvml: Nvml,
    devices: Vec<nvmlDevice_t>,
}

impl Gpus {
    /// Finds the library, the driver and the GPUs.
    pub(crate) fn open(library: &OsStr) -> Result<Self, NvmlError> {
        // SAFETY: running the library's initialisers is what it is here for; in the guest it comes from the verified
        // root.
        let functions =
            unsafe { NvmlLib::new(library) }.map_err(|error| NvmlError::NoLibrary(error.to_string()))?;
        let nvml = Nvml { functions };
        let init = nvml.functions.nvmlInit_v2.as_ref();
        // SAFETY: takes nothing.
        match unsafe { init.map_err(|_| NvmlError::NoFunction("nvmlInit_v2"))?() } {
            DRIVER_NOT_LOADED => {
                let words = nvml.words(DRIVER_NOT_LOADED);
                return Err(NvmlError::NoDriver(words));
            }
            code => nvml.check("starting NVML", code)?,
        }
        let devices = devices(&nvml)?;
        Ok(Self { nvml, devices })
    }

    /// Of every GPU, under this nonce.
    pub(crate) fn evidence(&self, nonce: &[u8; NONCE_BYTES]) -> Result<Vec<GpuEvidence>, NvmlError> {
        let mut state = nvmlConfComputeSystemState_t {
            environment: 0,
            ccFeature: 0,
            devToolsMode: 0,
        };
        let attempt = "asking whether confidential computing is on";
        call!(self.nvml, attempt, nvmlSystemGetConfComputeState(&raw mut state))?;
        // A simulated environment protects nothing, whatever the feature says.
        let confidential_compute = state.environment == NVML_CC_SYSTEM_ENVIRONMENT_PROD
            && state.ccFeature == NVML_CC_SYSTEM_FEATURE_ENABLED;
        let item = |device: &nvmlDevice_t| {
            Ok(GpuEvidence {
                report: self.report(*device, nonce)?,
                certificates: self.certificates(*device)?,
                confidential_compute,
                dev_tools: state.devToolsMode != NVML_CC_SYSTEM_DEVTOOLS_MODE_OFF,
            })
        };
        self.devices.iter().map(item).collect()
    }

    fn report(&self, device: nvmlDevice_t, nonce: &[u8; NONCE_BYTES]) -> Result<Vec<u8>, NvmlError> {
        let mut report = Box::new(nvmlConfComputeGpuAttestationReport_t {
            isCecAttestationReportPresent: 0,
            attestationReportSize: 0,
            cecAttestationReportSize: 0,
            nonce: *nonce,
            attestationReport: [0; 8192],
            cecAttestationReport: [0; 4096],
        });
        let attempt = "asking a GPU for its attestation report";
        let out = &raw mut *report;
        call!(
            self.nvml,
            attempt,
            nvmlDeviceGetConfComputeGpuAttestationReport(device, out)
        )?;
        prefix(
            "an attestation report",
            &report.attestationReport,
            report.attestationReportSize,
        )
    }

    fn certificates(&self, device: nvmlDevice_t) -> Result<Vec<u8>, NvmlError> {
        let mut chain = Box::new(nvmlConfComputeGpuCertificate_t {
            certChainSize: 0,
            attestationCertChainSize: 0,
            certChain: [0; 4096],
            attestationCertChain: [0; 5120],
        });
        let attempt = "asking a GPU for its certificates";
        let out = &raw mut *chain;
        call!(
            self.nvml,
            attempt,
            nvmlDeviceGetConfComputeGpuCertificate(device, out)
        )?;
        let (bytes, length) = (&chain.attestationCertChain, chain.attestationCertChainSize);
        prefix("a certificate chain", bytes, length)
    }

    /// Lets them take work.
    pub(crate) fn set_ready(self) -> Result<Watch, NvmlError> {
        let mut events: nvmlEventSet_t = ptr::null_mut();
        let attempt = "watching the GPUs";
        // Before they are ready, so that nothing is missed.
        call!(self.nvml, attempt, nvmlEventSetCreate(&raw mut events))?;
        for device in &self.devices {
            let kinds = u64::from(nvmlEventTypeXidCriticalError);
            call!(
                self.nvml,
                attempt,
                nvmlDeviceRegisterEvents(*device, kinds, events)
            )?;
        }
        let ready = NVML_CC_ACCEPTING_CLIENT_REQUESTS_TRUE;
        let attempt = "setting the GPUs ready";
        call!(self.nvml, attempt, nvmlSystemSetConfComputeGpusReadyState(ready))?;
        let watch = Watch {
            nvml: self.nvml,
            events,
        };
        watch.check_ready()?;
        Ok(watch)
    }
}

/// GPUs that work.
pub(crate) struct Watch {
    nvml: Nvml,
    events: nvmlEventSet_t,
}

impl Watch {
    /// Returns after at most so long if nothing happened. Most of a reset the driver does not tell as an event, but
    /// by taking the GPUs' readiness back.
    pub(crate) fn wait(&self, step: Duration) -> Result<(), NvmlError> {
        // SAFETY: a struct of integers and pointers, for which zeros are valid.
        let mut data: nvmlEventData_t = unsafe { mem::zeroed() };
        let step_ms = u32::try_from(step.as_millis()).unwrap_or(u32::MAX);
        let wait = self.nvml.functions.nvmlEventSetWait_v2.as_ref();
        let wait = wait.map_err(|_| NvmlError::NoFunction("nvmlEventSetWait_v2"))?;
        // SAFETY: the set was made by the library, and `data` lives through the call.
        match unsafe { wait(self.events, &raw mut data, step_ms) } {
            TIMEOUT => self.check_ready(),
            SUCCESS => Err(NvmlError::Critical(data.eventData)),
            code => self.nvml.check("watching the GPUs", code),
        }
    }

    fn check_ready(&self) -> Result<(), NvmlError> {
        let mut ready = NVML_CC_ACCEPTING_CLIENT_REQUESTS_FALSE;
        let attempt = "asking whether the GPUs are ready";
        call!(
            self.nvml,
            attempt,
            nvmlSystemGetConfComputeGpusReadyState(&raw mut ready)
        )?;
        match ready {
            NVML_CC_ACCEPTING_CLIENT_REQUESTS_TRUE => Ok(()),
            _ => Err(NvmlError::Reset),
        }
    }
}

fn devices(nvml: &Nvml) -> Result<Vec<nvmlDevice_t>, NvmlError> {
    let mut count = 0;
    call!(nvml, "counting the GPUs", nvmlDeviceGetCount_v2(&raw mut count))?;
    match count {
        0 => return Err(NvmlError::NoGpu),
        1..=GPUS_MAX => {}
        length => {
            return Err(NvmlError::Length {
                what: "a number of GPUs",
                length,
                max: GPUS_MAX as usize,
            });
        }
    }
    let handle = |index| {
        let mut device: nvmlDevice_t = ptr::null_mut();
        call!(
            nvml,
            "opening a GPU",
            nvmlDeviceGetHandleByIndex_v2(index, &raw mut device)
        )?;
        Ok(device)
    };
    (0..count).map(handle).collect()
}

fn prefix(what: &'static str, bytes: &[u8], length: u32) -> Result<Vec<u8>, NvmlError> {
    let too_long = NvmlError::Length {
        what,
        length,
        max: bytes.len(),
    };
    bytes.get(..length as usize).map(<[u8]>::to_vec).ok_or(too_long)
}
