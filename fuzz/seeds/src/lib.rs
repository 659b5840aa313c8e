//! Where fuzzing starts: the public vectors, and small inputs of our own where there are none.
//!
//! The vectors stay where `COCOON_VECTORS` says; nothing of them is in this repository.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cocoon_evidence::{
    CertifiedEvidence, Digest32, Endorsements, EventKind, EventLog, EvidenceBundle, FreshBinding, FreshTree,
    GpuEvidence, Platform, Role,
};

/// A longer vector is not a seed: long inputs make every execution slow, and repeat what short ones have.
const SEED_BYTES_MAX: usize = 128 * 1024;

/// Which vectors a target starts from: folders and files of `COCOON_VECTORS`.
const VECTORS: [(&str, &[&str]); 11] = [
    (
        "certificates",
        &[
            "nvidia/certs",
            "snp/coco",
            "snp/virtee_sev",
            "tdx/intel_qvl_sample_testroot",
        ],
    ),
    ("event_log", &["eventlog", "dstack"]),
    ("evidence_fields", &["tdx/quotes", "tdx/phala", "snp", "nvidia"]),
    ("nvidia_evidence", &["nvidia/evidence", "nvidia/sdk_testdata"]),
    ("nvidia_rim", &["nvidia/sdk_testdata", "nvidia/nvtrust"]),
    ("nvidia_spdm", &["nvidia/sdk_testdata", "nvidia/nvtrust"]),
    ("snp_judgement", &["snp"]),
    ("snp_report", &["snp"]),
    ("tdx_collateral", &["tdx/phala"]),
    ("tdx_judgement", &["tdx/quotes", "tdx/phala"]),
    (
        "tdx_quote",
        &["tdx/quotes", "tdx/phala", "tdx/intel_qvl_sample_testroot"],
    ),
];

/// Text and other files of our own, one folder for each target.
const OWN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/files");

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
        ("endorsements", endorsements()),
        ("evidence_bundle", bundle.encode()),
        ("fresh_evidence", fresh_evidence(bundle.clone())),
        (
            "certificate_extension",
            CertifiedEvidence::of(bundle.clone()).encode(),
        ),
        (
            "certificate_extension",
            CertifiedEvidence::ByDigest(Digest32::of(&bundle.encode())).encode(),
        ),
        ("firmware", firmware()),
        ("kernel", kernel()),
        ("nvidia_ocsp", ocsp_response()),
        ("smbios", smbios()),
        ("tables_file", tables_file()),
    ]
}

/// The middle one of three requests.
fn fresh_evidence(bundle: EvidenceBundle) -> Vec<u8> {
    let leaf = |nonce| {
        let binding = FreshBinding {
            nonce: &[nonce; 32],
            exporter: &[2; 32],
            certificate: Digest32::ZERO,
            role: Role::Inference,
            log: bundle.events.replay(),
        };
        binding.leaf()
    };
    let tree = FreshTree::new(&[leaf(1), leaf(2), leaf(3)]).expect("three are few");
    tree.answer(1, bundle.clone()).encode()
}

fn endorsements() -> Vec<u8> {
    let endorsements = Endorsements {
        tdx: b"{}".to_vec(),
        snp: vec![vec![1; 20].into()],
        rims: vec![vec![2; 20].into()],
        ocsp: vec![vec![3; 20].into()],
    };
    endorsements.encode()
}

fn bundle() -> EvidenceBundle {
    let mut events = EventLog::default();
    for kind in [EventKind::LaunchDocument, EventKind::Model, EventKind::UsageKey] {
        events.push(kind, vec![7; 32]).expect("events are in order");
    }
    EvidenceBundle {
        platform: Platform::Tdx { quote: vec![4; 64] },
        events,
        gpu: vec![GpuEvidence {
            report: vec![5; 40],
            certificates: vec![6; 40],
            confidential_compute: true,
            dev_tools: false,
        }],
    }
}

