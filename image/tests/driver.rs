//! What the recipe's scripts for GPUs make of NVIDIA's driver and of wheels. Both are made up here: small files of the
//! same form.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

const VERSION: &str = "1.2.3";
/// Calls into the kernel as the real one does where it can encrypt what goes to a GPU.
const ENCRYPTING: &str = "int crypto_alloc_aead(void); int init_module(void) { return crypto_alloc_aead(); }";
const PLAIN: &str = "int printk(void); int init_module(void) { return printk(); }";

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipe").join(name)
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every file below a folder with its content.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            found.insert(name, fs::read(path).unwrap());
        }
    }
    found
}

/// A driver, and a kernel to compile it for.
struct Machine {
    folder: TempDir,
}

impl Machine {
    fn new(module: &str, compression: &str) -> Self {
        let machine = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        write(&machine.kernel().join("Module.symvers"), "");
        let content = machine.path("content");
        let makefile = "modules:\n\ttest -f $(SYSSRC)/Module.symvers\n\tfor one in $(NV_KERNEL_MODULES); \
                        do $(CC) -g -c -o $$one.ko $$one.c || exit 1; done\n";
        for (name, text) in [
            ("kernel-open/Makefile", makefile),
            ("kernel-open/nvidia.c", module),
            ("kernel-open/nvidia-uvm.c", PLAIN),
            ("kernel-open/nvidia-drm.c", "this is not to be compiled"),
            ("firmware/gsp_ga10x.bin", "firmware"),
            ("firmware/gsp_tu10x.bin", "of older GPUs"),
            ("libcuda.so.1.2.3", "CUDA"),
            ("libnvidia-ml.so.1.2.3", "NVML"),
            ("libnvidia-pkcs11-openssl3.so.1.2.3", "encryption"),
            ("nvidia-installer", "not wanted"),
        ] {
            write(&content.join(name), text);
        }
        let archive = machine.path("archive");
        let mut tar = Command::new("tar");
        tar.arg(format!("--{compression}")).arg("--create").arg("--file");
        succeeds(tar.arg(&archive).arg("--directory").arg(&content).arg("."));
        let ran = machine.ran().display().to_string();
        let mut driver = format!("#!/bin/sh\nskip=5\ntouch '{ran}'\nexit 0\n").into_bytes();
        driver.extend(fs::read(archive).unwrap());
        fs::write(machine.driver(), driver).unwrap();
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn driver(&self) -> PathBuf {
        self.path("driver.run")
    }

    fn kernel(&self) -> PathBuf {
        self.path("kernel")
    }

    /// There if the driver was run.
    fn ran(&self) -> PathBuf {
        self.path("ran")
    }

    fn unpack(&self, to: &str) -> Output {
        let mut bash = Command::new("bash");
        bash.arg(script("nvidia.sh")).arg(self.driver()).arg(VERSION);
        bash.arg(self.kernel()).arg(self.path(to)).output().unwrap()
    }

    /// The end of a script that must not succeed.
    fn refuses(&self, why: &str) {
        let output = self.unpack("refused");
        assert!(!output.status.success());
        assert!(said(&output).contains(why), "{}", said(&output));
        assert!(!self.ran().exists(), "the driver was run");
    }
}

#[test]
fn the_driver_is_unpacked_and_compiled_and_never_run() {
    for compression in ["xz", "zstd"] {
        let machine = Machine::new(ENCRYPTING, compression);
        let output = machine.unpack("made");
        assert!(output.status.success(), "{}", said(&output));
        assert!(!machine.ran().exists(), "the driver was run");
        let made = files(&machine.path("made"));
        let names: Vec<_> = made.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "gsp_ga10x.bin",
                "lib/libcuda.so.1",
                "lib/libnvidia-ml.so.1",
                "lib/libnvidia-pkcs11-openssl3.so.1.2.3",
                "nvidia-uvm.ko",
                "nvidia.ko"
            ]
        );
        assert_eq!(made["lib/libcuda.so.1"], b"CUDA");
    }
}

