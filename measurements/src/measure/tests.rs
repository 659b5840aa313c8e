mod secure_boot;

use cocoon_evidence::Register;
use proptest::prelude::*;

use self::secure_boot::{SHA256, secure, signature_list};
use super::{kernel::*, *};
use crate::{
    Alternative, EventLayout, FwCfgFiles, MachineProfile, PageOrder, SecureBoot, authenticode, kernel_header,
    tdvf,
};

/// Everything that one measurement reads.
pub(crate) struct Launch {
    pub(crate) firmware: Vec<u8>,
    pub(crate) kernel: Vec<u8>,
    pub(crate) initrd: Option<Initrd>,
    pub(crate) command_line: String,
    pub(crate) spec: LaunchSpec,
    pub(crate) tables: Option<FwCfgFiles>,
    pub(crate) smbios: Option<Digest48>,
}

impl Launch {
    fn simulated() -> Self {
        let spec = LaunchSpec::new(
            LaunchPlatform::Simulated,
            MachineProfile::Q35V1,
            2.try_into().unwrap(),
            1024.try_into().unwrap(),
        );
        Self {
            firmware: tdvf::tests::firmware(),
            kernel: authenticode::tests::image(b"trailing"),
            initrd: None,
            command_line: "ro quiet".into(),
            spec,
            tables: None,
            smbios: None,
        }
    }

