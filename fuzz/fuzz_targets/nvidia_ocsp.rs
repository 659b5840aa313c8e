//! [`cocoon_fuzz::targets::nvidia_ocsp`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::nvidia_ocsp(bytes);
});
