//! [`cocoon_fuzz::targets::tables_file`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cocoon_fuzz::targets::tables_file(bytes);
});
