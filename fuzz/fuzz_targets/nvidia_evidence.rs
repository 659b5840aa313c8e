//! [`cocoon_fuzz::targets::nvidia_evidence`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::nvidia_evidence(bytes);
});
