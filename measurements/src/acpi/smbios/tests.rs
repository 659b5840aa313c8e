//! Tables of QEMU as firmware measures them, and tables that no firmware would take.

use cocoon_evidence::Digest48;
use proptest::prelude::*;

use super::*;

fn bios() -> BiosInformation {
    BiosInformation {
        vendor: "Vendor".into(),
        version: "1.0".into(),
        date: "01/02/2026".into(),
    }
}

const PROCESSOR: ProcessorId = ProcessorId {
    signature: 0x000c_06f2,
    features: 0x1f8b_fbff,
};

fn measured(tables: &[u8]) -> Result<Vec<u8>, SmbiosError> {
    measured_smbios(SmbiosInputs {
        tables,
        bios: Some(&bios()),
        processor: Some(PROCESSOR),
    })
}

fn structure(kind: u8, handle: u8, fields: &[u8], strings: &[&str]) -> Vec<u8> {
    let mut bytes = vec![kind, (HEADER_BYTES + fields.len()) as u8, handle, 1];
    bytes.extend(fields);
    bytes.extend(strings.iter().flat_map(|text| text.bytes().chain([0])));
    bytes.extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
    bytes
}

const END: [u8; 6] = [TYPE_END, 4, 0, 0x7f, 0, 0];

fn system(uuid: u8, serial: &str) -> Vec<u8> {
    let mut fields = vec![1, 2, 3, 4];
    fields.extend([uuid; 16]);
    fields.extend([6, 0, 0]);
    let strings = ["QEMU", "Standard PC", "pc-q35", serial];
    [structure(1, 0, &fields, &strings), END.to_vec()].concat()
}

/// What a TPM recorded for booted machines (1 vCPU, 512 MiB, `-cpu max`; OVMF 2026.08+ds-2 of Debian, swtpm
/// 0.10.2): QEMU's structures, and the digest of EV_EFI_HANDOFF_TABLES in the event log.
const RECORDED: [(&str, ProcessorId, &str, &str); 2] = [
    (
        "QEMU 11.1.3",
        ProcessorId {
            signature: 0x0000_0663,
            features: 0x0fcb_fbfd,
        },
        "\
        011b0001010203000000000000000000000000000000000006000051454d55005374616e6461726420504320\
         28513335202b20494348392c2032303039290070632d7133352d31312e310000031600030101020000030303\
         0200000000000000000051454d550070632d7133352d31312e310000042a00040103fe0263060000fdfbcb0f\
         03000000d007d0074101ffffffffffff0000000101010200010043505520300051454d550070632d7133352d\
         31312e3100001017001001030600000800feff010000000000000000000000112800110010feffffffffff00\
         02090001000702000000020000000000000000000000000000000044494d4d20300051454d550000131f0013\
         00000000ffff0700001001000000000000000000000000000000000000200b00200000000000000000007f04\
         007f0000",
        "f2bc6e8de8927ccb609ecd18758a5e28ef369477bd8de9264ed707004c911ccf07ff0fcae9a709ff5436454a1ffd74fe",
    ),
    (
        "QEMU 7.2.22",
        ProcessorId {
            signature: 0x0006_0fb1,
            features: 0x0fcb_fbfd,
        },
        "\
        011b0001010203000000000000000000000000000000000006000051454d55005374616e6461726420504320\
         28513335202b20494348392c2032303039290070632d7133352d372e32000003160003010102000003030302\
         00000000000000000051454d550070632d7133352d372e320000042a000401030102b10f0600fdfbcb0f0300\
         0000d007d0074101ffffffffffff0000000101010200010043505520300051454d550070632d7133352d372e\
         3200001017001001030600000800feff010000000000000000000000112800110010feffffffffff00020900\
         01000702000000020000000000000000000000000000000044494d4d20300051454d550000131f0013000000\
         00ffff0700001001000000000000000000000000000000000000200b00200000000000000000007f04007f00\
         00",
        "968e040146b474a412f0a15f235579949b8f9219567aac5f702502ee1bf1d50a05c81c23afba78a2e3640b832e97349a",
    ),
];

#[test]
fn digests_are_those_that_a_tpm_recorded() {
    let bios = BiosInformation {
        vendor: "Debian distribution of EDK II".into(),
        version: "2026.08+ds-2".into(),
        date: "09/26/2026".into(),
    };
    for (name, processor, structures, recorded) in RECORDED {
        let tables = hex::decode(structures).unwrap();
        let inputs = SmbiosInputs {
            tables: &tables,
            bios: Some(&bios),
            processor: Some(processor),
        };
        let measured = measured_smbios(inputs).unwrap();
        assert_eq!(Digest48::of(&measured).to_string(), recorded, "{name}");
    }
}

#[test]
fn what_names_one_machine_is_not_measured() {
    assert_eq!(measured(&system(1, "serial-a")), measured(&system(2, "serial-b")));
    assert_ne!(measured(&system(1, "short")), measured(&system(1, "longer")));
}

