//! [`cocoon_fuzz::targets::nvidia_rim`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::nvidia_rim(bytes);
});
