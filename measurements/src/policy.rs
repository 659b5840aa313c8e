//! From a prediction and a launch document to the policy that accepts exactly this guest.

use cocoon_evidence::Digest48;
use cocoon_verify::{
    DocumentTerms, EventTerms, Expect, GpuEvidenceRule, HardwareTerms, POLICY_VERSION, PlatformTerms, Policy,
    PolicyError, PolicyRole, PolicyTerms, ReadyRule, RegisterTerms, TcbStatusName, TcbTerms, TdTerms,
    TdxExpectations, UsageKeyRule,
};
use serde::Deserialize;

use crate::{LaunchPlatform, LaunchSpec, PredictedRegister, Prediction, TdSpecError, VerityTree};

/// The agent refuses longer launch documents.
pub const LAUNCH_DOCUMENT_BYTES_MAX: usize = 8 * 1024;

/// The device that the model volume is in the guest.
pub const MODEL_DEVICE: &str = "/dev/vdb";

/// What a policy is made from.
#[derive(Debug, Clone, Copy)]
pub struct PolicyInputs<'a> {
    /// MRTD and RTMR0 to RTMR2.
    pub prediction: &'a Prediction,
    /// The machine.
    pub spec: &'a LaunchSpec,
    /// The launch document's bytes, as the host will send them.
    pub launch_document: &'a [u8],
    /// The certificate at which the quote's chain must end, PEM.
    pub root_pem: &'a str,
    /// Grows with every policy that replaces another.
    pub number: u64,
    /// Not accepted from then on; seconds since 1970.
    pub expires_s: u64,
    /// The least `tcbEvaluationDataNumber` of the endorsements.
    pub tcb_evaluation_number_min: u32,
}

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub enum BuildPolicyError {
    /// Over [`LAUNCH_DOCUMENT_BYTES_MAX`].
    #[error("the launch document has {bytes} bytes; agents refuse more than {LAUNCH_DOCUMENT_BYTES_MAX}")]
    DocumentTooLarge {
        /// Its length.
        bytes: usize,
    },
    /// It does not name a model volume, so the model event is not known.
    #[error("the launch document has no usable model.verity")]
    Document(#[source] serde_json::Error),
    /// Not a platform with TDX registers.
    #[error("a policy for this platform is not made of TDX registers")]
    Platform,
    /// `[td]` on a platform that has no use for it.
    #[error("the LaunchSpec cannot be used")]
    Td(#[from] TdSpecError),
    /// Attributes of a TD that nothing here can know.
    #[error(
        "the LaunchSpec does not state xfam in [td], which depends on the processor; `cocoon-measure quote` shows it \
         in a quote of such a machine"
    )]
    Xfam,
    /// The parts do not make a policy.
    #[error("the policy would not be usable")]
    Policy(#[from] PolicyError),
}

/// Makes the policy: exact values for registers, TD attributes, launch document and model; a usage key that the
/// evidence binds; no GPU; TCB status UpToDate.
///
/// # Errors
/// See [`BuildPolicyError`].
pub fn build_policy(inputs: PolicyInputs<'_>) -> Result<Policy, BuildPolicyError> {
    let td = inputs.spec.td()?.ok_or(BuildPolicyError::Platform)?;
    let xfam = td.xfam.ok_or(BuildPolicyError::Xfam)?;
    let model = model_event(inputs.launch_document)?;
    let registers = &inputs.prediction.registers;
    let unset = || Expect::exact(Digest48::ZERO);
    Ok(Policy::new(PolicyTerms {
        version: POLICY_VERSION,
        number: inputs.number,
        expires_s: inputs.expires_s,
        role: PolicyRole::Inference,
        platform: PlatformTerms {
            simulated: inputs.spec.platform == LaunchPlatform::Simulated,
            root_pem: inputs.root_pem.to_owned(),
        },
        machines: None,
        hardware: HardwareTerms::Tdx(TdxExpectations {
            registers: RegisterTerms {
                mrtd: expect(&registers.mrtd),
                rtmr0: expect(&registers.rtmr0),
                rtmr1: expect(&registers.rtmr1),
                rtmr2: expect(&registers.rtmr2),
                mr_config_id: unset(),
                mr_owner: unset(),
                mr_owner_config: unset(),
            },
            td: TdTerms {
                attributes: Expect::exact(td.attributes),
                xfam: Expect::exact(xfam),
            },
            tcb: TcbTerms {
                accepted: vec![TcbStatusName::UP_TO_DATE],
                evaluation_number_min: inputs.tcb_evaluation_number_min,
                platform_grace_s: 0,
                qe_grace_s: 0,
            },
        }),
        events: EventTerms {
            launch_document: DocumentTerms::exact(Digest48::of(inputs.launch_document)),
            model: Expect::exact(Digest48::of(model.as_bytes())),
            usage_key: UsageKeyRule::Bound,
            gpu_evidence: GpuEvidenceRule::None,
            ready: ReadyRule::Empty,
        },
        nvidia: None,
    })?)
}

/// The only value, or each with the name of what leads to it.
fn expect(register: &PredictedRegister) -> Expect<Digest48> {
    match register.sole_value() {
        Some(value) => Expect::exact(value),
        None => Expect::by_profile(
            register
                .alternatives()
                .iter()
                .map(|alternative| (alternative.name, alternative.value)),
        ),
    }
}

/// The payload of the model event: the device-mapper table that the agent gives the kernel.
///
/// # Errors
/// The document is too long or names no model volume.
pub fn model_event(launch_document: &[u8]) -> Result<String, BuildPolicyError> {
    /// The one part that decides the event; the agent checks the rest.
    #[derive(Deserialize)]
    struct Document {
        model: Model,
    }
    #[derive(Deserialize)]
    struct Model {
        verity: VerityTree,
    }
    if launch_document.len() > LAUNCH_DOCUMENT_BYTES_MAX {
        return Err(BuildPolicyError::DocumentTooLarge {
            bytes: launch_document.len(),
        });
    }
    let document: Document = serde_json::from_slice(launch_document).map_err(BuildPolicyError::Document)?;
    Ok(document.model.verity.table(MODEL_DEVICE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_event_is_the_device_mapper_table() {
        let (root, salt) = ("ab".repeat(32), "cd".repeat(32));
        let document = format!(
            r#"{{"version":1,"model":{{"name":"m","verity":{{"data_blocks":7,"salt":"{salt}","root_hash":"{root}"}}}}}}"#
        );
        assert_eq!(
            model_event(document.as_bytes()).unwrap(),
            format!("1 /dev/vdb /dev/vdb 4096 4096 7 7 sha256 {root} {salt}")
        );
    }

    #[test]
    fn a_document_without_a_model_volume_is_refused() {
        for document in [
            "",
            "{}",
            r#"{"model":{}}"#,
            r#"{"model":{"verity":{"data_blocks":-1,"salt":"","root_hash":""}}}"#,
        ] {
            assert!(matches!(
                model_event(document.as_bytes()),
                Err(BuildPolicyError::Document(_))
            ));
        }
        assert!(matches!(
            model_event(&vec![b' '; LAUNCH_DOCUMENT_BYTES_MAX + 1]),
            Err(BuildPolicyError::DocumentTooLarge { .. })
        ));
    }
}
