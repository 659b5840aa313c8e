//! What a client compares with: the policy, and the launch document that the host hands to the guest.

use cocoon_verify::Policy;

/// TOML: a policy that is accepted is written and read again as the same.
pub fn policy(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let Ok(policy) = Policy::parse(text) else {
        return false;
    };
    let again = Policy::parse(&policy.to_toml()).expect("what was written is a policy");
    assert_eq!(again.terms(), policy.terms());
    true
}

/// JSON, of which the guest measures every byte before it reads one.
pub fn launch_document(bytes: &[u8]) -> bool {
    cocoon_measurements::model_event(bytes).is_ok()
}
