//! An SGX enclave's report body (Intel SDM volume 3D, table 40-21 "Report"; 384 bytes).

use super::{Row, bits, number, opaque, reserved};

pub(super) const REPORT_BODY: &[Row] = &[
    Row("cpu_svn", 16, opaque),
    Row("misc_select", 4, opaque),
    Row("reserved1", 12, reserved),
    Row("isv_ext_prod_id", 16, opaque),
    Row("attributes", 16, attributes),
    Row("mr_enclave", 32, |_| "measurement of the enclave".into()),
    Row("reserved2", 32, reserved),
    Row("mr_signer", 32, |_| {
        "SHA-256 of the key that signed the enclave".into()
    }),
    Row("reserved3", 32, reserved),
    Row("config_id", 64, opaque),
    Row("isv_prod_id", 2, number),
    Row("isv_svn", 2, number),
    Row("config_svn", 2, number),
    Row("reserved4", 42, reserved),
    Row("isv_family_id", 16, opaque),
    Row("report_data", 64, |_| "chosen by the enclave".into()),
];

fn attributes(value: &[u8]) -> String {
    let names = [
        (0, "INIT"),
        (1, "DEBUG: the enclave can be read"),
        (2, "MODE64BIT"),
        (4, "PROVISIONKEY"),
        (5, "EINITTOKEN_KEY"),
        (6, "CET"),
        (7, "KSS"),
        (10, "AEX_NOTIFY"),
    ];
    bits(&value[..8], &names)
}
