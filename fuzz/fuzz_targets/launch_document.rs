//! [`cocoon_fuzz::targets::launch_document`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::launch_document(bytes);
});
