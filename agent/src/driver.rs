//! NVIDIA's driver, in images for GPUs: its modules, which lie in the verified root, and the device files that programs
//! reach it by, which it does not make itself.
//!
//! Comes before [`crate::modules::lock`], which closes the kernel's loader for good. The kernel takes modules of the
//! root only (docs/decisions/0012). Which GPUs there are is the driver's word; whether one is to be trusted is for
//! clients to judge, by its evidence.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    sys::stat::{Mode, SFlag, makedev, mknod},
};
use tracing::info;

use crate::console::EXPORT;

/// Where images for GPUs have the modules.
pub const FOLDER: &str = "/lib/modules";
/// In the order in which they need each other. The first finds the GPUs.
const MODULES: [&str; 2] = ["nvidia.ko", "nvidia-uvm.ko"];

/// Numbers of the driver's devices (NVIDIA open-gpu-kernel-modules, kernel-open/common/inc/nv-chardev-numbers.h).
const MAJOR: u64 = 195;
const MINOR_MAX: u64 = 247;
const MINOR_CONTROL: u64 = 255;
/// The second module's device gets its number when it is loaded.
const UVM: &str = "nvidia-uvm";

/// Why a guest with a driver cannot use it. The guest powers off.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The kernel refused a module, or the module this machine.
    #[error("loading {module}: {error}")]
    Load {
        /// Its file.
        module: &'static str,
        /// The kernel's word.
        error: io::Error,
    },
    /// What the driver says of itself.
    #[error("asking the driver for its devices: {0}")]
    Devices(io::Error),
    /// A device file.
    #[error("making the device file {name}: {error}")]
    DeviceFile {
        /// In `/dev`.
        name: String,
        /// The kernel's word.
        error: io::Error,
    },
}

/// A device file that has to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    name: String,
    major: u64,
    minor: u64,
}

/// Loads the driver, and says whether it runs: not in images without one, nor where it finds no GPU. Then the guest is
/// one without GPUs, which is a state like any other.
///
/// # Errors
/// See [`DriverError`].
pub fn load(folder: &Path, insert: impl Fn(&File) -> io::Result<()>) -> Result<bool, DriverError> {
    for module in MODULES {
        let failed = |error| DriverError::Load { module, error };
        let first = module == MODULES[0];
        let file = match File::open(folder.join(module)) {
            Err(error) if first && error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened.map_err(failed)?,
        };
        match insert(&file) {
            Err(error) if first && error.raw_os_error() == Some(Errno::ENODEV as i32) => {
                info!(target: EXPORT, "NVIDIA's driver finds no GPU");
                return Ok(false);
            }
            inserted => inserted.map_err(failed)?,
        }
    }
    Ok(true)
}

/// Gives a module to the kernel.
///
/// # Errors
/// The kernel's or the module's.
pub fn insert(module: &File) -> io::Result<()> {
    Ok(finit_module(module, c"", ModuleInitFlags::empty())?)
}

/// The devices of a driver that runs: one to control it, one for each GPU, one for the memory that they share with
/// programs.
///
/// # Errors
/// [`DriverError::Devices`]: the driver does not say.
pub fn devices(proc: &Path) -> Result<Vec<Device>, DriverError> {
    let device = |name: String, major, minor| Device { name, major, minor };
    let numbers = fs::read_to_string(proc.join("devices")).map_err(DriverError::Devices)?;
    let uvm = number_of(UVM, &numbers).ok_or_else(|| says_nothing("the number of nvidia-uvm"))?;
    let mut devices = vec![
        device("nvidiactl".into(), MAJOR, MINOR_CONTROL),
        device(UVM.into(), uvm, 0),
    ];
    for gpu in fs::read_dir(proc.join("driver/nvidia/gpus")).map_err(DriverError::Devices)? {
        let path = gpu.map_err(DriverError::Devices)?.path().join("information");
        let text = fs::read_to_string(path).map_err(DriverError::Devices)?;
        let minor = minor_of(&text).ok_or_else(|| says_nothing("the number of a GPU"))?;
        devices.push(device(format!("nvidia{minor}"), MAJOR, minor));
    }
    Ok(devices)
}

fn says_nothing(what: &str) -> DriverError {
    let missing = io::Error::new(io::ErrorKind::InvalidData, format!("it does not say {what}"));
    DriverError::Devices(missing)
}

/// From `/proc/devices`: a line for each number and name, those of block devices last.
fn number_of(name: &str, devices: &str) -> Option<u64> {
    let characters = devices.split("Block devices:").next()?;
    let mut lines = characters.lines().filter_map(|line| line.trim().split_once(' '));
    lines.find(|(_, found)| *found == name)?.0.parse().ok()
}

fn minor_of(information: &str) -> Option<u64> {
    let mut lines = information.lines();
    let minor = lines.find_map(|line| line.strip_prefix("Device Minor:"))?;
    let minor = minor.trim().parse().ok()?;
    (minor <= MINOR_MAX).then_some(minor)
}

