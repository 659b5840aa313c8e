//! [`cocoon_fuzz::targets::fresh_evidence`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::fresh_evidence(bytes);
});
