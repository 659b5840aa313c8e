//! What a quote is about: a TD report (or an SGX enclave's), with each field at its place.

/// TD_REPORT10: Intel TDX DCAP Quote Generation Library and Quote Verification Library, appendix A.3.2, "TD quote
/// body" (584 bytes); TD_REPORT15 (648): A.3.3; the "ex" body (885): `sgx_report2_body_v1_5_ex_t` in Intel's
/// `sgx_quote_5.h`, whose last 237 bytes follow TD_REPORT15.
const FIELDS: [(TdField, usize, usize); 27] = [
    (TdField::TeeTcbSvn, 0, 16),
    (TdField::MrSeam, 16, 48),
    (TdField::MrSignerSeam, 64, 48),
    (TdField::SeamAttributes, 112, 8),
    (TdField::TdAttributes, 120, 8),
    (TdField::Xfam, 128, 8),
    (TdField::MrTd, 136, 48),
    (TdField::MrConfigId, 184, 48),
    (TdField::MrOwner, 232, 48),
    (TdField::MrOwnerConfig, 280, 48),
    (TdField::Rtmr0, 328, 48),
    (TdField::Rtmr1, 376, 48),
    (TdField::Rtmr2, 424, 48),
    (TdField::Rtmr3, 472, 48),
    (TdField::ReportData, 520, 64),
    (TdField::TeeTcbSvn2, 584, 16),
    (TdField::MrServiceTd, 600, 48),
    (TdField::VmId, 648, 1),
    (TdField::TdId, 649, 32),
    (TdField::DeviceInfo, 681, 48),
    (TdField::InitServiceTdHash, 729, 48),
    (TdField::InitServiceTdAttributes, 777, 8),
    (TdField::InitCpuSvn, 785, 16),
    (TdField::InitTeeTcbSvn, 801, 16),
    (TdField::InitTeeFmspc, 817, 12),
    (TdField::CurServiceTdHash, 829, 48),
    (TdField::CurServiceTdAttributes, 877, 8),
];

/// A field of a TD report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TdField {
    /// Security versions of the TDX module that started the TD.
    TeeTcbSvn,
    /// Measurement of the TDX module.
    MrSeam,
    /// Signer of the TDX module; zero is Intel.
    MrSignerSeam,
    /// Attributes of the TDX module.
    SeamAttributes,
    /// Attributes of the TD.
    TdAttributes,
    /// Extended features that the TD may use.
    Xfam,
    /// MRTD: the firmware as it was loaded.
    MrTd,
    /// Set by the host.
    MrConfigId,
    /// Set by the host.
    MrOwner,
    /// Set by the host.
    MrOwnerConfig,
    /// Run-time measurement register 0.
    Rtmr0,
    /// Run-time measurement register 1.
    Rtmr1,
    /// Run-time measurement register 2.
    Rtmr2,
    /// Run-time measurement register 3.
    Rtmr3,
    /// What the guest bound to the quote.
    ReportData,
    /// 1.5: security versions of the TDX module that runs now.
    TeeTcbSvn2,
    /// 1.5: the service TDs bound to this one; zero without.
    MrServiceTd,
    /// 1.5 ex: 0 for a TD that is not partitioned.
    VmId,
    /// 1.5 ex: new at every launch.
    TdId,
    /// 1.5 ex: hash of the attached devices' description.
    DeviceInfo,
    /// 1.5 ex: the service TDs when it was created.
    InitServiceTdHash,
    /// 1.5 ex: their attributes.
    InitServiceTdAttributes,
    /// 1.5 ex: CPUSVN when it was created.
    InitCpuSvn,
    /// 1.5 ex: TEE_TCB_SVN when it was created.
    InitTeeTcbSvn,
    /// 1.5 ex: the model on which it was created.
    InitTeeFmspc,
    /// 1.5 ex: the service TDs now.
    CurServiceTdHash,
    /// 1.5 ex: their attributes.
    CurServiceTdAttributes,
}

impl TdField {
    /// As claims and checks name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TeeTcbSvn => "tee_tcb_svn",
            Self::MrSeam => "mr_seam",
            Self::MrSignerSeam => "mr_signer_seam",
            Self::SeamAttributes => "seam_attributes",
            Self::TdAttributes => "td_attributes",
            Self::Xfam => "xfam",
            Self::MrTd => "mrtd",
            Self::MrConfigId => "mr_config_id",
            Self::MrOwner => "mr_owner",
            Self::MrOwnerConfig => "mr_owner_config",
            Self::Rtmr0 => "rtmr0",
            Self::Rtmr1 => "rtmr1",
            Self::Rtmr2 => "rtmr2",
            Self::Rtmr3 => "rtmr3",
            Self::ReportData => "report_data",
            Self::TeeTcbSvn2 => "tee_tcb_svn2",
            Self::MrServiceTd => "mr_service_td",
            Self::VmId => "vm_id",
            Self::TdId => "td_id",
            Self::DeviceInfo => "device_info",
            Self::InitServiceTdHash => "init_service_td_hash",
            Self::InitServiceTdAttributes => "init_service_td_attributes",
            Self::InitCpuSvn => "init_cpu_svn",
            Self::InitTeeTcbSvn => "init_tee_tcb_svn",
            Self::InitTeeFmspc => "init_tee_fmspc",
            Self::CurServiceTdHash => "cur_service_td_hash",
            Self::CurServiceTdAttributes => "cur_service_td_attributes",
        }
    }
}