#[test]
fn a_blanked_string_keeps_its_length() {
    let bytes = measured(&system(1, "ab")).unwrap();
    assert!(
        bytes
            .windows(12)
            .any(|part| part == b"pc-q35\0  \0\0\0".as_slice() || part == b"pc-q35\0  \0\0\x1a")
    );
}

#[test]
fn the_firmware_adds_itself_at_the_end_with_a_free_handle() {
    let mut one_at_zero = structure(3, 0, &[1; 4], &["x"]);
    one_at_zero[2..4].fill(0);
    one_at_zero.extend(END);
    let bytes = measured(&one_at_zero).unwrap();
    let text = b"Vendor\x001.0\x0001/02/2026\0\0";
    let at = bytes.len() - END_OF_TABLE.len() - text.len() - 26;
    assert_eq!(bytes[at..at + 4], [0, 26, 1, 0]);
    assert_eq!(&bytes[at + 26..bytes.len() - END_OF_TABLE.len()], text);
    assert!(bytes.ends_with(&END_OF_TABLE));
}

#[test]
fn a_bios_structure_of_qemu_is_kept() {
    let tables = [structure(0, 0, &[1; 20], &["of QEMU"]), END.to_vec()].concat();
    let bytes = measured(&tables).unwrap();
    assert_eq!(
        bytes[..tables.len() - END.len()],
        tables[..tables.len() - END.len()]
    );
    assert_eq!(bytes.len(), tables.len());
}

#[test]
fn the_processor_is_the_guests_and_not_the_emulators() {
    let tables = [structure(4, 0, &[7; 0x2c], &["CPU 0"; 7]), END.to_vec()].concat();
    let bytes = measured(&tables).unwrap();
    assert_eq!(bytes[8..12], PROCESSOR.signature.to_le_bytes());
    assert_eq!(bytes[12..16], PROCESSOR.features.to_le_bytes());
    assert_eq!(bytes[0x11], 0);
}

#[test]
fn structures_of_makers_are_measured_without_content() {
    let tables = |content| [structure(200, 0, &[content; 8], &["text"]), END.to_vec()].concat();
    assert_eq!(measured(&tables(1)), measured(&tables(2)));
}

#[test]
fn what_is_not_known_is_refused_rather_than_guessed() {
    let tables = [structure(4, 0, &[0; 0x2c], &["CPU 0"]), END.to_vec()].concat();
    let inputs = SmbiosInputs {
        tables: &tables,
        bios: Some(&bios()),
        processor: None,
    };
    assert_eq!(measured_smbios(inputs), Err(SmbiosError::ProcessorNotStated));
    let inputs = SmbiosInputs {
        tables: &END,
        bios: None,
        processor: None,
    };
    assert_eq!(measured_smbios(inputs), Err(SmbiosError::BiosNotStated));
    for version in ["", "1\n2", "ab", &"x".repeat(64)] {
        let other = BiosInformation {
            version: version.to_owned(),
            ..bios()
        };
        let inputs = SmbiosInputs {
            tables: &END,
            bios: Some(&other),
            processor: None,
        };
        assert_eq!(measured_smbios(inputs), Err(SmbiosError::BiosText("version")));
    }
}

#[test]
fn damaged_structures_are_refused_with_their_offset() {
    let check = |tables: &[u8], at: usize, says: &str| match measured(tables) {
        Err(SmbiosError::Malformed { offset, problem }) => {
            assert_eq!(offset, at);
            assert!(problem.contains(says), "{problem}");
        }
        other => panic!("{other:?}"),
    };
    let good = structure(3, 0, &[0; 4], &["x"]);
    check(&[], 0, "end of the table is missing");
    check(&good, good.len(), "end of the table is missing");
    check(&[3, 3, 0, 0, 0, 0], 0, "shorter than its header");
    check(&[3, 200, 0, 0, 0, 0], 0, "cut off");
    check(&[3, 4, 0, 0, 1, 0], 0, "do not end");
    let few = [structure(3, 0, &[1, 0, 0, 3, 0], &["x"]), END.to_vec()].concat();
    check(&few, 0, "fewer strings");
    let short = [structure(4, 0, &[0; 4], &[]), END.to_vec()].concat();
    check(&short, 0, "no identification");
}

proptest! {
    #[test]
    fn hostile_structures_never_panic(tables in prop::collection::vec(0u8..8, 0..300)) {
        let _ = measured(&tables);
    }

    #[test]
    fn hostile_fields_never_panic(
        kind in any::<u8>(),
        fields in prop::collection::vec(any::<u8>(), 0..60),
        text in "[a-z]{0,8}",
    ) {
        let tables = [structure(kind, 0, &fields, &[&text]), END.to_vec()].concat();
        let _ = measured(&tables);
    }
}