/// Three pages with TDVF and SEV metadata, and with variables for Secure Boot: what can be measured on TDX and SNP.
pub fn firmware() -> Vec<u8> {
    const PAGE: usize = 4096;
    const TDVF_FROM_END: u32 = 1024;
    const SEV_FROM_END: u32 = 2048;
    let mut image = variables();
    image.resize(3 * PAGE, 0);
    let mut put = |from_end: u32, bytes: Vec<u8>| {
        let start = 3 * PAGE - from_end as usize;
        image[start..start + bytes.len()].copy_from_slice(&bytes);
    };
    put(TDVF_FROM_END, tdvf_metadata());
    put(SEV_FROM_END, sev_metadata());
    // The table of GUIDed entries is read from its end, 32 bytes before the image's.
    let mut table = vec![];
    for (guid, data) in [
        (
            *b"\x1f\x37\x55\x72\x3b\x3a\x04\x4b\x92\x7b\x1d\xa6\xef\xa8\xd4\x54",
            vec![0, 0x20, 0, 0, 0, 4, 0, 0],
        ),
        (
            *b"\xde\x71\xf7\x00\x7e\x1a\xcb\x4f\x89\x0e\x68\xc7\x7e\x2f\xb4\x4e",
            vec![4, 0xb0, 0x80, 0],
        ),
        (
            *b"\x66\x65\x88\xdc\x4a\x98\x98\x47\xa7\x5e\x55\x85\xa7\xbf\x67\xcc",
            SEV_FROM_END.to_le_bytes().to_vec(),
        ),
        (
            *b"\x35\x65\x7a\xe4\x4a\x98\x98\x47\x86\x5e\x46\x85\xa7\xbf\x8e\xc2",
            TDVF_FROM_END.to_le_bytes().to_vec(),
        ),
    ] {
        let length = data.len() as u16 + 18;
        table.extend(data);
        table.extend(length.to_le_bytes());
        table.extend(guid);
    }
    table.extend((table.len() as u16 + 18).to_le_bytes());
    table.extend(*b"\xde\x82\xb5\x96\xb2\x1f\xf7\x45\xba\xea\xa3\x66\xc5\x5a\x08\x2d");
    put(32 + table.len() as u32, table);
    image
}

/// Boot volume, configuration volume, hand-off block. The layout is edk2's
/// `OvmfPkg/ResetVector/X64/IntelTdxMetadata.asm`.
fn tdvf_metadata() -> Vec<u8> {
    const PAGE: u32 = 4096;
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
    metadata
}

/// Memory, secrets, CPUID, kernel hashes. The layout is edk2's `OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm`.
fn sev_metadata() -> Vec<u8> {
    let words = [
        [0x80_0000u32, 0x3000, 1],
        [0x80_d000, 0x1000, 2],
        [0x80_e000, 0x1000, 3],
        [0x2000, 0x1000, 0x10],
    ];
    let head = [16 + 12 * words.len() as u32, 1, words.len() as u32];
    let words = head.iter().chain(words.as_flattened());
    [
        b"ASEV".to_vec(),
        words.flat_map(|word| word.to_le_bytes()).collect(),
    ]
    .concat()
}

/// A volume with a platform key, and one certificate that may sign kernels; what it is, nobody looks at here.
fn variables() -> Vec<u8> {
    const GLOBAL: [u8; 16] = *b"\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c";
    const SECURITY: [u8; 16] = *b"\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f";
    const VOLUME_BYTES: u32 = 4096;
    const HEADER_BYTES: u16 = 72;
    let certificates = [
        b"\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72".as_slice(),
        &48u32.to_le_bytes(),
        &0u32.to_le_bytes(),
        &20u32.to_le_bytes(),
        &[9; 20],
    ]
    .concat();
    let mut volume = vec![0; usize::from(HEADER_BYTES)];
    volume[40..44].copy_from_slice(b"_FVH");
    volume[48..50].copy_from_slice(&HEADER_BYTES.to_le_bytes());
    volume.extend(*b"\x78\x2c\xf3\xaa\x7b\x94\x9a\x43\xa1\x80\x2e\x14\x4e\xc3\x77\x92");
    volume.extend((VOLUME_BYTES - u32::from(HEADER_BYTES)).to_le_bytes());
    volume.extend([0x5a, 0xfe, 0, 0, 0, 0, 0, 0]);
    for (vendor, name, data) in [(GLOBAL, "PK", &[8; 4][..]), (SECURITY, "db", &certificates)] {
        let name: Vec<u8> = name
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        volume.extend([0xaa, 0x55, 0x3f, 0, 0x27, 0, 0, 0]);
        volume.extend([0; 28]);
        volume.extend((name.len() as u32).to_le_bytes());
        volume.extend((data.len() as u32).to_le_bytes());
        volume.extend(vendor);
        volume.extend(name);
        volume.extend(data);
        volume.resize(volume.len().next_multiple_of(4), 0xff);
    }
    volume.resize(VOLUME_BYTES as usize, 0xff);
    volume
}

