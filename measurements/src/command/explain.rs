//! `explain`: what was predicted and what was measured in, the likely cause out.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use cocoon_evidence::{Digest48, EventKind, EvidenceBundle, Rtmr};
use cocoon_measurements::{
    Artifact, INITRD_BYTES_MAX, Initrd, LAUNCH_DOCUMENT_BYTES_MAX, LaunchSpec, Manifest,
    acpi::{MachineShape, TABLES_FILE_BYTES_MAX, TablesFile},
    eventlog::{EventLog, HashAlgorithm, LOG_BYTES_MAX, LoggedRegister},
    explain::{Certainty, Explanation, Launch, MachineItems, Observed, SeenEvent, Subject, explain},
    fields::Fields,
};

use super::{
    Exit,
    input::{read_bounded, unwrap_evidence},
    output::{Table, Tone, print_json, print_text, printable, toned},
    predict::smbios,
};

#[derive(clap::Args)]
pub(crate) struct Explain {
    /// manifest.json of the image; firmware and kernel lie beside it and are checked.
    #[arg(long, value_name = "FILE")]
    manifest: PathBuf,
    /// LaunchSpec: the machine as it should be.
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
    /// Tables of the machine, as `cocoon-measure acpi` writes them or a release publishes them; needed for platform
    /// = "tdx". Those of other machines are tried too. May be given several times.
    #[arg(long, value_name = "FILE")]
    tables: Vec<PathBuf>,
    /// An initrd that QEMU gets with -initrd; Cocoon's own images have none.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The event log of the machine: CCEL, or dstack's in JSON.
    #[arg(long, value_name = "FILE", required_unless_present = "quote")]
    log: Option<PathBuf>,
    /// A TDX quote, TD report or evidence bundle of the machine. With both, the log explains the quote.
    #[arg(long, value_name = "FILE")]
    quote: Option<PathBuf>,
    /// The launch document that the guest should have; compared with the one in an evidence bundle.
    #[arg(long, value_name = "FILE")]
    launch_document: Option<PathBuf>,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// A quote or an evidence bundle.
const QUOTE_BYTES_MAX: usize = 256 * 1024;

pub(crate) fn run(arguments: &Explain) -> Result<Exit> {
    let manifest = Manifest::load(&arguments.manifest)?;
    let spec = LaunchSpec::load(&arguments.spec)?;
    let path = |artifact: &Artifact| Manifest::artifact_path(&arguments.manifest, artifact);
    let artifacts = &manifest.artifacts;
    let firmware = artifacts.firmware.read("firmware", &path(&artifacts.firmware))?;
    let kernel = artifacts.kernel.read("kernel", &path(&artifacts.kernel))?;
    let document = match &arguments.launch_document {
        Some(path) => Some(Digest48::of(&read_bounded(path, LAUNCH_DOCUMENT_BYTES_MAX)?)),
        None => None,
    };
    let initrd = match &arguments.initrd {
        Some(path) => Some(Initrd::of(&read_bounded(path, INITRD_BYTES_MAX)?)),
        None => None,
    };
    let tables = arguments
        .tables
        .iter()
        .map(|path| read_tables(path))
        .collect::<Result<Vec<_>>>()?;
    let observed = observe(arguments)?;
    let launch = Launch {
        firmware: &firmware,
        kernel: &kernel,
        initrd,
        command_line: &manifest.command_line,
        spec: &spec,
        items: &|other| items(&tables, other),
    };
    let explanation = explain(&launch.expectation(document)?, &observed);
    if arguments.json {
        print_json(&explanation)?;
    } else {
        print_text(&text(&explanation))?;
    }
    Ok(if explanation.agrees {
        Exit::Done
    } else {
        Exit::Differs
    })
}

fn read_tables(path: &Path) -> Result<TablesFile> {
    let bytes = read_bounded(path, TABLES_FILE_BYTES_MAX)?;
    TablesFile::parse(&bytes).with_context(|| format!("cannot use {}", path.display()))
}

/// What QEMU makes for a machine, if a file has it.
fn items(tables: &[TablesFile], spec: &LaunchSpec) -> Option<MachineItems> {
    let shape = MachineShape::of(spec).ok()?;
    let found = tables
        .iter()
        .find_map(|file| file.find(&shape, spec.qemu.version).ok())?;
    let smbios = smbios(&found.files, spec).ok().flatten();
    Some(MachineItems {
        tables: found.files.clone(),
        smbios,
    })
}

fn observe(arguments: &Explain) -> Result<Observed> {
    let mut observed = Observed::default();
    if let Some(path) = &arguments.quote {
        let bytes = read_bounded(path, QUOTE_BYTES_MAX)?;
        if let Ok(bundle) = EvidenceBundle::decode(&bytes) {
            observed.launch_document = bundle.events.payload(EventKind::LaunchDocument).map(Digest48::of);
        }
        let what = || format!("cannot use {}", path.display());
        let fields = Fields::parse(&unwrap_evidence(bytes)?).with_context(what)?;
        let claimed = fields
            .registers()
            .with_context(|| format!("{} has no TDX registers", path.display()))?;
        observed.mrtd = Some(claimed.mrtd);
        let [rtmr0, rtmr1, rtmr2, _] = claimed.rtmrs;
        observed.quoted = Some([rtmr0, rtmr1, rtmr2]);
    }
    if let Some(path) = &arguments.log {
        let log = EventLog::parse(&read_bounded(path, LOG_BYTES_MAX)?, None)
            .with_context(|| format!("cannot use {}", path.display()))?;
        observed.logged = Some(seen(&log));
    }
    Ok(observed)
}

/// Events of RTMR0 to RTMR2; of a TPM's log there are none.
fn seen(log: &EventLog) -> [Vec<SeenEvent>; 3] {
    let mut registers: BTreeMap<LoggedRegister, Vec<SeenEvent>> = BTreeMap::new();
    for event in log.events.iter().filter(|event| event.is_extended()) {
        let digest = event.digest(HashAlgorithm::SHA384);
        let Some(digest) = digest.and_then(|digest| digest.bytes.as_slice().try_into().ok()) else {
            continue;
        };
        registers.entry(event.register).or_default().push(SeenEvent {
            event_type: event.event_type,
            description: event.describe(),
            digest: Digest48(digest),
        });
    }
    [Rtmr::Rtmr0, Rtmr::Rtmr1, Rtmr::Rtmr2]
        .map(|rtmr| registers.remove(&LoggedRegister::Rtmr(rtmr)).unwrap_or_default())
}

fn text(explanation: &Explanation) -> String {
    if explanation.agrees {
        return format!(
            "{}: what was measured is what was predicted\n",
            toned(Tone::Good, "agrees")
        );
    }
    let names = |subjects: &[Subject]| {
        subjects
            .iter()
            .map(|subject| subject.name())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut out = format!(
        "{} {}\n\n",
        toned(Tone::Bad, "differs:"),
        names(&explanation.differing)
    );
    for (position, cause) in explanation.causes.iter().enumerate() {
        let certainty = match cause.certainty {
            Certainty::Reproduced => "reproduced: with this change the prediction gives the measured value",
            Certainty::Seen => "seen in the evidence",
            Certainty::Possible => "possible",
        };
        out += &format!("{}. {} [{}]\n", position + 1, printable(&cause.title), cause.id);
        let mut table = Table::default();
        table.row(["registers", &names(&cause.registers)]);
        table.row(["certainty", certainty]);
        table.row(["change", &printable(&cause.change)]);
        out += &table.text("   ");
    }
    out
}
