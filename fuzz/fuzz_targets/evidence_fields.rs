//! [`cocoon_fuzz::targets::evidence_fields`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::evidence_fields(bytes);
});
