//! Where fuzzing starts: the public vectors, and small inputs of our own where there are none.
//!
//! The vectors stay where `COCOON_VECTORS` says; nothing of them is in this repository.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cocoon_evidence::{EventKind, EventLog, EvidenceBundle, Platform, encode_extension};

/// A longer vector is not a seed: long inputs make every execution slow, and repeat what short ones have.
const SEED_BYTES_MAX: usize = 128 * 1024;

/// Which vectors a target starts from: folders and files of `COCOON_VECTORS`.
const VECTORS: [(&str, &[&str]); 11] = [
    ("certificates", &["nvidia/certs", "snp/coco", "snp/virtee_sev", "tdx/intel_qvl_sample_testroot"]),
    ("event_log", &["eventlog", "dstack"]),
    ("evidence_fields", &["tdx/quotes", "tdx/phala", "snp", "nvidia"]),
    ("nvidia_evidence", &["nvidia/evidence", "nvidia/sdk_testdata"]),
    ("nvidia_rim", &["nvidia/sdk_testdata", "nvidia/nvtrust"]),
    ("nvidia_spdm", &["nvidia/sdk_testdata", "nvidia/nvtrust"]),
    ("snp_judgement", &["snp"]),
    ("snp_report", &["snp"]),
    ("tdx_collateral", &["tdx/phala"]),
    ("tdx_judgement", &["tdx/quotes", "tdx/phala"]),
    ("tdx_quote", &["tdx/quotes", "tdx/phala", "tdx/intel_qvl_sample_testroot"]),
];

/// Text and other files of our own, one folder for each target.
const OWN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds");

/// Writes the seeds of every target into a folder of its name.
///
/// # Errors
/// Those of the file system, with the path.
pub fn write_all(vectors: Option<&Path>, corpus: &Path) -> io::Result<()> {
    for (target, places) in VECTORS {
        for place in places.iter().filter_map(|place| Some(vectors?.join(place))) {
            for file in files(&place)? {
                let bytes = fs::read(&file)?;
                if let Some(decoded) = hex_text(&bytes) {
                    write(corpus, target, &decoded)?;
                }
                write(corpus, target, &trimmed(bytes))?;
            }
        }
    }
    for file in files(Path::new(OWN))? {
        let target = file
            .parent()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str());
        write(corpus, target.expect("seeds lie in folders"), &fs::read(&file)?)?;
    }
    for (target, bytes) in made() {
        write(corpus, target, &bytes)?;
    }
    Ok(())
}

/// All files under a folder, or the file itself.
fn files(place: &Path) -> io::Result<Vec<PathBuf>> {
    if place.is_file() {
        return Ok(vec![place.to_owned()]);
    }
    let mut found = vec![];
    let entries = fs::read_dir(place)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", place.display())))?;
    for entry in entries {
        found.extend(files(&entry?.path())?);
    }
    Ok(found)
}

/// Logs come with the filler of their memory area: some of it is enough.
fn trimmed(mut bytes: Vec<u8>) -> Vec<u8> {
    const FILLER_KEPT: usize = 64;
    let used = bytes.iter().rposition(|byte| !matches!(byte, 0 | 0xff));
    bytes.truncate(used.map_or(0, |last| last + 1) + FILLER_KEPT);
    bytes
}

/// Some vectors are binary data as text.
fn hex_text(bytes: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    hex::decode(text).ok()
}

fn write(corpus: &Path, target: &str, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() > SEED_BYTES_MAX {
        return Ok(());
    }
    let folder = corpus.join(target);
    fs::create_dir_all(&folder)?;
    fs::write(
        folder.join(cocoon_evidence::Digest32::of(bytes).to_string()),
        bytes,
    )
}

/// Inputs that only a program writes.
fn made() -> Vec<(&'static str, Vec<u8>)> {
    let bundle = bundle();
    vec![
        ("evidence_bundle", bundle.encode()),
        ("certificate_extension", encode_extension(&bundle)),
        ("firmware", firmware()),
        ("kernel", kernel()),
    ]
}

fn bundle() -> EvidenceBundle {
    let mut events = EventLog::default();
    for kind in [EventKind::LaunchDocument, EventKind::Model, EventKind::UsageKey] {
        events.push(kind, vec![7; 32]).expect("events are in order");
    }
    EvidenceBundle {
        platform: Platform::Tdx { quote: vec![4; 64] },
        events,
        gpu: vec![],
    }
}

/// Three pages with TDVF metadata: configuration volume, hand-off block, boot volume. The layout is edk2's
/// `OvmfPkg/ResetVector/X64/IntelTdxMetadata.asm`.
fn firmware() -> Vec<u8> {
    const PAGE: u32 = 4096;
    let mut image = vec![0; 3 * PAGE as usize];
    let mut metadata = [
        b"TDVF".as_slice(),
        &112u32.to_le_bytes(),
        &1u32.to_le_bytes(),
        &3u32.to_le_bytes(),
    ]
    .concat();
    for (offset, raw, address, kind, attributes) in [
        (PAGE, 2 * PAGE, 0xffff_e000u64, 0u32, 1u32),
        (0, PAGE, 0xffff_d000, 1, 0),
        (0, 0, 0x80_9000, 2, 0),
    ] {
        metadata.extend(offset.to_le_bytes());
        metadata.extend(raw.to_le_bytes());
        metadata.extend(address.to_le_bytes());
        metadata.extend(u64::from(raw.max(PAGE)).to_le_bytes());
        metadata.extend(kind.to_le_bytes());
        metadata.extend(attributes.to_le_bytes());
    }
    let start = image.len() - 1024;
    image[start..start + metadata.len()].copy_from_slice(&metadata);
    // The table of GUIDed entries is read from its end, 32 bytes before the image's.
    let entry: [u8; 16] = *b"\x35\x65\x7a\xe4\x4a\x98\x98\x47\x86\x5e\x46\x85\xa7\xbf\x8e\xc2";
    let footer: [u8; 16] = *b"\xde\x82\xb5\x96\xb2\x1f\xf7\x45\xba\xea\xa3\x66\xc5\x5a\x08\x2d";
    let mut table = 1024u32.to_le_bytes().to_vec();
    table.extend(22u16.to_le_bytes());
    table.extend(entry);
    table.extend(40u16.to_le_bytes());
    table.extend(footer);
    let end = image.len() - 32;
    image[end - table.len()..end].copy_from_slice(&table);
    image
}

/// A PE32+ image with one section, its security directory and some bytes behind the section.
fn kernel() -> Vec<u8> {
    let mut image = vec![0; 0x600];
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x80u32.to_le_bytes());
    put(0x80, b"PE\0\0");
    put(0x84, &0x8664u16.to_le_bytes());
    put(0x86, &1u16.to_le_bytes());
    put(0x94, &0xf0u16.to_le_bytes());
    put(0x98, &0x20bu16.to_le_bytes());
    put(0x98 + 60, &0x200u32.to_le_bytes());
    put(0x98 + 108, &16u32.to_le_bytes());
    let section = 0x98 + 0xf0;
    put(section, b".text\0\0\0");
    put(section + 16, &0x200u32.to_le_bytes());
    put(section + 20, &0x200u32.to_le_bytes());
    put(0x1f1, &[1]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    image
}
