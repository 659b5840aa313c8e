//! A launch as the auditor describes it, predicted as it is and with one thing changed.

use cocoon_evidence::Digest48;

use super::{
    Expectation, Expected, ExpectedEvent, MemorySearch, PREDICTED_RTMRS, Variation, command_line_variations,
    structure_variations,
};
use crate::{
    DeviceKind, DeviceSpec, EventLayout, Firmware, FwCfgFiles, Initrd, LaunchInputs, LaunchPlatform,
    LaunchSpec, MeasureError, MemoryMib, PageOrder, PredictedRegister, Prediction, QemuVersion, SecureBoot,
    eventlog::EventType, measure,
};

/// What QEMU hands the firmware of one machine.
#[derive(Debug, Clone)]
pub struct MachineItems {
    /// ACPI tables and configuration items.
    pub tables: FwCfgFiles,
    /// SHA-384 of the SMBIOS structures, if they are known.
    pub smbios: Option<Digest48>,
}

/// Everything that a prediction needs.
pub struct Launch<'a> {
    /// The whole firmware file.
    pub firmware: &'a [u8],
    /// The whole kernel file.
    pub kernel: &'a [u8],
    /// The initrd, if there is one.
    pub initrd: Option<Initrd>,
    /// As QEMU's `-append` gets it.
    pub command_line: &'a str,
    /// The machine.
    pub spec: &'a LaunchSpec,
    /// What QEMU would hand to the firmware of a machine; `None` for machines that nobody has made tables for.
    pub items: &'a dyn Fn(&LaunchSpec) -> Option<MachineItems>,
}

