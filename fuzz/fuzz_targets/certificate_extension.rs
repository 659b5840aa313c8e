//! [`cocoon_fuzz::targets::certificate_extension`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::certificate_extension(bytes);
});
