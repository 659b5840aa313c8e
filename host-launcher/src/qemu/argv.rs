//! The arguments of QEMU. They follow from the LaunchSpec and the image alone; only where files and sockets
//! lie is the host's.

use std::{ffi::OsString, path::Path};

use cocoon_measurements::{LaunchPlatform, LaunchSpec, MachineProfile, acpi::machine_options};

use crate::guest_socket::GuestSocket;

/// Emulated AVX2 and FMA make matrix products 15 times slower than SSE; without FMA alone libtorch's AVX2
/// kernels would meet an illegal instruction, so all of it goes.
pub const TCG_CPU: &str = "max,-avx,-avx2,-fma,-f16c";

/// Of a disk that states no such size Linux 7.2 reads megabytes ahead, as of a rotating one: all of the agent before its
/// first instruction, and each byte is hashed. With this it is 128 KiB, which the agent later sets for itself.
const READ_AHEAD: &str = "opt_io_size=65536";

/// The serial number by which the agent finds the model disk.
const MODEL_SERIAL: &str = "cocoon-model";

/// Who runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accelerator {
    /// QEMU's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Where the host's ends are.
#[derive(Debug, Clone, Copy)]
pub struct Sockets<'a> {
    /// QMP listens here.
    pub qmp: &'a Path,
    /// The backend's vhost-user socket; unused with the kernel's vsock.
    pub vhost_user: &'a Path,
    /// How vsock reaches the guest.
    pub guest: &'a GuestSocket,
}

/// Everything that makes the machine.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// What was predicted from.
    pub spec: &'a LaunchSpec,
    /// Who runs it; TDX needs KVM.
    pub accelerator: Accelerator,
    /// UEFI firmware.
    pub firmware: &'a Path,
    /// bzImage.
    pub kernel: &'a Path,
    /// The kernel's command line, whole.
    pub command_line: &'a str,
    /// Root disk.
    pub root: &'a Path,
    /// Model disk.
    pub model: &'a Path,
    /// The serial port writes here.
    pub console: &'a Path,
    /// The host's ends.
    pub sockets: Sockets<'a>,
}

impl Machine<'_> {
    /// QEMU's arguments. The machine starts paused, and runs once QMP says `cont`.
    pub fn argv(&self) -> Vec<OsString> {
        let MachineProfile::Q35V1 = self.spec.machine;
        let mut argv = Argv::default();
        self.platform(&mut argv);
        argv.option("-smp", self.spec.vcpus.get().to_string());
        argv.option("-m", format!("{}M", self.spec.memory_mib.get()));
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot", "-S"] {
            argv.flag(flag);
        }
        argv.option("-display", "none");
        argv.path_option("-serial", "file:", self.console, "");
        argv.path_option("-qmp", "unix:", self.sockets.qmp, ",server=on,wait=off");
        argv.option("-bios", self.firmware);
        argv.option("-kernel", self.kernel);
        argv.option("-append", self.command_line);
        disk(&mut argv, "root", self.root, "");
        disk(&mut argv, "model", self.model, &format!(",serial={MODEL_SERIAL}"));
        self.vsock(&mut argv);
        if let Some(hole) = self.spec.pci.hole64_gib {
            argv.option("-global", format!("q35-pcihost.pci-hole64-size={}G", hole.get()));
        }
        argv.0
    }

    fn platform(&self, argv: &mut Argv) {
        let memory = self.spec.memory_mib.get();
        argv.option(
            "-object",
            format!("memory-backend-memfd,id=mem0,size={memory}M,share=on"),
        );
        // What the tables were predicted with.
        let machine = format!("q35,memory-backend=mem0{}", machine_options(self.spec.platform));
        match (self.spec.platform, self.accelerator) {
            // The configuration refuses SNP before a machine is made of it.
            (LaunchPlatform::Tdx | LaunchPlatform::Snp, _) => {
                argv.option("-object", "tdx-guest,id=tdx0");
                argv.option("-accel", "kvm");
                argv.option(
                    "-machine",
                    format!("{machine},kernel-irqchip=split,confidential-guest-support=tdx0"),
                );
                argv.option("-cpu", "host");
            }
            (LaunchPlatform::Simulated, Accelerator::Kvm) => {
                argv.option("-accel", "kvm");
                argv.option("-machine", machine);
                argv.option("-cpu", "host");
            }
            (LaunchPlatform::Simulated, Accelerator::Tcg) => {
                argv.option("-accel", "tcg,thread=multi");
                argv.option("-machine", machine);
                argv.option("-cpu", TCG_CPU);
            }
        }
    }

    fn vsock(&self, argv: &mut Argv) {
        match self.sockets.guest {
            GuestSocket::Kernel { cid } => argv.option("-device", format!("vhost-vsock-pci,guest-cid={cid}")),
            GuestSocket::Backend { .. } => {
                argv.path_option("-chardev", "socket,id=vsock0,path=", self.sockets.vhost_user, "");
                argv.option("-device", "vhost-user-vsock-pci,chardev=vsock0");
            }
        }
    }
}