/// A PE32+ image with one section and a certificate, and a Linux setup header in it.
pub fn kernel() -> Vec<u8> {
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
    put(0x98 + 144, &0x5f8u32.to_le_bytes());
    put(0x98 + 148, &8u32.to_le_bytes());
    let section = 0x98 + 0xf0;
    put(section, b".text\0\0\0");
    put(section + 16, &0x200u32.to_le_bytes());
    put(section + 20, &0x200u32.to_le_bytes());
    put(0x1f1, &[1]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    image
}

/// System, processor and end: DMTF DSP0134 3.6, section 6.1.
fn smbios() -> Vec<u8> {
    let structure = |kind: u8, fields: usize, strings: &[u8]| {
        let head = [kind, 4 + fields as u8, kind, 0];
        [&head, vec![1; fields].as_slice(), strings, &[0]].concat()
    };
    [
        structure(1, 23, b"QEMU\0Standard PC\0"),
        structure(3, 18, b"QEMU\0"),
        structure(4, 44, b"CPU 0\0QEMU\0"),
        structure(16, 19, b"\0"),
        structure(127, 0, b"\0"),
    ]
    .concat()
}

/// Tables of one small machine.
pub fn tables_file() -> Vec<u8> {
    let digest = cocoon_evidence::Digest48::of(b"DSDT\0\0");
    let program = cocoon_evidence::Digest32::of(b"qemu");
    format!(
        r#"{{"schema":"cocoon.acpi-tables/1","machines":[{{"qemu":{{"version":"QEMU emulator version 10.0.13","program_sha256":"{program}"}},"shape":{{"machine":"q35","vcpus":2,"memory_mib":1024,"smm":false,"pic":false,"hpet":false,"serial":false,"slots":["endpoint"],"hole64_gib":32,"window_gib":57344,"config_window_mib":3584}},"files":{{"etc/acpi/tables":{{"bytes":6,"sha384":"{digest}","base64":"RFNEVA=="}}}}}}]}}"#
    )
    .into_bytes()
}

/// What an OCSP responder says of two certificates: RFC 6960, section 4.2.1. Nobody signed it.
fn ocsp_response() -> Vec<u8> {
    const SEQUENCE: u8 = 0x30;
    let time = |text: &[u8]| der(0x18, &[text]);
    let sha1 = der(SEQUENCE, &[b"\x06\x05\x2b\x0e\x03\x02\x1a", b"\x05\0"]);
    let single = |serial: u8, status: &[u8]| {
        let name = der(
            SEQUENCE,
            &[&sha1, &der(4, &[&[1; 20]]), &der(4, &[&[2; 20]]), &[2, 1, serial]],
        );
        let next = der(0xa0, &[&time(b"20260201000000Z")]);
        der(SEQUENCE, &[&name, status, &time(b"20260101000000Z"), &next])
    };
    let revoked = der(0xa1, &[&time(b"20251201000000Z"), b"\xa0\x03\x0a\x01\x01"]);
    let singles = der(SEQUENCE, &[&single(1, b"\x80\0"), &single(2, &revoked)]);
    let by_key = der(0xa2, &[&der(4, &[&[3; 20]])]);
    let data = der(SEQUENCE, &[&by_key, &time(b"20260101000000Z"), &singles]);
    let ecdsa_with_sha384 = der(SEQUENCE, &[b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03"]);
    let basic = der(SEQUENCE, &[&data, &ecdsa_with_sha384, &der(3, &[&[0; 97]])]);
    let typed = der(
        SEQUENCE,
        &[
            b"\x06\x09\x2b\x06\x01\x05\x05\x07\x30\x01\x01",
            &der(4, &[&basic]),
        ],
    );
    der(SEQUENCE, &[b"\x0a\x01\0", &der(0xa0, &[&typed])])
}

/// A DER value of these parts.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len() as u16;
    let [high, low] = length.to_be_bytes();
    let head = match length {
        0..0x80 => vec![tag, low],
        0x80..0x100 => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [head, content].concat()
}
