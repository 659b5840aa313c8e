//! [`cocoon_fuzz::targets::policy`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::policy(bytes);
});
