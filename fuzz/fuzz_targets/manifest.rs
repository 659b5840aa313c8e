//! [`cocoon_fuzz::targets::manifest`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::manifest(bytes);
});
