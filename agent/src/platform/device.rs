//! The devices of the trusted platforms: `/dev/tdx_guest` makes TD reports, `/dev/sev-guest` attestation reports
//! (include/uapi/linux/tdx-guest.h and sev-guest.h). The way to evidence where configfs-tsm is not.
//!
//! Layouts and two ioctls, nothing else; what comes back is judged by who asked.

use std::{fs::File, io, os::fd::AsRawFd, path::Path};

use cocoon_evidence::ReportData;

/// Intel TDX Module ABI, `TDREPORT_STRUCT`.
pub(crate) const TD_REPORT_BYTES: usize = 1024;

/// The buffer of `struct snp_report_resp`.
pub(crate) const SNP_RESPONSE_BYTES: usize = 4000;

/// Version of the guest message, `struct snp_guest_request_ioctl`.
const SNP_MESSAGE_VERSION: u8 = 1;

/// `struct tdx_report_req`.
#[repr(C)]
struct TdReportRequest {
    report_data: [u8; 64],
    td_report: [u8; TD_REPORT_BYTES],
}

/// `struct snp_report_req`.
#[repr(C)]
struct SnpReportRequest {
    report_data: [u8; 64],
    vmpl: u32,
    reserved: [u8; 28],
}

/// `struct snp_guest_request_ioctl`.
#[repr(C)]
struct SnpRequest {
    message_version: u8,
    request: u64,
    response: u64,
    /// Of the hypervisor (upper half) and the firmware (lower half).
    errors: u64,
}

/// A TD report over this report data. Only the processor's module can tell whether it is genuine.
pub(crate) fn td_report(device: &Path, data: &ReportData) -> io::Result<Vec<u8>> {
    let request = TdReportRequest {
        report_data: data.0,
        td_report: [0; TD_REPORT_BYTES],
    };
    let answered = call::td_report(&open(device)?, request)?;
    Ok(answered.td_report.to_vec())
}

/// The firmware's whole answer to `MSG_REPORT_REQ`, at the privilege level that the kernel runs at.
pub(crate) fn snp_report(device: &Path, data: &ReportData) -> io::Result<Vec<u8>> {
    let request = SnpReportRequest {
        report_data: data.0,
        vmpl: 0,
        reserved: [0; 28],
    };
    call::snp_report(&open(device)?, &request)
}

fn open(device: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(device)
}

/// The two ioctls.
#[allow(unsafe_code, reason = "ioctls have no safe interface")]
mod call {
    use super::{
        AsRawFd, File, SNP_MESSAGE_VERSION, SNP_RESPONSE_BYTES, SnpReportRequest, SnpRequest,
        TdReportRequest, io,
    };

    nix::ioctl_readwrite!(tdx_cmd_get_report0, b'T', 1, TdReportRequest);
    nix::ioctl_readwrite!(snp_get_report, b'S', 0, SnpRequest);

    /// Takes the request by value, so that the kernel writes into memory that nothing else refers to.
    pub(super) fn td_report(device: &File, mut request: TdReportRequest) -> io::Result<TdReportRequest> {
        // SAFETY: the request lives across the call, and its size is part of the ioctl's number.
        unsafe { tdx_cmd_get_report0(device.as_raw_fd(), &raw mut request) }?;
        Ok(request)
    }

    pub(super) fn snp_report(device: &File, asked: &SnpReportRequest) -> io::Result<Vec<u8>> {
        let mut response = vec![0; SNP_RESPONSE_BYTES];
        let mut request = SnpRequest {
            message_version: SNP_MESSAGE_VERSION,
            request: (&raw const *asked).expose_provenance() as u64,
            response: response.as_mut_ptr().expose_provenance() as u64,
            errors: 0,
        };
        // SAFETY: request, question and response live across the call; the kernel reads a `snp_report_req` from the
        // one address and writes at most a `snp_report_resp`, which `response` is as long as, to the other.
        let called = unsafe { snp_get_report(device.as_raw_fd(), &raw mut request) };
        match called {
            Ok(_) => Ok(response),
            Err(errno) if request.errors == 0 => Err(errno.into()),
            Err(errno) => Err(io::Error::other(format!(
                "{errno}; hypervisor error {:#x}, firmware error {:#x}",
                request.errors >> 32,
                request.errors & u64::from(u32::MAX)
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use nix::errno::Errno;

    use super::*;

    #[test]
    fn the_layouts_are_the_kernels() {
        assert_eq!(size_of::<TdReportRequest>(), 1088);
        assert_eq!(offset_of!(TdReportRequest, td_report), 64);
        assert_eq!(size_of::<SnpReportRequest>(), 96);
        assert_eq!(offset_of!(SnpReportRequest, vmpl), 64);
        assert_eq!(size_of::<SnpRequest>(), 32);
        assert_eq!(offset_of!(SnpRequest, request), 8);
        assert_eq!(offset_of!(SnpRequest, errors), 24);
        // As the kernel's headers make them: direction, size, type, number.
        assert_eq!(nix::request_code_readwrite!(b'T', 1, 1088), 0xc440_5401);
        assert_eq!(nix::request_code_readwrite!(b'S', 0, 32), 0xc020_5300);
    }

    #[test]
    fn what_is_no_such_device_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let data = ReportData([1; 64]);
        for refused in [td_report(file.path(), &data), snp_report(file.path(), &data)] {
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(Errno::ENOTTY as i32));
        }
        let missing = td_report(Path::new("/no/such/device"), &data).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