/// Makes device files that root alone may open: `cocoon-gpu` does.
///
/// # Errors
/// [`DriverError::DeviceFile`].
pub fn make_files(devices: &[Device], dev: &Path) -> Result<(), DriverError> {
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    for Device { name, major, minor } in devices {
        let made = mknod(&dev.join(name), SFlag::S_IFCHR, mode, makedev(*major, *minor));
        made.map_err(|errno| DriverError::DeviceFile {
            name: name.clone(),
            error: errno.into(),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, io::Read as _};

    use super::*;

    /// A root's folder with these modules; each holds its name.
    fn modules(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(folder.path().join(name), name).unwrap();
        }
        folder
    }

    /// Loads from a folder into a kernel that answers so, and says what that was given.
    fn loaded(folder: &Path, answer: io::Result<()>) -> (Result<bool, DriverError>, Vec<String>) {
        let given = RefCell::new(vec![]);
        let code = answer.err().and_then(|error| error.raw_os_error());
        let result = load(folder, |mut file| {
            let mut name = String::new();
            file.read_to_string(&mut name).unwrap();
            given.borrow_mut().push(name);
            code.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code)))
        });
        (result, given.into_inner())
    }

    #[test]
    fn modules_are_loaded_in_the_order_in_which_they_need_each_other() {
        let (result, given) = loaded(modules(&MODULES).path(), Ok(()));
        assert!(result.unwrap());
        assert_eq!(given, MODULES);
    }

    #[test]
    fn an_image_without_a_driver_and_a_machine_without_a_gpu_are_guests_without_gpus() {
        let (result, given) = loaded(modules(&[]).path(), Ok(()));
        assert_eq!((result.unwrap(), given.len()), (false, 0));
        let (result, given) = loaded(modules(&MODULES).path(), Err(Errno::ENODEV.into()));
        assert_eq!((result.unwrap(), given.len()), (false, 1));
    }

    #[test]
    fn a_module_that_is_refused_or_missing_ends_the_boot() {
        let (result, _) = loaded(modules(&MODULES).path(), Err(Errno::EPERM.into()));
        assert!(matches!(
            result,
            Err(DriverError::Load {
                module: "nvidia.ko",
                ..
            })
        ));
        let (result, _) = loaded(modules(&MODULES[..1]).path(), Ok(()));
        assert!(matches!(
            result,
            Err(DriverError::Load {
                module: "nvidia-uvm.ko",
                ..
            })
        ));
    }

    const NUMBERS: &str = "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n234 nvidia-caps\n511 nvidia-uvm\n\n\
                           Block devices:\n254 virtblk\n";

    fn proc(numbers: &str, gpus: &[&str]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        fs::write(proc.path().join("devices"), numbers).unwrap();
        fs::create_dir_all(proc.path().join("driver/nvidia/gpus")).unwrap();
        for (index, text) in gpus.iter().enumerate() {
            let gpu = proc.path().join(format!("driver/nvidia/gpus/0000:0{index}:00.0"));
            fs::create_dir(&gpu).unwrap();
            fs::write(gpu.join("information"), text).unwrap();
        }
        proc
    }

    #[test]
    fn every_gpu_has_a_device_and_the_driver_two() {
        let gpu = |minor: u64| format!("Model: \t\t NVIDIA H100\nIRQ:   \t\t 25\nDevice Minor: \t {minor}\n");
        let mut found = devices(proc(NUMBERS, &[&gpu(1), &gpu(0)]).path()).unwrap();
        found.sort_by(|one, other| one.name.cmp(&other.name));
        let found: Vec<_> = found
            .iter()
            .map(|one| (one.name.as_str(), one.major, one.minor))
            .collect();
        let expected = [
            ("nvidia-uvm", 511, 0),
            ("nvidia0", 195, 0),
            ("nvidia1", 195, 1),
            ("nvidiactl", 195, 255),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_driver_that_does_not_say_what_its_devices_are_ends_the_boot() {
        let refused = |numbers: &str, gpus: &[&str]| {
            let error = devices(proc(numbers, gpus).path()).unwrap_err();
            assert!(matches!(error, DriverError::Devices(_)), "{error}");
        };
        refused(
            "Character devices:\n195 nvidia\n\nBlock devices:\n511 nvidia-uvm\n",
            &[],
        );
        refused(NUMBERS, &["Model: \t\t NVIDIA H100\n"]);
        for minor in ["", "-1", "248", "255", "one"] {
            refused(NUMBERS, &[&format!("Device Minor: \t {minor}\n")]);
        }
        let error = devices(tempfile::tempdir().unwrap().path()).unwrap_err();
        assert!(matches!(error, DriverError::Devices(_)), "{error}");
    }

    #[test]
    fn a_device_file_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("nvidiactl"), "").unwrap();
        let devices = devices(proc(NUMBERS, &[]).path()).unwrap();
        let error = make_files(&devices, folder.path()).unwrap_err();
        assert!(
            matches!(&error, DriverError::DeviceFile { name, .. } if name == "nvidiactl"),
            "{error}"
        );
    }
}
