//! What an image measures to on the machines of `measurements/profiles` and `profiles-snp`: claims, which an auditor
//! computes again with `cocoon-measure predict`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use cocoon_evidence::{Digest32, Digest48};
use cocoon_measurements::{
    Artifact, ExpectedLaunch, ImageProfile, LaunchInputs, LaunchPlatform, LaunchSpec, Manifest, MeasureError,
    PredictedRegister, RegisterName, SnpSpec, measure_image,
    snp::{SnpError, SnpFirmwareInput, SnpKernel, SnpLaunchInputs, SnpVmm, snp_launch_digest},
};

use super::{OriginError, file_error};

/// LaunchSpecs of the machines that a release publishes values for, with TDX and with SEV-SNP.
const PROFILES: [&str; 2] = ["measurements/profiles", "measurements/profiles-snp"];
/// Why a launch cannot be predicted.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// With TDX.
    #[error(transparent)]
    Tdx(#[from] MeasureError),
    /// With SEV-SNP.
    #[error(transparent)]
    Snp(#[from] SnpError),
    /// A LaunchSpec that leaves the processor open.
    #[error("platform = \"snp\" needs vcpu_type in [snp], such as \"EPYC-v4\"")]
    VcpuType,
}

/// Predicts what an image in `folder` measures to for every LaunchSpec of the source tree, as `cocoon-measure predict`
/// does without tables: MRTD, RTMR1 and RTMR2, or the launch digest of SEV-SNP if there is firmware for it. RTMR0 is not
/// predicted: the ACPI tables in it are made by the QEMU of whoever launches. Empty for a dev image whose firmware boots
/// on no TDX machine.
///
/// # Errors
/// See [`OriginError`].
pub fn expected(
    source: &Path,
    folder: &Path,
    manifest: &Manifest,
) -> Result<Vec<ExpectedLaunch>, OriginError> {
    let read =
        |(name, artifact): (&'static str, &Artifact)| artifact.read(name, &folder.join(&artifact.file));
    let artifacts = &manifest.artifacts;
    let image = Image {
        firmware: read(("firmware", &artifacts.firmware))?,
        firmware_snp: artifacts
            .firmware_snp
            .as_ref()
            .map(|it| read(("firmware_snp", it)))
            .transpose()?,
        kernel: read(("kernel", &artifacts.kernel))?,
        command_line: &manifest.command_line,
    };
    let mut launches = Vec::new();
    for path in launch_specs(source)? {
        let launch_spec = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let text = fs::read(&path).map_err(|source| file_error(&path, source))?;
        let registers = match image.measure(&LaunchSpec::load(&path)?) {
            Ok(Some(registers)) => registers,
            Ok(None) => continue,
            Err(LaunchError::Tdx(MeasureError::Unpredictable { register: "MRTD", .. }))
                if manifest.profile == ImageProfile::Dev =>
            {
                return Ok(vec![]);
            }
            Err(source) => return Err(OriginError::Measure { launch_spec, source }),
        };
        launches.push(ExpectedLaunch {
            launch_spec,
            launch_spec_sha256: Digest32::of(&text),
            registers,
        });
    }
    Ok(launches)
}

/// What of an image is measured.
struct Image<'a> {
    firmware: Vec<u8>,
    firmware_snp: Option<Vec<u8>>,
    kernel: Vec<u8>,
    command_line: &'a str,
}

type Registers = BTreeMap<RegisterName, Vec<Digest48>>;

impl Image<'_> {
    /// None for a kind of machine that the image has no firmware for.
    fn measure(&self, spec: &LaunchSpec) -> Result<Option<Registers>, LaunchError> {
        match (spec.platform, &self.firmware_snp) {
            (LaunchPlatform::Snp, Some(firmware)) => self.launch_digest(firmware, spec).map(Some),
            (LaunchPlatform::Snp, None) => Ok(None),
            _ => Ok(Some(self.registers(spec)?)),
        }
    }

    fn registers(&self, spec: &LaunchSpec) -> Result<Registers, MeasureError> {
        let registers = measure_image(LaunchInputs {
            firmware: &self.firmware,
            kernel: &self.kernel,
            initrd: None,
            command_line: self.command_line,
            spec,
            tables: None,
            smbios: None,
        })?;
        let values = |register: &PredictedRegister| register.values().collect();
        Ok(BTreeMap::from([
            (RegisterName::Mrtd, values(&registers.mrtd)),
            (RegisterName::Rtmr1, values(&registers.rtmr1)),
            (RegisterName::Rtmr2, values(&registers.rtmr2)),
        ]))
    }

    fn launch_digest(&self, firmware: &[u8], spec: &LaunchSpec) -> Result<Registers, LaunchError> {
        let SnpSpec {
            vcpu_type,
            guest_features,
        } = &spec.snp;
        let predicted = snp_launch_digest(&SnpLaunchInputs {
            firmware: SnpFirmwareInput::Whole(firmware),
            kernel: Some(SnpKernel {
                kernel: &self.kernel,
                initrd: &[],
                command_line: self.command_line,
            }),
            vcpus: spec.vcpus.get(),
            vcpu_type: vcpu_type.as_deref().ok_or(LaunchError::VcpuType)?,
            guest_features: guest_features.0,
            vmm: SnpVmm::Qemu,
        })?;
        Ok(BTreeMap::from([(
            RegisterName::LaunchDigest,
            vec![predicted.digest],
        )]))
    }
}

/// By name, so that the same tree gives the same manifest.
fn launch_specs(source: &Path) -> Result<Vec<PathBuf>, OriginError> {
    let mut paths = Vec::new();
    for folder in PROFILES.map(|folder| source.join(folder)) {
        let failed = |source| file_error(&folder, source);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            paths.push(entry.map_err(failed)?.path());
        }
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn source() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

    fn image(firmware_snp: Option<Vec<u8>>) -> Image<'static> {
        Image {
            firmware: vec![0; 4096],
            firmware_snp,
            kernel: vec![0; 4096],
            command_line: "quiet",
        }
    }

    #[test]
    fn every_machine_of_the_tree_has_a_name_of_its_own_and_both_platforms_are_there() {
        let paths = launch_specs(source()).unwrap();
        let names: BTreeSet<_> = paths.iter().filter_map(|path| path.file_stem()).collect();
        assert_eq!(names.len(), paths.len());
        let specs = paths.iter().map(|path| LaunchSpec::load(path).unwrap());
        let (snp, tdx): (Vec<_>, Vec<_>) = specs.partition(|spec| spec.platform == LaunchPlatform::Snp);
        assert!(tdx.iter().all(|spec| spec.platform == LaunchPlatform::Tdx));
        assert!(!tdx.is_empty() && !snp.is_empty());
        assert!(snp.iter().all(|spec| spec.snp.vcpu_type.is_some()));
    }

    /// Rather than with a digest of firmware that SEV-SNP does not start.
    #[test]
    fn a_machine_with_sev_snp_is_left_out_without_firmware_for_it_and_an_error_with_bad_firmware() {
        let path = source().join(PROFILES[1]).join("snp-4vcpu-16gib.toml");
        let mut spec = LaunchSpec::load(&path).unwrap();
        assert!(matches!(image(None).measure(&spec), Ok(None)));
        let bad = image(Some(vec![0; 4096]));
        assert!(matches!(
            bad.measure(&spec),
            Err(LaunchError::Snp(SnpError::Firmware(_)))
        ));
        spec.snp.vcpu_type = None;
        assert!(matches!(bad.measure(&spec), Err(LaunchError::VcpuType)));
    }
}