impl<'a> Launch<'a> {
    /// Predicts the launch, and what it would be with one change each.
    ///
    /// # Errors
    /// The launch itself cannot be predicted. A change that cannot is left out.
    pub fn expectation(&'a self, launch_document: Option<Digest48>) -> Result<Expectation<'a>, MeasureError> {
        let items = (self.items)(self.spec);
        let expected = self.predict(self.spec, items.as_ref(), self.initrd)?;
        Ok(Expectation {
            variations: self.variations(&expected, items.as_ref()),
            memory: self.memory_search(),
            expected,
            launch_document,
        })
    }

    fn predict(
        &self,
        spec: &LaunchSpec,
        items: Option<&MachineItems>,
        initrd: Option<Initrd>,
    ) -> Result<Expected, MeasureError> {
        let prediction = measure(LaunchInputs {
            firmware: self.firmware,
            kernel: self.kernel,
            initrd,
            command_line: self.command_line,
            spec,
            tables: items.map(|items| &items.tables),
            smbios: items.and_then(|items| items.smbios),
        })?;
        Ok(Expected::from(&prediction))
    }

    fn variations(&self, expected: &Expected, items: Option<&MachineItems>) -> Vec<Variation> {
        let mut variations = Vec::new();
        let has_tables = self.spec.platform != LaunchPlatform::Simulated;
        for Change {
            id,
            title,
            change,
            spec,
            machine,
        } in changes(self.spec)
        {
            let machine = machine && has_tables;
            // A machine with other hardware has tables of its own; one that is configured alike has the same.
            let own = if machine {
                (self.items)(&spec)
            } else {
                items.cloned()
            };
            if machine && own.is_none() {
                continue;
            }
            if let Ok(expected) = self.predict(&spec, own.as_ref(), self.initrd) {
                variations.push(Variation {
                    id,
                    title,
                    change,
                    expected,
                });
            }
        }
        if let (Some(_), Ok(expected)) = (self.initrd, self.predict(self.spec, items, None)) {
            variations.push(Variation {
                id: "initrd-missing",
                title: "the kernel got no initrd".to_owned(),
                change: "start the machine with the manifest's initrd".to_owned(),
                expected,
            });
        }
        variations.extend(command_line_variations(expected, self.command_line));
        variations.extend(structure_variations(expected));
        variations.retain(|variation| variation.expected != *expected);
        variations
    }

    fn memory_search(&'a self) -> Option<MemorySearch<'a>> {
        let firmware = Firmware::parse(self.firmware).ok()?;
        firmware.hand_off_block(self.spec.memory_mib.bytes()).ok()??;
        let with = |mib: u64| {
            let mut spec = self.spec.clone();
            spec.memory_mib = MemoryMib::try_from(u32::try_from(mib).ok()?).ok()?;
            // QEMU's tables of both machines may differ too; those of this one are a good start.
            let items = (self.items)(&spec).or_else(|| (self.items)(self.spec));
            self.predict(&spec, items.as_ref(), self.initrd).ok()
        };
        Some(MemorySearch {
            block: Box::new(move |mib| firmware.hand_off_block(mib << 20).ok()?),
            predict: Box::new(with),
            expected_mib: self.spec.memory_mib.get().into(),
        })
    }
}

impl From<&Prediction> for Expected {
    fn from(prediction: &Prediction) -> Self {
        let registers = &prediction.registers;
        let lists = |register: &PredictedRegister| register.alternatives().iter().map(events).collect();
        let rtmrs: [Vec<Vec<ExpectedEvent>>; PREDICTED_RTMRS] = [
            lists(&registers.rtmr0),
            lists(&registers.rtmr1),
            lists(&registers.rtmr2),
        ];
        Self {
            mrtd: registers.mrtd.values().collect(),
            rtmrs,
        }
    }
}

fn events(alternative: &crate::Alternative) -> Vec<ExpectedEvent> {
    let event = |event: &crate::PredictedEvent| {
        Some(ExpectedEvent {
            event_type: event.type_number.map(EventType),
            name: event.name.clone(),
            digest: event.digest?,
        })
    };
    alternative.events.iter().filter_map(event).collect()
}

/// One change of the LaunchSpec.
struct Change {
    id: &'static str,
    title: String,
    change: String,
    spec: LaunchSpec,
    /// Whether QEMU makes other tables for it.
    machine: bool,
}

/// All changes, most likely first within what each register can tell apart.
fn changes(spec: &LaunchSpec) -> Vec<Change> {
    [
        page_orders(spec),
        kernel_headers(spec),
        layouts(spec),
        secure_boot(spec),
        vcpus(spec),
        memory_sizes(spec),
        devices(spec),
        windows(spec),
        qemu_versions(spec),
    ]
    .into_iter()
    .flatten()
    .filter(|change| change.spec != *spec)
    .collect()
}

fn edited(
    spec: &LaunchSpec,
    id: &'static str,
    machine: bool,
    title: String,
    change: String,
    edit: impl FnOnce(&mut LaunchSpec),
) -> Change {
    let mut spec = spec.clone();
    edit(&mut spec);
    Change {
        id,
        title,
        change,
        spec,
        machine,
    }
}

fn page_orders(spec: &LaunchSpec) -> Vec<Change> {
    let change = |order: PageOrder| {
        let title = format!(
            "the host adds and measures the firmware's pages in {} order",
            order.name()
        );
        let change = format!(
            "state page_order = \"{}\" in the LaunchSpec's [qemu]",
            order.name()
        );
        edited(spec, "page-order", false, title, change, |spec| {
            spec.qemu.page_order = Some(order);
        })
    };
    PageOrder::ALL.map(change).into()
}

/// Two versions stand for all: only whether the header is written to matters here.
fn kernel_headers(spec: &LaunchSpec) -> Vec<Change> {
    let change = |version: &str, named: bool, what: &str| {
        let title = format!("QEMU {what} the kernel's setup header");
        let change =
            "state the QEMU version that starts the machine in the LaunchSpec's [qemu], and named_kernel \
                      in [firmware]: QEMU writes to the header before 10.2"
                .to_owned();
        edited(spec, "qemu-header", false, title, change, |spec| {
            spec.qemu.version = version.parse::<QemuVersion>().ok();
            spec.firmware.named_kernel = Some(named);
        })
    };
    vec![
        change("8.2.0", false, "wrote into"),
        change("10.2.0", true, "left alone"),
    ]
}

fn layouts(spec: &LaunchSpec) -> Vec<Change> {
    let change = |layout: EventLayout| {
        let title = format!("the firmware measures in the order of layout {}", layout.name());
        let change = format!(
            "state layout = \"{}\" in the LaunchSpec's [firmware], or use the firmware that it names",
            layout.name()
        );
        edited(spec, "firmware-layout", false, title, change, |spec| {
            spec.firmware.layout = layout;
        })
    };
    EventLayout::ALL.map(change).into()
}

fn secure_boot(spec: &LaunchSpec) -> Vec<Change> {
    let change = |state: SecureBoot| {
        let title = format!("Secure Boot is {} in the firmware", state.name());
        let change = format!(
            "state secure_boot = \"{}\" in the LaunchSpec's [firmware]",
            state.name()
        );
        edited(spec, "secure-boot", false, title, change, |spec| {
            spec.firmware.secure_boot = state;
        })
    };
    [SecureBoot::Absent, SecureBoot::Off, SecureBoot::On]
        .map(change)
        .into()
}

fn vcpus(spec: &LaunchSpec) -> Vec<Change> {
    let count = (1u32..=255).filter_map(|count| count.try_into().ok());
    count
        .map(|count: crate::Vcpus| {
            let title = format!(
                "the machine has {} vCPUs, the LaunchSpec says {}",
                count.get(),
                spec.vcpus.get()
            );
            let change = format!(
                "set vcpus = {}, or start the machine with -smp {}",
                count.get(),
                spec.vcpus.get()
            );
            edited(spec, "vcpus", true, title, change, |spec| spec.vcpus = count)
        })
        .collect()
}

/// Usual sizes for which QEMU makes other tables too; [`MemorySearch`] tries all others with the same tables. The
/// simulated platform has no tables, but its event for the machine holds the size.
fn memory_sizes(spec: &LaunchSpec) -> Vec<Change> {
    let simulated = spec.platform == LaunchPlatform::Simulated;
    let mib_max = if simulated { 16 << 10 } else { 2 << 20 };
    let halves = (1u32..=8).map(|halves| halves * 512);
    let small = (5u32..=64).map(|gib| gib << 10);
    let large = (80u32..=2048).step_by(16).map(|gib| gib << 10);
    halves
        .chain(small)
        .chain(large)
        .filter(|mib| *mib <= mib_max)
        .filter_map(|mib| MemoryMib::try_from(mib).ok())
        .map(|memory| {
            let (title, change) = super::memory::words(memory.get().into(), spec.memory_mib.get().into());
            edited(spec, "memory", true, title, change, |spec| {
                spec.memory_mib = memory;
            })
        })
        .collect()
}

fn devices(spec: &LaunchSpec) -> Vec<Change> {
    const KINDS: [DeviceKind; 4] = [
        DeviceKind::VirtioNet,
        DeviceKind::VirtioBlk,
        DeviceKind::VhostVsock,
        DeviceKind::VfioGpu,
    ];
    let listed = spec.pcie_devices();
    let with = |title: String, devices: Vec<DeviceSpec>| {
        let change =
            "list exactly the machine's devices, in their order, in the LaunchSpec's [[devices]]".to_owned();
        edited(spec, "devices", true, title, change, |spec| {
            spec.devices = devices;
        })
    };
    let fewer = (0..listed.len()).map(|position| {
        let mut devices = listed.clone();
        let gone = devices.remove(position);
        with(
            format!(
                "the machine has no device {} ({})",
                position + 1,
                gone.kind.name()
            ),
            devices,
        )
    });
    let more = KINDS.into_iter().flat_map(|kind| {
        let listed = listed.clone();
        (0..=listed.len()).rev().map(move |position| {
            let mut devices = listed.clone();
            devices.insert(position, DeviceSpec::new(kind));
            (kind, position, devices)
        })
    });
    let more = more.map(|(kind, position, devices)| {
        with(
            format!(
                "the machine has one {} more, in place {}",
                kind.name(),
                position + 1
            ),
            devices,
        )
    });
    fewer.chain(more).collect()
}

fn windows(spec: &LaunchSpec) -> Vec<Change> {
    let sizes = (0..=18)
        .map(|bits| 1u32 << bits)
        .filter_map(|gib| gib.try_into().ok())
        .map(Some);
    [None]
        .into_iter()
        .chain(sizes)
        .map(|size: Option<crate::Hole64Gib>| {
            let said = size.map_or_else(
                || "QEMU's own size".to_owned(),
                |size| format!("{} GiB", size.get()),
            );
            let title = format!("the PCI window above 4 GiB has {said}");
            let change =
                "state the machine's pci-hole64-size as hole64_gib in the LaunchSpec's [pci]".to_owned();
            edited(spec, "pci-hole64", true, title, change, |spec| {
                spec.pci.hole64_gib = size;
            })
        })
        .collect()
}

fn qemu_versions(spec: &LaunchSpec) -> Vec<Change> {
    let versions = (8u8..=11).flat_map(|major| (0u8..=2).map(move |minor| format!("{major}.{minor}")));
    versions
        .filter_map(|version| version.parse::<QemuVersion>().ok())
        .map(|version| {
            let title = format!("QEMU {version} started the machine");
            let change = format!("state version = \"{version}\" in the LaunchSpec's [qemu]");
            edited(spec, "qemu-version", true, title, change, |spec| {
                spec.qemu.version = Some(version);
            })
        })
        .collect()
}
