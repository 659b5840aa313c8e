//! [`cocoon_fuzz::targets::snp_report`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::snp_report(bytes);
});
