//! What a client compares with: the policy, and the launch document that the host hands to the guest.

use cocoon_verify::Policy;

/// TOML: a policy that is accepted is written and read again as the same.
pub fn policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(policy) = Policy::parse(text) {
        let again = Policy::parse(&policy.to_toml()).expect("what was written is a policy");
        assert_eq!(again.terms(), policy.terms());
    }
}

/// JSON, of which the guest measures every byte before it reads one.
pub fn launch_document(bytes: &[u8]) {
    let _ = cocoon_measurements::model_event(bytes);
}
