//! Properties of the parsers that read what an enemy may have written and that have no property test beside them:
//! policies, the evidence in a certificate, manifests. Nothing panics; what is accepted is written and read again as
//! the same. `fuzz/` drives the same parsers for hours, these run with every test.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod small_image;

use cocoon_evidence::{CertifiedEvidence, Digest32, EventKind, EventLog, EvidenceBundle, Platform};
use cocoon_measurements::{Artifact, Manifest};
use cocoon_verify::{INTEL_SGX_ROOT_CA_PEM, Policy};
use proptest::{prelude::*, sample::Index};

/// One change of some bytes, as an enemy or a broken disk makes it.
#[derive(Debug, Clone)]
enum Change {
    Replace(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Truncate(Index),
    /// A piece again, somewhere else: repeated keys and tables.
    Repeat(Index, Index, Index),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let at = any::<Index>;
    let change = prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Replace(at, byte)),
        2 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Insert(at, byte)),
        2 => at().prop_map(Change::Remove),
        1 => at().prop_map(Change::Truncate),
        1 => (at(), at(), at()).prop_map(|(from, to, at)| Change::Repeat(from, to, at)),
    ];
    prop::collection::vec(change, 0..4)
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let places = bytes.len() + 1;
        match change {
            _ if bytes.is_empty() => break,
            Change::Replace(at, byte) => *at.get_mut(&mut bytes) = *byte,
            Change::Insert(at, byte) => bytes.insert(at.index(places), *byte),
            Change::Remove(at) => _ = bytes.remove(at.index(bytes.len())),
            Change::Truncate(at) => bytes.truncate(at.index(places)),
            Change::Repeat(from, to, at) => {
                let (from, to) = (from.index(places), to.index(places));
                let piece = bytes[from.min(to)..from.max(to)].to_vec();
                let at = at.index(places);
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

/// One value, a list, or a list with profiles.
fn values() -> impl Strategy<Value = String> {
    let digest = any::<[u8; 2]>().prop_map(|bytes| hex::encode(bytes).repeat(24));
    prop_oneof![
        digest.clone().prop_map(|value| format!("\"{value}\"")),
        Just("\"any-insecure\"".to_owned()),
        prop::collection::vec(digest.clone(), 1..4).prop_map(|values| format!("{values:?}")),
        prop::collection::vec(("[a-z0-9.-]{1,12}", digest), 1..4).prop_map(|items| {
            let items = items
                .into_iter()
                .map(|(profile, value)| format!("{{ profile = \"{profile}\", value = \"{value}\" }}"));
            format!("[{}]", items.collect::<Vec<_>>().join(", "))
        }),
    ]
}

fn policy() -> impl Strategy<Value = String> {
    let numbers = (
        0..=i64::MAX as u64,
        0..=i64::MAX as u64,
        any::<u32>(),
        0..=i64::MAX as u64,
    );
    let bits = (any::<u64>(), any::<u64>());
    let registers = (values(), values(), values(), values(), values());
    (numbers, bits, registers).prop_map(
        |((number, expires_s, evaluation, grace_s), (attributes, xfam), values)| {
            let (mrtd, rtmr0, rtmr1, owner, model) = values;
            format!(
                r#"version = 1
number = {number}
expires_s = {expires_s}
role = "inference"

[platform]
kind = "tdx"
simulated = false
root_pem = '''{INTEL_SGX_ROOT_CA_PEM}'''

[registers]
mrtd = {mrtd}
rtmr0 = {rtmr0}
rtmr1 = {rtmr1}
rtmr2 = {rtmr0}
mr_config_id = {owner}
mr_owner = {owner}
mr_owner_config = {owner}

[td]
attributes = "{attributes:#018x}"
xfam = ["{xfam:#018x}"]

[tcb]
accepted = ["UpToDate", "SWHardeningNeeded"]
evaluation_number_min = {evaluation}
platform_grace_s = {grace_s}

[events]
launch_document = {model}
model = {model}
usage_key = "bound"
gpu_evidence = "none"
ready = "empty"
"#
            )
        },
    )
}

fn bundle(quote: Vec<u8>, document: Vec<u8>) -> EvidenceBundle {
    let mut events = EventLog::default();
    events.push(EventKind::LaunchDocument, document).unwrap();
    EvidenceBundle {
        platform: Platform::Tdx { quote },
        events,
        gpu: vec![],
    }
}

fn manifest(data_blocks: u64, size_bytes: u64) -> Vec<u8> {
    let manifest = small_image::manifest(data_blocks, |file| Artifact {
        file: file.to_owned(),
        bytes: size_bytes,
        sha256: Digest32::of(file.as_bytes()),
    });
    serde_json::to_vec(&manifest).unwrap()
}

/// Whether `bytes` are a manifest; then they are written and read again as the same.
fn reads_manifest(bytes: &[u8]) -> bool {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) else {
        return false;
    };
    let accepted = manifest.check().is_ok();
    let written = serde_json::to_vec(&manifest).unwrap();
    let again: Manifest = serde_json::from_slice(&written).unwrap();
    assert_eq!(again.check().is_ok(), accepted);
    assert_eq!(serde_json::to_vec(&again).unwrap(), written);
    accepted
}

proptest! {
    #[test]
    fn a_policy_is_written_and_read_again_as_the_same(text in policy()) {
        let policy = Policy::parse(&text).unwrap();
        let again = Policy::parse(&policy.to_toml()).unwrap();
        prop_assert_eq!(again.terms(), policy.terms());
    }

    #[test]
    fn a_changed_policy_never_panics_the_reader(text in policy(), changes in changes()) {
        let bytes = changed(text.into_bytes(), &changes);
        if let Some(policy) = std::str::from_utf8(&bytes).ok().and_then(|text| Policy::parse(text).ok()) {
            let again = Policy::parse(&policy.to_toml()).unwrap();
            prop_assert_eq!(again.terms(), policy.terms());
        }
    }

    #[test]
    fn evidence_in_a_certificate_is_read_as_it_was_written(
        quote in prop::collection::vec(any::<u8>(), 0..600),
        document in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let bundle = bundle(quote, document);
        let encoded = CertifiedEvidence::of(bundle.clone()).encode();
        let read = CertifiedEvidence::decode(&encoded).unwrap();
        prop_assert_eq!(read, CertifiedEvidence::Carried(bundle));
    }

    /// There is one way to write a bundle: no byte of the extension is free.
    #[test]
    fn changed_evidence_in_a_certificate_is_refused_or_another_bundle(
        quote in prop::collection::vec(any::<u8>(), 0..300),
        changes in changes(),
    ) {
        let honest = CertifiedEvidence::of(bundle(quote, vec![7; 40])).encode();
        let bytes = changed(honest, &changes);
        if let Ok(evidence) = CertifiedEvidence::decode(&bytes) {
            prop_assert_eq!(evidence.encode(), bytes);
        }
    }

    #[test]
    fn any_bytes_are_evidence_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(evidence) = CertifiedEvidence::decode(&bytes) {
            prop_assert_eq!(evidence.encode(), bytes);
        }
    }

    #[test]
    fn a_changed_manifest_never_panics_the_reader(
        data_blocks in 1_u64..1 << 40,
        size_bytes in any::<u64>(),
        changes in changes(),
    ) {
        reads_manifest(&changed(manifest(data_blocks, size_bytes), &changes));
    }
}

#[test]
fn the_seeds_are_accepted() {
    assert!(reads_manifest(&manifest(1, 1 << 20)));
}
