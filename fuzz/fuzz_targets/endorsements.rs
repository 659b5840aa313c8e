//! [`cocoon_fuzz::targets::endorsements`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::endorsements(bytes);
});
