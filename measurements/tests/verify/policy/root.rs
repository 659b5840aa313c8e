//! `--root`: whose word evidence is judged by, and that a policy's root cannot be replaced.

use super::{Judged, Vectors, assert_status, nvidia_policy, snp_policy, tdx_policy};

/// A root of nobody's. NVIDIA's is one of P-384; for AMD's judge an EC key is a chip's.
fn stranger(vectors: &Vectors, kind: &str) -> String {
    let algorithm = match kind {
        "snp" => &rcgen::PKCS_ED25519,
        _ => &rcgen::PKCS_ECDSA_P384_SHA384,
    };
    let key = rcgen::KeyPair::generate_for(algorithm);
    let mut parameters = rcgen::CertificateParams::default();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    parameters.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let root = parameters.self_signed(&key.unwrap()).unwrap().pem();
    vectors.scratch("stranger.pem", root.as_bytes())
}

#[test]
fn a_root_that_the_policy_does_not_name_is_refused_and_said() {
    let Some(vectors) = Vectors::open() else { return };
    for (judged, policy) in [
        (Judged::tdx(&vectors), tdx_policy(&vectors)),
        (Judged::snp(&vectors), snp_policy(&vectors)),
        (Judged::nvidia(&vectors), nvidia_policy(&vectors)),
    ] {
        let root = format!("--root {}", stranger(&vectors, judged.kind));
        let judgement = judged.ends(11, &policy, &root);
        assert_status(&judgement, "policy.root", "FAIL");
    }
}

#[test]
fn the_vendors_own_root_may_be_named() {
    let Some(vectors) = Vectors::open() else { return };
    let intel = vectors.scratch("intel.pem", cocoon_verify::INTEL_SGX_ROOT_CA_PEM.as_bytes());
    let ark = vectors.scratch("ark.der", sev::certs::snp::builtin::milan::ARK);
    for (judged, policy, root) in [
        (Judged::tdx(&vectors), tdx_policy(&vectors), intel),
        (Judged::snp(&vectors), snp_policy(&vectors), ark),
        (
            Judged::nvidia(&vectors),
            nvidia_policy(&vectors),
            "nvidia/certs/verifier_device_root.pem".to_owned(),
        ),
    ] {
        let judgement = judged.ends(0, &policy, &format!("--root {root}"));
        assert_status(&judgement, "policy.root", "PASS");
    }
}

#[test]
fn a_root_in_the_place_of_the_vendors_is_said_without_a_policy_too() {
    let Some(vectors) = Vectors::open() else { return };
    for judged in [
        Judged::tdx(&vectors),
        Judged::snp(&vectors),
        Judged::nvidia(&vectors),
    ] {
        let evidence = vectors.path(judged.evidence);
        let root = stranger(&vectors, judged.kind);
        let arguments = format!("{} --root {root}", judged.arguments);
        let judgement = vectors.expect(11, judged.kind, &evidence, &arguments);
        assert_status(&judgement, "root.given", "SKIP");
        let judgement = vectors.expect(0, judged.kind, &evidence, &judged.arguments);
        let checks = judgement["checks"].as_array().unwrap();
        assert!(checks.iter().all(|check| check["id"] != "root.given"));
    }
}
