//! [`cocoon_fuzz::targets::tdx_quote`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::tdx_quote(bytes);
});
