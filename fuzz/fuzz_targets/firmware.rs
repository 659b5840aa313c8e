//! [`cocoon_fuzz::targets::firmware`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::firmware(bytes);
});