#[test]
fn modules_compiled_in_another_folder_are_the_same_bytes() {
    let machine = Machine::new(ENCRYPTING, "xz");
    for folder in ["made", "made/somewhere/else"] {
        let output = machine.unpack(folder);
        assert!(output.status.success(), "{}", said(&output));
    }
    let module = |folder: &str| fs::read(machine.path(folder).join("nvidia.ko")).unwrap();
    assert_eq!(module("made"), module("made/somewhere/else"));
}

#[test]
fn a_module_that_cannot_encrypt_what_goes_to_the_gpu_is_refused() {
    Machine::new(PLAIN, "xz").refuses("without confidential computing");
}

#[test]
fn a_module_that_does_not_compile_is_no_module() {
    Machine::new("int init_module(void) { return missing; }", "xz").refuses("the modules were not compiled");
}

#[test]
fn what_is_not_the_driver_is_refused() {
    let machine = Machine::new(ENCRYPTING, "xz");
    let whole = fs::read(machine.driver()).unwrap();
    fs::write(machine.driver(), &whole[..whole.len() / 2]).unwrap();
    machine.refuses("no archive that can be unpacked");
    fs::write(machine.driver(), "#!/bin/sh\nexit 0\n").unwrap();
    machine.refuses("where its archive begins");
}

/// Wheels with these files, and what `cuda.sh` makes of them.
fn lay_out(wheels: &[(&str, &[&str])]) -> (TempDir, Output) {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("library.so");
    let mut gcc = Command::new("gcc");
    gcc.args(["-shared", "-nostdlib", "-x", "c", "/dev/null", "-o"]);
    succeeds(gcc.arg(&library));
    for (name, entries) in wheels {
        let path = folder.path().join("wheels").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut python = Command::new("python3");
        let pack = "import sys, zipfile\nwith zipfile.ZipFile(sys.argv[1], 'w') as wheel:\n  \
                    for name in sys.argv[3:]: wheel.write(sys.argv[2], name)";
        python.args(["-c", pack]).arg(&path).arg(&library).args(*entries);
        succeeds(&mut python);
    }
    let mut bash = Command::new("bash");
    bash.arg(script("cuda.sh")).arg(folder.path().join("wheels"));
    let output = bash.arg(folder.path().join("made")).output().unwrap();
    (folder, output)
}

const TORCH: [&str; 5] = [
    "torch/lib/libc10_cuda.so",
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libtorch_cuda.so",
    "torch/lib/libtorch_nvshmem.so",
    "torch/version.py",
];
const BLAS: [&str; 2] = ["nvidia/cu13/lib/libcublas.so.13", "nvidia/cu13/include/cublas.h"];

#[test]
fn libraries_of_all_wheels_lie_in_one_folder_and_those_of_the_cpu_are_left_out() {
    let (folder, output) = lay_out(&[("torch", &TORCH), ("cublas", &BLAS)]);
    assert!(output.status.success(), "{}", said(&output));
    let names: Vec<_> = files(&folder.path().join("made")).into_keys().collect();
    assert_eq!(
        names,
        [
            "lib/libc10_cuda.so",
            "lib/libcublas.so.13",
            "lib/libtorch_cuda.so",
            "lib/libtorch_nvshmem.so"
        ]
    );
}

#[test]
fn wheels_that_are_not_what_they_were_are_refused() {
    for (wheels, why) in [
        (
            vec![("cublas", &BLAS[..])],
            "in no wheel: torch/lib/libc10_cuda.so",
        ),
        (
            vec![("torch", &TORCH[..]), ("cublas", &BLAS[1..])],
            "no library is in the wheel cublas",
        ),
        (
            vec![("torch", &TORCH[..]), ("cublas", &BLAS[..]), ("other", &BLAS[..])],
            "libcublas.so.13 is in two wheels",
        ),
    ] {
        let (_folder, output) = lay_out(&wheels);
        assert!(!output.status.success());
        assert!(said(&output).contains(why), "{}", said(&output));
    }
}
