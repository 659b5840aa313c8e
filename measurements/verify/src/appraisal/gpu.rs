//! Rows about the GPUs: that the guest measured the evidence before it used them, that it asked for it itself in
//! this boot, and that they are what the policy accepts.

use cocoon_evidence::{Endorsements, EventKind, GpuEvidence};

use super::{Input, Row, Rows, events, judged};
use crate::{
    judgement::{FailureClass, JudgedCheck, Judgement},
    nvidia::{
        CertificateError, DeviceEvidence, GuestReport, NvidiaInputs, NvidiaRoots, NvidiaTerms, judge_devices,
        read_certificates,
    },
    policy::GpuEvidenceRule,
    report::{Fault, RefusalClass},
};

/// The last evidence that was judged, for which usage key, and how. A guest collects it once, before it is ready, and
/// shows it with every quote. Nothing else that the judgement depends on differs between two bundles of one appraiser.
#[derive(Debug, Default)]
pub(super) struct Judged(Option<(Vec<GpuEvidence>, [u8; 32], Judgement)>);

impl Judged {
    fn once<E>(
        &mut self,
        items: &[GpuEvidence],
        usage_key: [u8; 32],
        judge: impl FnOnce() -> Result<Judgement, E>,
    ) -> Result<&Judgement, E> {
        let known = self
            .0
            .take()
            .filter(|(of, key, _)| of == items && *key == usage_key);
        let judged = match known {
            Some(known) => known,
            None => (items.to_vec(), usage_key, judge()?),
        };
        Ok(&self.0.insert(judged).2)
    }
}

/// The first second at which what was judged of the GPUs can be judged otherwise.
pub(super) fn check(
    rows: &mut Rows,
    input: &Input<'_>,
    vendor: (&Endorsements, &NvidiaRoots),
    judged: &mut Judged,
) -> u64 {
    let items = input.bundle.gpu.as_slice();
    let terms = input.policy.terms();
    let payload = input.bundle.events.payload(EventKind::GpuEvidence);
    let measured = GpuEvidence::event_payload(items);
    let (expected, holds) = match terms.events.gpu_evidence {
        GpuEvidenceRule::None => ("empty".to_owned(), items.is_empty()),
        GpuEvidenceRule::Nvidia => (
            format!("{}, of some GPU", hex::encode(&measured)),
            !items.is_empty(),
        ),
    };
    let row = Row {
        name: "event gpu-evidence".into(),
        expected,
        actual: match items.len() {
            0 => events::payload_text(payload),
            gpus => format!(
                "{}, evidence of {gpus} in the bundle",
                events::payload_text(payload)
            ),
        },
        fault: Fault::GuestImage,
        class: RefusalClass::Gpu,
    };
    rows.proven(row, holds && payload == Some(measured.as_slice()));
    if let (GpuEvidenceRule::Nvidia, Some(terms), [_, ..]) = (terms.events.gpu_evidence, &terms.nvidia, items)
    {
        return check_devices(rows, input, (terms, items), vendor, judged);
    }
    u64::MAX
}

fn check_devices(
    rows: &mut Rows,
    input: &Input<'_>,
    (terms, items): (&NvidiaTerms, &[GpuEvidence]),
    vendor: (&Endorsements, &NvidiaRoots),
    judged: &mut Judged,
) -> u64 {
    let usage_key = input.bundle.events.payload(EventKind::UsageKey);
    // A log without a key of 32 bytes has failed a row before; no nonce is the right one then.
    let usage_key = usage_key.and_then(|key| key.try_into().ok()).unwrap_or_default();
    let judge = || judge(items, &usage_key, (terms, input.now_s), vendor);
    match judged.once(items, usage_key, judge) {
        Ok(judgement) => {
            // What NVIDIA vouches for is the GPU; that it is this guest's GPU, only the platform.
            let proof = rows.proof();
            judged::push(rows, judgement, proof, classify);
            judgement.until_s()
        }
        Err(error) => {
            let row = Row {
                name: "GPU certificates".into(),
                expected: "PEM, leaf first".into(),
                actual: error.to_string(),
                fault: Fault::Host,
                class: RefusalClass::Gpu,
            };
            rows.local(row, false);
            u64::MAX
        }
    }
}

fn judge(
    items: &[GpuEvidence],
    usage_key: &[u8; 32],
    (terms, now_s): (&NvidiaTerms, u64),
    (endorsements, roots): (&Endorsements, &NvidiaRoots),
) -> Result<Judgement, CertificateError> {
    let devices: Vec<_> = items.iter().map(device).collect::<Result<_, _>>()?;
    let [rims, ocsp] = [&endorsements.rims, &endorsements.ocsp]
        .map(|files| files.iter().map(|file| file.to_vec()).collect::<Vec<_>>());
    let inputs = NvidiaInputs {
        certificates: &[],
        rims: &rims,
        ocsp: &ocsp,
        nonce: Some(&GpuEvidence::nonce(usage_key)),
        roots,
        policy: Some(terms),
        guest: Some(GuestReport {
            confidential_compute: items.iter().all(|item| item.confidential_compute),
            dev_tools: items.iter().any(|item| item.dev_tools),
        }),
        now_s,
    };
    Ok(judge_devices(&devices, &inputs))
}

fn device(item: &GpuEvidence) -> Result<DeviceEvidence, CertificateError> {
    Ok(DeviceEvidence {
        report: item.report.clone(),
        certificates: Some(read_certificates(&item.certificates)?),
        architecture: None,
        nonce: None,
    })
}

fn classify(check: &JudgedCheck) -> (String, Fault, RefusalClass) {
    let fault = match check.class {
        FailureClass::Tcb => Fault::Platform,
        FailureClass::Signature | FailureClass::Policy => Fault::Host,
    };
    (format!("GPU {}", check.id), fault, RefusalClass::Gpu)
}