/// Which of the bodies a quote has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// Body type 1, and quotes of version 3: an enclave, not a TD.
    SgxEnclave,
    /// Body type 2, and TDX quotes of version 4.
    Td10,
    /// Body type 3.
    Td15,
    /// Body type 4.
    Td15Ex,
}

impl BodyKind {
    /// The body type of a quote of version 5.
    pub(crate) fn of_type(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::SgxEnclave),
            2 => Some(Self::Td10),
            3 => Some(Self::Td15),
            4 => Some(Self::Td15Ex),
            _ => None,
        }
    }

    /// Its length in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::SgxEnclave => ENCLAVE_REPORT_BYTES,
            Self::Td10 => 584,
            Self::Td15 => 648,
            Self::Td15Ex => 885,
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::SgxEnclave => "SGX enclave report",
            Self::Td10 => "TD report 1.0",
            Self::Td15 => "TD report 1.5",
            Self::Td15Ex => "TD report 1.5 ex",
        }
    }
}

/// A TD report. Authentic only as far as the quote is that it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TdReport<'a> {
    kind: BodyKind,
    bytes: &'a [u8],
}

impl<'a> TdReport<'a> {
    /// `None` for an enclave's report. `bytes` are [`BodyKind::bytes`] long.
    pub(crate) fn new(kind: BodyKind, bytes: &'a [u8]) -> Option<Self> {
        (kind != BodyKind::SgxEnclave && bytes.len() == kind.bytes()).then_some(Self { kind, bytes })
    }

    /// Which version of the report.
    pub fn kind(&self) -> BodyKind {
        self.kind
    }

    /// All fields that this version has, in their order.
    pub fn fields(&self) -> impl Iterator<Item = (TdField, &'a [u8])> + use<'a> {
        let bytes = self.bytes;
        FIELDS
            .iter()
            .map_while(move |&(field, offset, length)| Some((field, bytes.get(offset..offset + length)?)))
    }

    /// One field; `None` if this version does not have it.
    pub fn field(&self, field: TdField) -> Option<&'a [u8]> {
        self.fields()
            .find(|(name, _)| *name == field)
            .map(|(_, value)| value)
    }

    /// TEE_TCB_SVN, and TEE_TCB_SVN2 of a 1.5 report.
    pub(crate) fn tee_tcb_svns(&self) -> ([u8; 16], Option<[u8; 16]>) {
        (
            self.array(TdField::TeeTcbSvn).unwrap_or_default(),
            self.array(TdField::TeeTcbSvn2),
        )
    }

    /// TD attributes: a little-endian bit mask.
    pub fn attributes(&self) -> u64 {
        u64::from_le_bytes(self.array(TdField::TdAttributes).unwrap_or_default())
    }

    /// XFAM: a little-endian bit mask.
    pub fn xfam(&self) -> u64 {
        u64::from_le_bytes(self.array(TdField::Xfam).unwrap_or_default())
    }

    fn array<const N: usize>(&self, field: TdField) -> Option<[u8; N]> {
        self.field(field)?.try_into().ok()
    }
}

/// Intel SDM volume 3D, "REPORT": 384 bytes.
pub(crate) const ENCLAVE_REPORT_BYTES: usize = 384;

/// The report of an enclave: the quoting enclave's, or what an SGX quote is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnclaveReport<'a>(pub(crate) &'a [u8; ENCLAVE_REPORT_BYTES]);

impl<'a> EnclaveReport<'a> {
    /// All bytes, which is what a signature covers.
    pub fn bytes(&self) -> &'a [u8; ENCLAVE_REPORT_BYTES] {
        self.0
    }

    /// MISCSELECT.
    pub fn misc_select(&self) -> [u8; 4] {
        self.array(16)
    }

    /// ATTRIBUTES: flags and XFRM.
    pub fn attributes(&self) -> [u8; 16] {
        self.array(48)
    }

    /// MRENCLAVE.
    pub fn mr_enclave(&self) -> [u8; 32] {
        self.array(64)
    }

    /// MRSIGNER.
    pub fn mr_signer(&self) -> [u8; 32] {
        self.array(128)
    }

    /// ISVPRODID.
    pub fn isv_prod_id(&self) -> u16 {
        u16::from_le_bytes(self.array(256))
    }

    /// ISVSVN.
    pub fn isv_svn(&self) -> u16 {
        u16::from_le_bytes(self.array(258))
    }

    /// REPORTDATA.
    pub fn report_data(&self) -> [u8; 64] {
        self.array(320)
    }

    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        let field = &self.0[offset..offset + N];
        field
            .try_into()
            .expect("a slice of N bytes is an array of N bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_cover_every_byte_of_each_version_once() {
        for kind in [BodyKind::Td10, BodyKind::Td15, BodyKind::Td15Ex] {
            let bytes: Vec<u8> = (0..kind.bytes()).map(|place| (place % 251) as u8).collect();
            let report = TdReport::new(kind, &bytes).expect("a TD's report");
            let joined: Vec<u8> = report.fields().flat_map(|(_, value)| value.to_vec()).collect();
            assert_eq!(joined, bytes, "{kind:?}");
        }
    }

    #[test]
    fn an_enclave_is_not_a_td() {
        assert!(TdReport::new(BodyKind::SgxEnclave, &[0; ENCLAVE_REPORT_BYTES]).is_none());
    }
}