    /// Everything is pinned.
    pub(crate) fn tdx() -> Self {
        let mut launch = Self::simulated();
        launch.spec.platform = LaunchPlatform::Tdx;
        launch.spec.qemu.version = Some("10.2.0".parse().unwrap());
        launch.spec.qemu.page_order = Some(PageOrder::SinglePass);
        launch.kernel = authenticode::tests::image(&[0x55; 0x1000]);
        kernel_header::tests::make_linux(&mut launch.kernel);
        let mut tables = FwCfgFiles::default();
        for (name, bytes) in [
            (FwCfgFiles::TABLE_LOADER, b"loader".as_slice()),
            (FwCfgFiles::ACPI_RSDP, b"rsdp"),
            (FwCfgFiles::ACPI_TABLES, b"tables"),
            (FwCfgFiles::BOOT_MENU, &[0, 0]),
            ("bootorder", b"/rom@genroms/linuxboot_dma.bin\0"),
        ] {
            tables.insert(name, bytes.to_vec()).unwrap();
        }
        launch.tables = Some(tables);
        launch.smbios = Some(Digest48::of(b"smbios"));
        launch
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(crate) fn measure(&self) -> Result<Prediction, MeasureError> {
        measure(LaunchInputs {
            firmware: &self.firmware,
            kernel: &self.kernel,
            initrd: self.initrd,
            command_line: &self.command_line,
            spec: &self.spec,
            tables: self.tables.as_ref(),
            smbios: self.smbios,
        })
    }

    fn registers(&self) -> PredictedRegisters {
        self.measure().unwrap().registers
    }

    fn refusal(&self) -> String {
        self.measure().unwrap_err().to_string()
    }
}

/// Types and names of the only alternative's events.
fn names(register: &PredictedRegister) -> Vec<String> {
    let [only] = register.alternatives() else {
        panic!("not one alternative: {register:?}");
    };
    let name = |event: &PredictedEvent| format!("{} {}", event.type_name, event.name);
    only.events.iter().map(name).collect()
}

fn changed(base: Launch, change: impl FnOnce(&mut Launch)) -> [bool; 4] {
    let before = base.registers();
    let after = base.with(change).registers();
    let values = |register: &PredictedRegister| register.values().collect::<Vec<_>>();
    [
        values(&before.mrtd) != values(&after.mrtd),
        values(&before.rtmr0) != values(&after.rtmr0),
        values(&before.rtmr1) != values(&after.rtmr1),
        values(&before.rtmr2) != values(&after.rtmr2),
    ]
}

#[test]
fn constant_events_equal_public_event_logs() {
    // First four bytes as they stand in the CCELs of go-eventlog, trustee, cc-trusted-api and dstack.
    let check = |body: &[u8], starts: &str| {
        assert!(Digest48::of(body).to_string().starts_with(starts), "{starts}");
    };
    check(CALLING, "77a0dab2");
    check(&[0; 4], "394341b7");
    check(EXIT_INVOKED, "214b0bef");
    check(EXIT_RETURNED, "0a2e01c8");
    let rtmr0 = Launch::tdx().registers().rtmr0;
    let digest = |name: &str| {
        let event = rtmr0.alternatives()[0]
            .events
            .iter()
            .find(|event| event.name == name);
        event.and_then(|event| event.digest).unwrap().to_string()
    };
    for (name, starts) in [
        ("SecureBoot", "9dc3a1f80bce"),
        ("PK", "6f2e3cbc14f9"),
        ("KEK", "d607c0efb41c"),
        ("db", "08a74f8963b3"),
        ("dbx", "18cc6e01f0c6"),
        ("BootOrder", "1dd6f7b457ad"),
        ("Boot0000: UiApp", "23ada07f5261"),
    ] {
        assert!(digest(name).starts_with(starts), "{name}");
    }
}

#[test]
fn the_command_line_is_measured_as_utf16_with_its_nul() {
    let expected = Register::replay([&Digest48::of(b"r\0o\0\0\0")]).value();
    let launch = Launch::simulated().with(|launch| launch.command_line = "ro".into());
    assert_eq!(launch.registers().rtmr2.sole_value(), Some(expected));
}

#[test]
fn each_input_changes_its_own_registers_only() {
    for base in [Launch::simulated, Launch::tdx] {
        let changed = |change: fn(&mut Launch)| changed(base(), change);
        assert_eq!(changed(|l| l.firmware[0x1000] ^= 1), [true, false, false, false]);
        assert_eq!(changed(|l| l.firmware[0] ^= 1), [false, true, false, false]);
        assert_eq!(changed(|l| l.kernel[0x240] ^= 1), [false, false, true, false]);
        assert_eq!(changed(|l| l.command_line.push(' ')), [false, false, false, true]);
        let memory = |l: &mut Launch| l.spec.memory_mib = 1026.try_into().unwrap();
        assert_eq!(changed(memory), [false, true, false, false]);
    }
    let vcpus = |l: &mut Launch| l.spec.vcpus = 3.try_into().unwrap();
    assert_eq!(changed(Launch::simulated(), vcpus), [false, true, false, false]);
}

#[test]
fn the_last_event_of_a_register_holds_its_value() {
    for launch in [Launch::simulated(), Launch::tdx()] {
        for (name, register) in launch.registers().iter() {
            for Alternative { value, events, .. } in register.alternatives() {
                assert_eq!(events.last().unwrap().value, *value, "{name}");
                if name != "mrtd" {
                    let digests: Vec<_> = events.iter().filter_map(|event| event.digest).collect();
                    assert_eq!(Register::replay(&digests).value(), *value, "{name}");
                }
            }
        }
    }
}

#[test]
fn made_up_events_say_so() {
    let registers = Launch::simulated().registers();
    for register in [&registers.rtmr0, &registers.rtmr1, &registers.rtmr2] {
        for event in &register.alternatives()[0].events {
            let says = event.type_name.starts_with("simulated");
            assert_eq!(says, event.type_number.is_none(), "{event:?}");
            assert!(says || event.type_name.starts_with("EV_"), "{event:?}");
        }
    }
    let whole = Launch::simulated().with(|launch| launch.firmware = vec![0x90; 0x2000]);
    let layout = whole.measure().unwrap().firmware_layout;
    assert_eq!(layout, FirmwareLayout::SimulatedWholeImage);
    assert!(layout.to_string().starts_with("simulated"));
}

#[test]
fn layouts_differ_where_public_logs_differ() {
    let events = |layout| {
        let registers = Launch::tdx()
            .with(|launch| launch.spec.firmware.layout = layout)
            .registers();
        (names(&registers.rtmr0), names(&registers.rtmr1))
    };
    let (rtmr0, rtmr1) = events(EventLayout::A2);
    let variable = |name| format!("EV_EFI_VARIABLE_DRIVER_CONFIG {name}");
    let common = [
        "EV_EFI_HANDOFF_TABLES2 TD hand-off block, 1024 MiB".to_owned(),
        "EV_EFI_PLATFORM_FIRMWARE_BLOB2 configuration volume".to_owned(),
        variable("SecureBoot"),
        variable("PK"),
        variable("KEK"),
        variable("db"),
        variable("dbx"),
        "EV_SEPARATOR after the Secure Boot variables".to_owned(),
        "EV_PLATFORM_CONFIG_FLAGS ACPI DATA etc/table-loader".to_owned(),
        "EV_PLATFORM_CONFIG_FLAGS ACPI DATA etc/acpi/rsdp".to_owned(),
        "EV_PLATFORM_CONFIG_FLAGS ACPI DATA etc/acpi/tables".to_owned(),
    ];
    let boot = [
        "EV_EFI_VARIABLE_BOOT BootOrder",
        "EV_EFI_VARIABLE_BOOT Boot0000: UiApp",
    ];
    let separator = "EV_SEPARATOR before the boot option";
    assert_eq!(rtmr0[..11], common);
    assert_eq!(rtmr0[11..], boot);
    let (kernel, calling) = (
        "EV_EFI_BOOT_SERVICES_APPLICATION kernel",
        "EV_EFI_ACTION Calling EFI Application from Boot Option",
    );
    let exits = [
        "EV_EFI_ACTION Exit Boot Services Invocation",
        "EV_EFI_ACTION Exit Boot Services Returned with Success",
    ];
    assert_eq!(rtmr1, [&[kernel, calling, separator][..], &exits].concat());

    let (rtmr0, rtmr1) = events(EventLayout::A1);
    assert_eq!(rtmr0[..11], common);
    assert_eq!(rtmr0[11..], [&boot[..], &[separator]].concat());
    assert_eq!(rtmr1, [&[kernel, calling][..], &exits].concat());

    let (rtmr0, rtmr1) = events(EventLayout::A0);
    assert_eq!(rtmr0[..11], common);
    assert_eq!(rtmr0[11..], [separator]);
    assert_eq!(rtmr1, [&[kernel][..], &boot, &[calling], &exits].concat());

    let (rtmr0, rtmr1) = events(EventLayout::B);
    assert_eq!(rtmr0.len(), 17);
    assert_eq!(rtmr0[2], "EV_PLATFORM_CONFIG_FLAGS QEMU FW CFG BootMenu");
    assert_eq!(rtmr0[3], "EV_PLATFORM_CONFIG_FLAGS QEMU FW CFG bootorder");
    assert_eq!(rtmr0[4..13], common[2..]);
    let last = [
        "EV_EFI_HANDOFF_TABLES SMBIOS tables",
        "EV_EFI_VARIABLE_BOOT BootOrder",
        "EV_EFI_VARIABLE_BOOT Boot0000: BootManagerMenuApp",
        "EV_EFI_VARIABLE_BOOT Boot0001: EFI Firmware Setup",
    ];
    assert_eq!(rtmr0[13..], last);
    assert_eq!(rtmr1, [&[kernel, calling, separator][..], &exits].concat());
}

#[test]
fn layout_b_takes_notice_of_items_of_the_right_length_only() {
    let count = |name: &str, bytes: &[u8]| {
        let launch = Launch::tdx().with(|launch| {
            launch.spec.firmware.layout = EventLayout::B;
            launch
                .tables
                .as_mut()
                .unwrap()
                .insert(name, bytes.to_vec())
                .unwrap();
        });
        names(&launch.registers().rtmr0).len()
    };
    assert_eq!(count("etc/extra-pci-roots", &[1; 8]), 18);
    assert_eq!(count("etc/extra-pci-roots", &[1; 4]), 17);
    assert_eq!(count("etc/boot-menu-wait", &[1; 2]), 18);
    assert_eq!(count("etc/reserved-memory-end", &[1; 8]), 18);
    assert_eq!(count("opt/ovmf/X-PciMmio64Mb", b"65536"), 18);
    assert_eq!(count("opt/ovmf/X-PciMmio64Mb", b""), 17);
    assert_eq!(count("etc/e820", &[1; 20]), 17);
}

#[test]
fn what_the_spec_does_not_pin_is_named() {
    let named = |change: fn(&mut Launch)| {
        let registers = Launch::tdx().with(change).registers();
        let names =
            |register: &PredictedRegister| register.alternatives().iter().map(|a| a.name).collect::<Vec<_>>();
        (
            names(&registers.mrtd),
            names(&registers.rtmr1),
            names(&registers.rtmr2),
        )
    };
    let qemu = |launch: &mut Launch, version: &str| launch.spec.qemu.version = Some(version.parse().unwrap());
    let both = ["header-as-in-file", "header-patched"];
    assert_eq!(named(|_| {}).0, ["single-pass"]);
    assert_eq!(
        named(|l| l.spec.qemu.page_order = None).0,
        ["single-pass", "two-pass"]
    );
    assert_eq!(named(|l| l.spec.qemu.version = None).1, both);
    assert_eq!(named(|_| {}).1, ["header-as-in-file"]);
    assert_eq!(
        named(|l| l.spec.qemu.version = Some("9.2.1".parse().unwrap())).1,
        both[1..]
    );
    // QEMU 10.0 and 10.1 offer both kernels; which the firmware takes depends on the firmware.
    assert_eq!(
        named(|l| l.spec.qemu.version = Some("10.1.0".parse().unwrap())).1,
        both
    );
    for (layout, named_kernel, expected) in [
        (EventLayout::A0, None, both[1]),
        (EventLayout::A1, None, both[1]),
        (EventLayout::B, None, both[0]),
        (EventLayout::A2, Some(true), both[0]),
        (EventLayout::A2, Some(false), both[1]),
    ] {
        let launch = Launch::tdx().with(|launch| {
            qemu(launch, "10.0.2");
            launch.spec.firmware.layout = layout;
            launch.spec.firmware.named_kernel = named_kernel;
        });
        let rtmr1 = launch.registers().rtmr1;
        assert_eq!(rtmr1.alternatives().len(), 1);
        assert_eq!(rtmr1.alternatives()[0].name, expected, "{layout:?}");
    }
    assert_eq!(named(|_| {}).2, ["only"]);
    assert_eq!(named(|l| l.initrd = Some(INITRD)).2, ["suffix"]);
    let b = |l: &mut Launch| (l.initrd, l.spec.firmware.layout) = (Some(INITRD), EventLayout::B);
    assert_eq!(named(b).2, ["prefix", "suffix"]);
}

const INITRD: Initrd = Initrd {
    bytes: 0x1234,
    digest: Digest48([0x1d; 48]),
};

#[test]
fn an_initrd_is_on_the_command_line_and_an_event() {
    let rtmr2 = |argument| {
        let launch = Launch::tdx().with(|launch| {
            launch.initrd = Some(INITRD);
            launch.command_line = "ro".into();
            launch.spec.firmware.initrd_argument = Some(argument);
        });
        launch.registers().rtmr2.sole_value().unwrap()
    };
    let expected = |line: &str| {
        let options: Vec<u8> = line
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        Register::replay([&Digest48::of(&options), &INITRD.digest]).value()
    };
    assert_eq!(rtmr2(crate::InitrdArgument::Prefix), expected("initrd=initrd ro"));
    assert_eq!(rtmr2(crate::InitrdArgument::Suffix), expected("ro initrd=initrd"));
}

#[test]
fn before_10_2_memory_and_initrd_are_in_the_kernels_header() {
    let old = || {
        Launch::tdx().with(|launch| {
            launch.spec.qemu.version = Some("9.2.0".parse().unwrap());
            launch.initrd = Some(INITRD);
        })
    };
    let memory = |l: &mut Launch| l.spec.memory_mib = 1026.try_into().unwrap();
    assert_eq!(changed(old(), memory), [false, true, true, false]);
    let longer = |l: &mut Launch| l.initrd.as_mut().unwrap().bytes += 4096;
    assert_eq!(changed(old(), longer), [false, false, true, false]);
    let unpatched = |l: &mut Launch| l.spec.qemu.version = Some("10.2.0".parse().unwrap());
    assert_eq!(changed(old(), unpatched), [false, false, true, false]);
}

#[test]
fn what_nobody_can_know_is_refused_with_the_remedy() {
    let check = |change: fn(&mut Launch), says: &str| {
        let error = Launch::tdx().with(change).measure().unwrap_err();
        assert!(matches!(error, MeasureError::Unpredictable { .. }), "{error:?}");
        assert!(error.to_string().contains(says), "{error}");
    };
    check(|l| l.tables = None, "pass them with --tables");
    check(|l| l.firmware = vec![0x90; 0x2000], "no TDVF metadata");
    let gpu = |l: &mut Launch| l.spec.devices = vec![crate::DeviceSpec::new(DeviceKind::VfioGpu)];
    check(gpu, "state hole64_gib in [pci]");
    check(|l| l.tables = Some(FwCfgFiles::default()), "etc/table-loader");
    let b = |l: &mut Launch| (l.spec.firmware.layout, l.smbios) = (EventLayout::B, None);
    check(b, "layout b measures SMBIOS");
    let items = |l: &mut Launch| {
        (l.spec.firmware.layout, l.tables) = (EventLayout::B, Some(FwCfgFiles::default()));
    };
    check(items, "\"BootMenu\"");
    check(
        |l| l.spec.platform = LaunchPlatform::Snp,
        "SEV-SNP has no TDX registers",
    );
    let with_hole = Launch::tdx().with(|launch| {
        launch.spec.devices = vec![crate::DeviceSpec::new(DeviceKind::VfioGpu)];
        launch.spec.pci.hole64_gib = Some(1024.try_into().unwrap());
    });
    assert!(with_hole.measure().is_ok());
}

#[test]
fn a_command_line_that_the_kernel_would_cut_or_change_is_refused() {
    for line in ["x".repeat(COMMAND_LINE_BYTES_MAX + 1), "a\nb".into(), "é".into()] {
        let launch = Launch::tdx().with(|launch| launch.command_line = line);
        assert!(matches!(launch.measure(), Err(MeasureError::CommandLine { .. })));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn hostile_files_never_panic(
        firmware in prop::collection::vec((0usize..0x5000, any::<u8>()), 0..24),
        kernel in prop::collection::vec((0usize..0x400, any::<u8>()), 0..24),
        layout in prop::sample::select(EventLayout::ALL.to_vec()),
        state in prop::sample::select(vec![SecureBoot::Absent, SecureBoot::Off, SecureBoot::On]),
    ) {
        let mut launch = secure(state, &signature_list(SHA256, &[0; 32]));
        launch.spec.firmware.layout = layout;
        for (at, byte) in firmware {
            launch.firmware[at] = byte;
        }
        for (at, byte) in kernel {
            launch.kernel[at] = byte;
        }
        let _ = launch.measure();
    }
}