fn disk(argv: &mut Argv, id: &str, file: &Path, device_suffix: &str) {
    argv.path_option(
        "-drive",
        &format!("if=none,id={id},format=raw,readonly=on,file="),
        file,
        "",
    );
    argv.option(
        "-device",
        format!("virtio-blk-pci,drive={id},{READ_AHEAD}{device_suffix}"),
    );
}

#[derive(Default)]
struct Argv(Vec<OsString>);

impl Argv {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.flag(name);
        self.0.push(value.into());
    }

    /// A path inside a list of options, where QEMU reads a doubled comma as a comma.
    fn path_option(&mut self, name: &str, before: &str, path: &Path, after: &str) {
        use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
        let mut value = before.as_bytes().to_vec();
        for byte in path.as_os_str().as_bytes() {
            value.push(*byte);
            if *byte == b',' {
                value.push(b',');
            }
        }
        value.extend_from_slice(after.as_bytes());
        self.option(name, OsString::from_vec(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(platform: LaunchPlatform, accelerator: Accelerator, guest: &GuestSocket) -> Vec<String> {
        let mut spec = LaunchSpec::new(
            platform,
            MachineProfile::Q35V1,
            2.try_into().unwrap(),
            512.try_into().unwrap(),
        );
        spec.pci.hole64_gib = (platform == LaunchPlatform::Tdx).then(|| 64.try_into().unwrap());
        let machine = Machine {
            spec: &spec,
            accelerator,
            firmware: Path::new("f.fd"),
            kernel: Path::new("k,1"),
            command_line: "console=ttyS0 a,b",
            root: Path::new("r,1.img"),
            model: Path::new("m.img"),
            console: Path::new("console.log"),
            sockets: Sockets {
                qmp: Path::new("run/qmp"),
                vhost_user: Path::new("run/vhost"),
                guest,
            },
        };
        let argv = machine.argv().into_iter();
        argv.map(|argument| argument.into_string().unwrap()).collect()
    }

    fn has(argv: &[String], name: &str, value: &str) -> bool {
        argv.windows(2).any(|pair| pair[0] == name && pair[1] == value)
    }

    fn backend() -> GuestSocket {
        GuestSocket::Backend {
            base: "run/guest".into(),
        }
    }

    #[test]
    fn an_emulated_machine_is_what_the_spec_says() {
        let argv = argv(LaunchPlatform::Simulated, Accelerator::Tcg, &backend());
        for (name, value) in [
            ("-smp", "2"),
            ("-m", "512M"),
            ("-cpu", TCG_CPU),
            ("-accel", "tcg,thread=multi"),
            ("-object", "memory-backend-memfd,id=mem0,size=512M,share=on"),
            ("-append", "console=ttyS0 a,b"),
            ("-kernel", "k,1"),
            ("-chardev", "socket,id=vsock0,path=run/vhost"),
            (
                "-device",
                "virtio-blk-pci,drive=model,opt_io_size=65536,serial=cocoon-model",
            ),
            ("-drive", "if=none,id=root,format=raw,readonly=on,file=r,,1.img"),
        ] {
            assert!(has(&argv, name, value), "{name} {value} not in {argv:?}");
        }
        assert!(!argv.iter().any(|argument| argument.contains("net")));
    }

    #[test]
    fn devices_are_in_the_order_of_the_profile() {
        let argv = argv(LaunchPlatform::Simulated, Accelerator::Kvm, &backend());
        let devices: Vec<&String> = argv
            .windows(2)
            .filter(|pair| pair[0] == "-device")
            .map(|pair| &pair[1])
            .collect();
        let expected = [
            "virtio-blk-pci,drive=root,opt_io_size=65536",
            "virtio-blk-pci,drive=model,opt_io_size=65536,serial=cocoon-model",
            "vhost-user-vsock-pci,chardev=vsock0",
        ];
        assert_eq!(devices, expected);
        assert!(has(&argv, "-accel", "kvm") && has(&argv, "-cpu", "host"));
    }

    #[test]
    fn a_tdx_machine_is_confidential_and_never_emulated() {
        let guest = GuestSocket::Kernel { cid: 77 };
        let argv = argv(LaunchPlatform::Tdx, Accelerator::Tcg, &guest);
        let machine = "q35,memory-backend=mem0,smm=off,pic=off,hpet=off,kernel-irqchip=split,\
                       confidential-guest-support=tdx0";
        assert!(has(&argv, "-machine", machine));
        assert!(has(&argv, "-object", "tdx-guest,id=tdx0"));
        assert!(has(&argv, "-accel", "kvm"));
        assert!(has(&argv, "-global", "q35-pcihost.pci-hole64-size=64G"));
        assert!(has(&argv, "-device", "vhost-vsock-pci,guest-cid=77"));
        assert!(!argv.iter().any(|argument| argument.contains("tcg")));
    }
}
