//! [`cocoon_fuzz::targets::snp_judgement`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::snp_judgement(bytes);
});
