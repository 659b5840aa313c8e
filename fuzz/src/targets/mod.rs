//! One function for each parser of bytes that an enemy may have written. It says whether they are well-formed.

mod acpi;
mod evidence;
mod image;
mod log;
mod nvidia;
mod policy;
mod snp;
mod tdx;

pub use acpi::{smbios, tables_file};
pub use evidence::{certificate_extension, endorsements, evidence_bundle, fresh_evidence};
pub use image::{firmware, kernel, manifest};
pub use log::{event_log, evidence_fields};
pub use nvidia::{certificates, nvidia_evidence, nvidia_ocsp, nvidia_rim, nvidia_spdm};
pub use policy::{launch_document, policy};
pub use snp::{snp_judgement, snp_report};
pub use tdx::{tdx_collateral, tdx_judgement, tdx_quote};

#[cfg(test)]
mod tests {
    use std::{env, fs, path::PathBuf};

    const TARGETS: [(&str, fn(&[u8]) -> bool); 23] = [
        ("certificate_extension", super::certificate_extension),
        ("certificates", super::certificates),
        ("event_log", super::event_log),
        ("endorsements", super::endorsements),
        ("evidence_bundle", super::evidence_bundle),
        ("fresh_evidence", super::fresh_evidence),
        ("evidence_fields", super::evidence_fields),
        ("firmware", super::firmware),
        ("kernel", super::kernel),
        ("launch_document", super::launch_document),
        ("manifest", super::manifest),
        ("nvidia_evidence", super::nvidia_evidence),
        ("nvidia_ocsp", super::nvidia_ocsp),
        ("nvidia_rim", super::nvidia_rim),
        ("nvidia_spdm", super::nvidia_spdm),
        ("policy", super::policy),
        ("smbios", super::smbios),
        ("snp_judgement", super::snp_judgement),
        ("snp_report", super::snp_report),
        ("tables_file", super::tables_file),
        ("tdx_collateral", super::tdx_collateral),
        ("tdx_judgement", super::tdx_judgement),
        ("tdx_quote", super::tdx_quote),
    ];
    /// Of these all seeds are public vectors.
    const ONLY_VECTORS: [&str; 11] = [
        "certificates",
        "event_log",
        "evidence_fields",
        "nvidia_evidence",
        "nvidia_rim",
        "nvidia_spdm",
        "snp_judgement",
        "snp_report",
        "tdx_collateral",
        "tdx_judgement",
        "tdx_quote",
    ];

    /// A target none of whose seeds is well-formed would test the first check of its parser and nothing else.
    #[test]
    fn each_target_accepts_a_seed() {
        let folder = tempfile::tempdir().unwrap();
        let vectors = env::var_os("COCOON_VECTORS").map(PathBuf::from);
        cocoon_fuzz_seeds::write_all(vectors.as_deref(), folder.path()).unwrap();
        for (name, target) in TARGETS {
            if vectors.is_none() && ONLY_VECTORS.contains(&name) {
                eprintln!("{name}: COCOON_VECTORS is not set");
                continue;
            }
            let seeds = fs::read_dir(folder.path().join(name)).unwrap();
            let seeds: Vec<_> = seeds
                .map(|seed| fs::read(seed.unwrap().path()).unwrap())
                .collect();
            let accepted = seeds.iter().filter(|seed| target(seed)).count();
            eprintln!("{name}: {accepted} of {} seeds are accepted", seeds.len());
            assert!(accepted > 0, "{name}");
        }
    }
}
