//! [`cocoon_fuzz::targets::evidence_bundle`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::evidence_bundle(bytes);
});
