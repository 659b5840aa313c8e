//! [`cocoon_fuzz::targets::tdx_collateral`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::tdx_collateral(bytes);
});
