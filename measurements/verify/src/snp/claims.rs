//! What a report says about itself, field by field, as JSON.

use serde_json::{Map, Value, json};

use super::{
    guest_policy,
    product::{SnpProduct, SnpTcb},
    report::SnpReport,
};

/// The report's fields by AMD's names in snake case; byte strings in hex. Security versions are split into parts
/// where the product is known, which before version 3 only the certificate says.
pub(super) fn claims(report: &SnpReport, product: Option<SnpProduct>) -> Map<String, Value> {
    let tcb = |raw: [u8; 8]| {
        let parts = product.and_then(|product| serde_json::to_value(SnpTcb::decode(raw, product)).ok());
        json!({ "raw": hex::encode(raw), "parts": parts })
    };
    let mut claims = Map::new();
    let mut claim = |name: &str, value: Value| claims.insert(name.to_owned(), value);
    claim("platform", json!("snp"));
    claim("version", json!(report.version()));
    claim("product", json!(product));
    claim("guest_svn", json!(report.guest_svn()));
    claim(
        "policy",
        bits(report.policy(), &guest_policy::policy_names(report.policy())),
    );
    claim("family_id", json!(hex::encode(report.family_id())));
    claim("image_id", json!(hex::encode(report.image_id())));
    claim("vmpl", json!(report.vmpl()));
    let platform_info = report.platform_info();
    claim(
        "platform_info",
        bits(platform_info, &guest_policy::platform_names(platform_info)),
    );
    claim("signing_key", json!(report.signing_key().name().to_lowercase()));
    claim("author_key_enabled", json!(report.has_author_key()));
    claim("report_data", json!(hex::encode(report.report_data())));
    claim("measurement", json!(hex::encode(report.measurement())));
    claim("host_data", json!(hex::encode(report.host_data())));
    claim("id_key_digest", json!(hex::encode(report.id_key_digest())));
    claim(
        "author_key_digest",
        json!(hex::encode(report.author_key_digest())),
    );
    claim("report_id", json!(hex::encode(report.report_id())));
    claim("report_id_ma", json!(hex::encode(report.report_id_ma())));
    claim("chip_id", json!(hex::encode(report.chip_id())));
    claim("current_tcb", tcb(report.current_tcb()));
    claim("reported_tcb", tcb(report.reported_tcb()));
    claim("committed_tcb", tcb(report.committed_tcb()));
    claim("launch_tcb", tcb(report.launch_tcb()));
    claim("current_firmware", json!(report.current_firmware().to_string()));
    claim(
        "committed_firmware",
        json!(report.committed_firmware().to_string()),
    );
    if let Some([family, model, stepping]) = report.cpuid() {
        claim(
            "cpuid",
            json!({ "family": family, "model": model, "stepping": stepping }),
        );
    }
    if let Some([launch, current]) = report.mitigation_vectors() {
        claim("launch_mitigation_vector", json!(format!("{launch:#018x}")));
        claim("current_mitigation_vector", json!(format!("{current:#018x}")));
    }
    claims
}

fn bits(raw: u64, names: &[&str]) -> Value {
    json!({ "raw": format!("{raw:#018x}"), "set": names })
}
