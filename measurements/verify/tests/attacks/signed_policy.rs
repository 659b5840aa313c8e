//! Policies whose signature does not hold.

use cocoon_verify::{Appraiser, Policy, PolicyKey, SignedPolicyError, sign_policy};
use ed25519_dalek::SigningKey;

use crate::world::{NOW_S, World, tls_report_data};

#[test]
fn a_policy_that_no_trusted_key_signed_is_refused() {
    let world = World::new();
    let text = world.policy().to_toml();
    let (ours, theirs) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
    let trusted = [PolicyKey::of(&ours)];
    let (good, foreign) = (
        sign_policy(&text, &ours).unwrap(),
        sign_policy(&text, &theirs).unwrap(),
    );
    let policy = Policy::parse_signed(&text, &good, &trusted).unwrap();
    assert_eq!(policy.signer(), Some(trusted[0]));
    assert!(Policy::parse_signed(&text, &(foreign.clone() + &good), &trusted).is_ok());
    for signatures in ["", &foreign] {
        let error = Policy::parse_signed(&text, signatures, &trusted).unwrap_err();
        assert!(matches!(error, SignedPolicyError::NotTrusted { .. }), "{error}");
    }
    assert!(Policy::parse_signed(&text, &good, &[]).is_err());
}

#[test]
fn a_policy_changed_after_it_was_signed_is_refused() {
    let world = World::new();
    let text = world.policy().to_toml();
    let key = SigningKey::from_bytes(&[1; 32]);
    let signature = sign_policy(&text, &key).unwrap();
    let changed = text.replacen("number = 1", "number = 2", 1);
    assert_ne!(changed, text);
    for other in [changed, text.clone() + "\n"] {
        let error = Policy::parse_signed(&other, &signature, &[PolicyKey::of(&key)]).unwrap_err();
        assert!(matches!(error, SignedPolicyError::Forged(_)), "{error}");
    }
    let flipped = signature.replacen(
        &signature[120..121],
        if &signature[120..121] == "0" { "1" } else { "0" },
        1,
    );
    let cut = &signature[..signature.len() - 3];
    for broken in [flipped.as_str(), cut, "cocoon-policy-v1 00 00\n", "x"] {
        assert!(
            Policy::parse_signed(&text, broken, &[PolicyKey::of(&key)]).is_err(),
            "{broken}"
        );
    }
}

#[test]
fn the_report_says_who_signed_the_policy() {
    let world = World::new();
    let bundle = world.bundle();
    assert_eq!(world.judge(&bundle).0.policy_signer, None);
    let key = SigningKey::from_bytes(&[1; 32]);
    let text = world.policy().to_toml();
    let signed =
        Policy::parse_signed(&text, &sign_policy(&text, &key).unwrap(), &[PolicyKey::of(&key)]).unwrap();
    let report_data = tls_report_data(&bundle.events);
    let collateral = world.endorsements();
    let appraisal = Appraiser::new(&signed, world.floors, &collateral, NOW_S).appraise(&bundle, &report_data);
    assert_eq!(
        appraisal.report.policy_signer,
        Some(PolicyKey::of(&key).to_string())
    );
    assert!(appraisal.into_trusted().is_ok());
}
