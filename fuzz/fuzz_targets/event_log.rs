//! [`cocoon_fuzz::targets::event_log`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::event_log(bytes);
});
